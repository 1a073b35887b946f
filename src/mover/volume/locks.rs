//! The locks by which QEMU's processes keep each other from their images: looking for them, and holding them.
//!
//! Since 2.10 a process of QEMU's holds a shared lock on byte 100 + n of a file for each permission n that it uses, and on byte 200 + n
//! for each that it lets nobody else use (`RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE` in its block/file-posix.c). It takes its own
//! first and looks for those of others then, by asking whether an exclusive one would be granted. NFS carries them from host to
//! host. Who holds all of them as we do is one who uses everything and shares nothing: nobody opens the image, not even to read.
//! What opens it by force (`-U`) looks for no locks. Blocks.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// "I write."
pub(in crate::mover) const WRITES: libc::off_t = 101;
/// "I change the size."
pub(in crate::mover) const RESIZES: libc::off_t = 103;
/// Whoever reads, writes, writes what was there, or changes the size.
const USED: RangeInclusive<libc::off_t> = 100..=103;
/// Whoever lets nobody else do so.
const NOT_SHARED: RangeInclusive<libc::off_t> = 200..=203;
/// Reads and minds no other: a backup, a look at the image.
const READS: libc::off_t = 100;

/// Somebody else holds a lock on that byte.
pub(in crate::mover) fn is_locked(file: &File, byte: libc::off_t) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, byte, 1);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).map_err(io::Error::from)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Somebody else has the image open, other than to read it whatever becomes of it. On a file system without locks nobody is seen.
pub(super) fn is_in_use(file: &File) -> io::Result<bool> {
    for byte in USED.chain(NOT_SHARED).filter(|byte| *byte != READS) {
        match is_locked(file, byte) {
            Err(error) if has_no_locks(&error) => return Ok(false),
            Ok(false) => {}
            other => return other,
        }
    }
    Ok(false)
}

/// Takes every lock, for as long as `file` is open; false where somebody else has the image open. A file system without locks has
/// none to take.
pub(super) fn hold(file: &File) -> io::Result<bool> {
    for bytes in [USED, NOT_SHARED] {
        let lock = flock(libc::F_RDLCK, *bytes.start(), bytes.end() - bytes.start() + 1);
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map_err(io::Error::from) {
            Ok(_) => {}
            Err(error) if has_no_locks(&error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a volume cannot be locked");
                return Ok(true);
            }
            Err(error) if is_conflict(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    is_in_use(file).map(|in_use| !in_use)
}

fn flock(kind: libc::c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(i16::MAX),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL))
}

fn is_conflict(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAGAIN | Errno::EACCES))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn of_two_who_want_everything_one_is_refused_and_readers_by_force_are_not_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (ours, theirs, reader) = (open(), open(), open());
        fcntl(reader.as_fd(), FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, READS, 1))).unwrap();
        assert!(!is_in_use(&ours).unwrap());
        assert!(hold(&ours).unwrap() && hold(&ours).unwrap(), "its own are no hindrance");
        assert!(is_in_use(&theirs).unwrap() && !hold(&theirs).unwrap());
        drop(theirs);
        drop(ours);
        for byte in [WRITES, RESIZES, 201] {
            let holder = open();
            fcntl(holder.as_fd(), FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte, 1))).unwrap();
            assert!(is_in_use(&open()).unwrap() && !hold(&open()).unwrap(), "{byte}");
        }
        assert!(hold(&open()).unwrap());
    }
}
