//! The worker's door to its movers: the child processes that touch the shares, so that the worker never does.
//!
//! Every request has a deadline of the caller's; a mover that does not keep it may be stuck behind a dead share, and is
//! still the caller's to stop. A request whose future is dropped is broken off by the next one: whoever asks `discard`
//! after a dropped `copy` gets a stopped copy and an empty place.
//!
//! Dropping a mover kills it. What a stopped one may leave is a process that can't die; it is named, as a process with its
//! directory, in the remains of the failure of [`Mover::stop`], and ends when the kernel lets it.

mod fake;
mod process;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use crate::failure::Failure;
use crate::model::id::InvalidName;
use crate::mover::protocol::{DeviceNumbers, Reply, Request};

pub use fake::{FakeMovers, FakeVolume};
pub use process::{
    ProcessMovers,
    exposed::mounts_spread,
    sweep::{remove_unused, shown_by_the_gone, sweep},
};

/// A mover's name: unique on the host among all movers that may be alive at once, so made of job, run and attempt. It
/// becomes the name of a directory and part of the path of sockets, whose length is bounded by the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MoverName(String);

impl MoverName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MoverName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if (1..=60).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new("mover name", text, "it has 1 to 60 of a-z, A-Z, 0-9, `.`, `-` and `_`, no `.` first"))
        }
    }
}

impl fmt::Display for MoverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far copying or comparing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of disks looked at so far, zeros included.
    pub done_bytes: u64,
    /// Bytes of disks in all.
    pub total_bytes: u64,
    /// Bytes written as data so far.
    pub data_bytes: u64,
}

/// Who uses one of some block devices, as far as that can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Which of them is used, and by whom.
    pub user: Option<(DeviceNumbers, User)>,
    /// What could not be looked at, in words, and may be a user as well.
    pub unseen: Vec<String>,
}

/// One that uses a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A process that has it open, in words.
    Process(String),
    /// Another block device that is on top of it, in words.
    Device(String),
}

/// Where movers come from.
#[async_trait]
pub trait Movers: Send + Sync {
    /// Starts a mover for one attempt. `mover_died` when it does not come up, with its own words as the cause.
    async fn start(&self, name: &MoverName) -> Result<Box<dyn Mover>, Failure>;

    /// Takes away what a mover has shown to the host at `place` ([`Request::Expose`]), whether that mover lives or not, and removes
    /// the place. Nothing there is no error. `host_io`, with what remains.
    async fn unmount(&self, place: &Path) -> Result<(), Failure>;

    /// Fails every call that is under way on the share that is shown at `place`, for all processes that wait for it; false where
    /// nothing is shown there. What waits for a dead server is free again, but for the opening of a file on NFS 4: Linux 6.1 lets that
    /// wait for the client's state manager, of which the mount knows nothing. What comes after waits anew, but on CephFS and FUSE,
    /// where the mount is of no use any more.
    async fn cut_off(&self, place: &Path) -> Result<bool, Failure>;

    /// Who on this host uses one of those block devices, or a disk or partition that it is a part of. A mover sees no process but its own,
    /// so the worker looks. A mover that has claimed them is none, by its name. `host_io`: nobody can tell.
    async fn usage(&self, devices: &[DeviceNumbers], claimed_by: Option<&MoverName>) -> Result<Usage, Failure>;

    /// Whether a mover of that name lives, whoever started it: that of a worker that was killed may still be at work.
    async fn lives(&self, name: &MoverName) -> Result<bool, Failure>;
}

/// A running mover.
#[async_trait]
pub trait Mover: Send {
    /// Asks, and waits for the answer. Past `deadline`: `mover_unresponsive`; process gone: `mover_died`.
    async fn ask(&mut self, request: Request, deadline: Duration) -> Result<Reply, Failure>;

    /// The latest progress of what was asked last. A value that does not change is a mover that moves nothing.
    fn progress(&self) -> watch::Receiver<Progress>;

    /// Resolves when the lease is lost or the process has died. There is one, for the first who asks.
    fn lost(&mut self) -> Option<oneshot::Receiver<Failure>>;

    /// Ends the process, kindly and then not. One that can't be killed is `mover_unresponsive`, with the process and its
    /// directory as what remains.
    async fn stop(&mut self) -> Result<(), Failure>;
}
