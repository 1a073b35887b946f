//! Taking away what a mover has shown to the host: a process of its own, `longshore mover unmount`, since the last one that lets
//! go of a dead share may wait for it for ever, and because it has to work where the mover itself is gone.
//!
//! It is in the host's mount namespace, as its worker is. Nothing mounted there is fine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::protocol::{FORCE, UNMOUNT};

/// `[force] PLACE`. To force fails every call on the share that is under way now, of whatever process: QEMU, which waits for a
/// dead share, gets an error instead, and is its own master again.
pub(super) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let first = arguments.next();
    let (forced, place) = match first.as_deref() {
        Some(word) if word == FORCE => (true, arguments.next()),
        _ => (false, first),
    };
    let Some(place) = place.map(PathBuf::from).filter(|place| place.is_absolute()) else {
        eprintln!("mover {UNMOUNT}: needs an absolute path");
        return ExitCode::FAILURE;
    };
    let done = if forced { force(&place) } else { unmount(&place) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            eprintln!("cannot unmount `{}`: {errno}", place.display());
            ExitCode::FAILURE
        }
    }
}

/// Who still has a file of it open keeps it for himself alone.
fn unmount(place: &Path) -> nix::Result<()> {
    let once = match umount2(place, MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EBUSY) => umount2(place, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
        other => other,
    };
    match once {
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// That it is busy afterwards is no failure: it stays until it is unmounted.
fn force(place: &Path) -> nix::Result<()> {
    match umount2(place, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE) {
        Err(Errno::EBUSY | Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    }
}
