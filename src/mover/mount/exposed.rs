//! One directory of the share, made visible to the whole host at a place of its own: QEMU writes a push backup there.
//!
//! The share itself stays mounted in the mover's namespace alone. What the host gets is a second mount of the one staging
//! directory, with all that restricts the first: QEMU comes to the files of this backup and to nothing else on the share.
//! It outlives the mover, so the worker takes it away, through [`unmount`](crate::mover::unmount), whatever became of its mover.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

use crate::failure::{Code, Failure};
use crate::mover::share::Dir;

/// Mounts `dir` at `place`, an empty directory of the host, in the mount namespace `host`.
///
/// `push_not_possible`: the kernel cannot (Linux 5.2 is the first that can). `host_io`: no such place.
pub(in crate::mover) fn expose(dir: &Dir, place: &Path, host: &OwnedFd) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let code = if error.raw_os_error() == Some(libc::ENOENT) { Code::HostIo } else { Code::PushNotPossible };
        let text = format!("cannot show `{}` to the host at `{}`", dir.path().display(), place.display());
        Failure::new(code, text).because(&error)
    };
    let tree = clone_mount(dir.as_fd().as_raw_fd()).map_err(failed)?;
    let place_name = CString::new(place.as_os_str().as_bytes()).map_err(|error| failed(io::Error::other(error)))?;
    // A thread of its own, which ends in the other namespace: what the rest of the mover sees stays as it is.
    let moved = std::thread::scope(|scope| {
        let enter_and_move = || {
            // Only a thread that shares root and working directory with no other may change its namespace (setns(2)).
            unshare(CloneFlags::CLONE_FS)?;
            setns(host, CloneFlags::CLONE_NEWNS)?;
            move_mount(&tree, &place_name)
        };
        scope.spawn(enter_and_move).join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    });
    moved.map_err(failed)
}

/// A detached mount of the directory, which is nowhere to be seen yet and goes with its descriptor.
fn clone_mount(dir: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the descriptor is open for the whole call, and the path is a C string that outlives it.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir, c"".as_ptr(), flags) };
    match RawFd::try_from(fd) {
        // SAFETY: a call that succeeded gave a new descriptor, which nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn move_mount(tree: &OwnedFd, place: &CString) -> io::Result<()> {
    // SAFETY: both paths are C strings that outlive the call, and the descriptor is open.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            place.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
