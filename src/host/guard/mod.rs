//! The guard: the process that thaws a guest, and ends a backup job, when the worker can't.
//!
//! One guard per freeze or backup job, an exec of our own binary that outlives the worker. It is armed before the freeze;
//! from then on the guest does not depend on the worker being alive, awake or connected:
//!
//! ```text
//!            freezing            thawed
//!   armed ─────────────> frozen ────────> armed        disarm: the process ends, wherever it is
//!     │                    │
//!     │ pipe closed        │ pipe closed, freeze limit passed
//!     └─────────┬──────────┘
//!               v
//!             fired: thaws until the agent says thawed; ends the instance's job if it is ours; and again, until
//!                    it is told thawed or disarmed, or, once the pipe is closed, until all has been well for a while
//!
//!   armed, frozen: scratch near its limit or its file system's end ──> the pull job is ended (`scratch_full`), the guest
//!                  runs on, also one that QEMU had already paused for want of room; a push job has no scratch
//! ```
//!
//! It never touches a job but the one in its duty, makes no decision about the backup, and holds no
//! secret. What it did is told to a worker that asks: after [`Guard::thawed`] answered well, the guest was frozen for the
//! whole time in between. It never gives up: while a guest may be frozen or our job may stand, it stays.

#[cfg(feature = "libvirt")]
mod entry;
pub mod fake;
#[cfg(feature = "libvirt")]
mod place;
mod process;
mod protocol;
mod rescue;
mod scratch;
#[cfg(test)]
mod tests;
mod watch;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

#[cfg(feature = "libvirt")]
pub use self::entry::main;
pub use self::process::ProcessGuards;
pub use self::rescue::{SETTLE, resume_after_io_error};
use crate::failure::Failure;
use crate::host::hypervisor::DomainJob;
use crate::model::id::InstanceId;

/// What one guard answers for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardDuty {
    /// The instance.
    pub instance: InstanceId,
    /// Longest time from [`Guard::freezing`] to [`Guard::thawed`]; then the guard fires.
    pub freeze_limit: Duration,
    /// The backup job to be ended when the worker can't; none for a freeze without one.
    pub job: Option<JobDuty>,
}

/// The libvirt job that a guard ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDuty {
    /// The job, by whose socket or images it is known to be ours: others for every attempt.
    pub ours: DomainJob,
    /// The instance ran when the guard was armed: one that an I/O error paused after the job's begin is to run again when it
    /// is gone.
    pub was_running: bool,
    /// The scratch of a pull job.
    pub scratch: Option<ScratchDuty>,
}

/// The scratch that a guard watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchDuty {
    /// The scratch files, on a local disk.
    pub files: Vec<PathBuf>,
    /// Bytes that the scratch files may allocate together; the job is ended at 80 % of it.
    pub limit_bytes: u64,
    /// Free bytes of the scratch's file system below which the job is ended.
    pub reserve_bytes: u64,
}

/// Room that pull jobs leave on the scratch's file system, bytes: what guests can overwrite there, together, between two
/// looks of their guards and the end of a job.
pub const SCRATCH_RESERVE_BYTES: u64 = 512 * 1024 * 1024;

/// Whoever can start guards.
#[async_trait]
pub trait Guards: Send + Sync {
    /// Starts a guard and waits until it is connected to the hypervisor and watching. `guard_failed`.
    async fn arm(&self, duty: &GuardDuty) -> Result<Box<dyn Guard>, Failure>;
}

/// The worker's end of one guard. Dropping it is as good as dying: the guard fires.
#[async_trait]
pub trait Guard: Send {
    /// The job is about to be begun. What an I/O error has paused before that is not to run again. Fails with what
    /// [`Guard::fired`] would tell.
    async fn beginning(&mut self) -> Result<(), Failure>;
    /// The guest is about to be frozen: from now the freeze limit runs. `guard_failed`, `guard_fired`.
    async fn freezing(&mut self) -> Result<(), Failure>;
    /// The guest is thawed, and the agent has confirmed it. Fails with what [`Guard::fired`] would tell.
    async fn thawed(&mut self) -> Result<(), Failure>;
    /// What it has done so far, if anything: `guard_fired` or `scratch_full`.
    async fn fired(&mut self) -> Result<Option<Failure>, Failure>;
    /// Nothing is left to guard: the process ends. An error only says that it had to be killed for that.
    async fn disarm(self: Box<Self>) -> Result<(), Failure>;
    /// Leaves it to its work, since the guest may be frozen or our job may still begin: it fires, and goes on until all has
    /// been well for a while, which begins to count when `late` is over. Answers its process id, for the left-over report.
    fn leave(self: Box<Self>, late: BoxFuture<'static, ()>) -> u32;
}
