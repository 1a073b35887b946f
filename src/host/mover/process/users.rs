//! Who uses a block device of the host: a process that has it open, or another device that is on top of it.
//!
//! A device that is a partition or is encrypted by way of the device mapper is used by whoever uses what is below it.
//!
//! The kernel's own claims (a mount, swap, LVM) are not among them, and are refused where a device is claimed; what is on top of it is
//! named here before that, and a loop device claims nothing.

mod below;
mod on_top;
mod processes;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{sleep, timeout};

use crate::failure::{Code, Failure};
use crate::host::mover::{Usage, User};
use crate::mover::protocol::DeviceNumbers;

/// How often it is looked until somebody counts as a user: udev opens a device that was just closed, for a moment.
const LOOKS_MAX: u32 = 5;
/// Pause between two looks.
const PAUSE_MILLISECONDS: u64 = 300;
/// Longest time for one look.
const LOOK_SECONDS_MAX: u64 = 30;
/// Where the kernel shows processes, and devices.
const PROC: &str = "/proc";
const SYS: &str = "/sys";

/// The one that still uses one of them at the last look, if there is one at each; the mover that works in the directory of `claimer` is none.
/// `host_io`: nobody can tell.
pub(super) async fn of(devices: &[DeviceNumbers], claimer: Option<&Path>) -> Result<Usage, Failure> {
    let mut found = look(devices, claimer).await?;
    for _ in 1..LOOKS_MAX {
        if found.user.is_none() {
            break;
        }
        sleep(Duration::from_millis(PAUSE_MILLISECONDS)).await;
        found = look(devices, claimer).await?;
    }
    Ok(found)
}

async fn look(devices: &[DeviceNumbers], claimer: Option<&Path>) -> Result<Usage, Failure> {
    let failed = || Failure::new(Code::HostIo, "cannot look who uses a block device");
    let (devices, claimer) = (devices.to_vec(), claimer.map(Path::to_owned));
    let looking = move || look_at(Path::new(PROC), Path::new(SYS), &devices, claimer.as_deref());
    let looking = tokio::task::spawn_blocking(looking);
    match timeout(Duration::from_secs(LOOK_SECONDS_MAX), looking).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => Err(failed().because(&error)),
        Ok(Err(error)) => Err(failed().because(&error)),
        Err(passed) => Err(failed().because(&passed)),
    }
}

/// What is on top of a device stays there, so that it comes first.
fn look_at(proc: &Path, sys: &Path, devices: &[DeviceNumbers], claimer: Option<&Path>) -> Result<Usage, CannotLook> {
    let on_top::Found { found, mut unseen } = on_top::of(sys, devices)?;
    if let Some((device, what)) = found {
        return Ok(Usage { user: Some((device, User::Device(what))), unseen });
    }
    let with_below = below::with_below(sys, devices)?;
    let processes = processes::of(proc, std::process::id(), &with_below, claimer)?;
    let user = processes.found.map(|(device, who)| (device, User::Process(who)));
    if !processes::are_of_host(proc) {
        unseen.push("processes outside of the worker's PID namespace".to_owned());
    }
    match processes.unseen {
        0 => {}
        1 => unseen.push("1 process".to_owned()),
        count => unseen.push(format!("{count} processes")),
    }
    Ok(Usage { user, unseen })
}

/// A look that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`", path.display())]
struct CannotLook {
    path: PathBuf,
    source: io::Error,
}

/// What an error says of the one thing that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It has ended meanwhile, and uses nothing.
    Gone,
    /// It may not be looked at, as in a container or on a hardened host.
    Hidden,
    /// Nobody can tell what that means.
    Failed,
}

fn verdict(error: &io::Error) -> Verdict {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::ENXIO) => Verdict::Gone,
        Some(Errno::EACCES | Errno::EPERM) => Verdict::Hidden,
        _ => Verdict::Failed,
    }
}

impl CannotLook {
    fn at(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_or_is_hidden_is_told_from_what_failed() {
        for (errno, wanted) in [
            (Errno::ENOENT, Verdict::Gone),
            (Errno::ESRCH, Verdict::Gone),
            // What sysfs says of a disk that is being taken out.
            (Errno::ENODEV, Verdict::Gone),
            (Errno::ENXIO, Verdict::Gone),
            (Errno::EACCES, Verdict::Hidden),
            (Errno::EPERM, Verdict::Hidden),
            (Errno::EIO, Verdict::Failed),
            (Errno::ENOMEM, Verdict::Failed),
            (Errno::ENOTDIR, Verdict::Failed),
        ] {
            assert_eq!(verdict(&errno.into()), wanted, "{errno}");
        }
        assert_eq!(verdict(&io::Error::other("no number")), Verdict::Failed);
    }
}
