//! From a repository's address to a mounted share that is proven to be the one that was meant.
//!
//! In this order, and nothing is written before the second: mounted → identity → writable → room. Unmounting never
//! fails: a share that is still in use is detached, and goes when its last user does, which is at the latest the mover.

mod directory;
mod pinned;
mod probe;

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statvfs::FsFlags;

pub(super) use pinned::Pinned;

use super::share::{Dir, INSTANCES, LOCKS, read_identity};
use crate::failure::{Code, Failure};
use crate::model::repository::Repository;

/// Tries to unmount a busy share before it is detached.
const UNMOUNT_TRIES: u32 = 20;
/// Pause between two tries.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

/// What was found out about a repository.
pub(super) struct Proof {
    /// Bytes free for us.
    pub free_bytes: u64,
    /// What is unusual about it though not wrong.
    pub warnings: Vec<String>,
}

/// A mounted repository.
pub(super) struct Mounted {
    /// Its root.
    pub root: Arc<Dir>,
    mount_point: PathBuf,
}

impl Mounted {
    /// Mounts and proves a repository; on failure nothing stays mounted.
    pub fn open(
        repository: &Repository,
        mount_point: &Path,
        same_device_ok: bool,
        need_bytes: u64,
    ) -> Result<(Self, Proof), Failure> {
        let Some(address) = repository.directory() else {
            let text = format!(
                "cannot mount `{}`: this version mounts repositories of type `directory` only",
                repository.address
            );
            return Err(Failure::new(Code::MountTypeUnsupported, text));
        };
        std::fs::create_dir_all(mount_point).map_err(|error| {
            let text = format!("cannot make the mount point `{}`", mount_point.display());
            Failure::new(Code::MountFailed, text).because(&error)
        })?;
        let proven = directory::mount(&address, mount_point, same_device_ok)
            .and_then(|root| prove(&root, repository, need_bytes).map(|proof| (root, proof)));
        match proven {
            Ok((root, proof)) => Ok((Self { root: Arc::new(root), mount_point: mount_point.to_owned() }, proof)),
            Err(failure) => {
                unmount(mount_point);
                Err(failure)
            }
        }
    }

    /// Unmounts it. Who still holds a descriptor on it is the cause of the warning.
    pub fn close(self) -> Option<String> {
        let Self { root, mount_point } = self;
        drop(root);
        unmount(&mount_point)
    }
}

/// What is done on a share through a bound path is neither another user's right, nor a device, nor a program, nor what a
/// symbolic link leads to. The last one needs Linux 5.10; older kernels ignore the flag.
const BIND_FLAGS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW));

/// Binds the directory itself, whatever has its name by now, on `place`. What is mounted below it is not there.
fn bind(dir: &Dir, place: &Path) -> nix::Result<()> {
    let none = None::<&Path>;
    // The kernel's own link from a descriptor to what it is open on; no name is looked up.
    let source = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    nix::mount::mount(Some(Path::new(&source)), place, none, MsFlags::MS_BIND, none)?;
    // The flags of a bind mount can only be set in a second step, which takes away those that it does not name.
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | BIND_FLAGS;
    if nix::sys::statvfs::fstatvfs(dir)?.flags().contains(FsFlags::ST_RDONLY) {
        flags |= MsFlags::MS_RDONLY;
    }
    nix::mount::mount(none, place, none, flags, none)
}

/// Fails with `host_unfit` if the mount that `dir` was opened through follows symbolic links: root would write wherever
/// another client of the share points.
fn must_not_follow_links(dir: &Dir) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::MountFailed, format!("cannot look at the mount of `{}`", dir.path().display()))
            .because(&error)
    };
    // By its number, as paths in the table are escaped and may be mounted over.
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_fd().as_raw_fd())).map_err(failed)?;
    let number = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim).unwrap_or_default();
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(number)).unwrap_or_default();
    // proc_pid_mountinfo(5): the sixth field holds the mount's own options.
    if line.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "nosymfollow")) {
        return Ok(());
    }
    let text = format!("the kernel cannot keep symbolic links in `{}` from being followed", dir.path().display());
    Err(Failure::new(Code::HostUnfit, text))
}

fn prove(root: &Dir, repository: &Repository, need_bytes: u64) -> Result<Proof, Failure> {
    read_identity(root)?.must_be(repository.id, &repository.address)?;
    for name in [INSTANCES, LOCKS] {
        root.open_dir(name).map_err(|error| match error.is_missing() {
            true => Failure::new(Code::RepositoryUnsafe, format!("`{}` has no `{name}`", repository.address)),
            false => error.into(),
        })?;
    }
    let mut warnings: Vec<_> = probe::probe(root)?.into_iter().collect();
    let free_bytes = root.free_bytes()?;
    if free_bytes < need_bytes {
        let text = format!("`{}` has {free_bytes} bytes free where {need_bytes} are needed", repository.address);
        return Err(Failure::new(Code::RepositoryFull, text));
    }
    if !root.sync()? {
        warnings.push(format!("the file system of `{}` has no fsync for directories", repository.address));
    }
    Ok(Proof { free_bytes, warnings })
}

/// Nothing mounted there is fine. Busy for long: detached, with a warning.
fn unmount(mount_point: &Path) -> Option<String> {
    let mut tries = 0;
    loop {
        tries += 1;
        match nix::mount::umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return None,
            // A tool that was killed a moment ago still holds its files.
            Err(Errno::EBUSY) if tries < UNMOUNT_TRIES => std::thread::sleep(UNMOUNT_PAUSE),
            Err(errno) => {
                let detached = nix::mount::umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
                let what = if detached.is_ok() { "it was detached" } else { "it goes with the mover" };
                return Some(format!("cannot unmount `{}` ({errno}): {what}", mount_point.display()));
            }
        }
    }
}
