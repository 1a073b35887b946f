//! From a repository's address to a mounted share that is proven to be the one that was meant.
//!
//! In this order, and nothing is written before the second: mounted → identity → writable → room. Unmounting never
//! fails: a share that is still in use is detached, and goes when its last user does, which is at the latest the mover.

mod credentials;
mod directory;
mod exposed;
mod kernel_log;
mod network;
mod pinned;
mod probe;
mod refusal;

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statvfs::FsFlags;

pub(super) use credentials::are_credentials;
pub(super) use exposed::expose;
pub use network::{KINDS, Kind};
pub(super) use pinned::Pinned;
pub(super) use probe::probe;

use super::blocking;
use super::protocol::CredentialPlaces;
use super::share::{Dir, INSTANCES, LOCKS, read_identity};
use crate::failure::{Code, Failure};
use crate::model::owner::Owner;
use crate::model::repository::Repository;

/// Longest time for the kernel to unmount a share in order; behind a dead server that can take as long as it is dead.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(20);
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

/// Where a repository is mounted, and what of the host that takes.
pub(super) struct Place {
    /// A directory of the mover's own.
    pub mount_point: PathBuf,
    /// Another one, for what a mount helper has to read.
    pub private: PathBuf,
    /// Where credentials come from.
    pub credentials: CredentialPlaces,
    /// A directory repository may be on the device of its parent.
    pub same_device_ok: bool,
    /// Who else will write to the share.
    pub writer: Option<Owner>,
}

/// A mounted repository.
pub(super) struct Mounted {
    /// Its root.
    pub root: Arc<Dir>,
    mount_point: PathBuf,
}

impl Mounted {
    /// Mounts and proves a repository; on failure nothing stays mounted.
    pub async fn open(repository: &Repository, place: &Place, need_bytes: u64) -> Result<(Self, Proof), Failure> {
        Self::open_proven(repository, place, move |root, repository| prove(root, repository, need_bytes)).await
    }

    /// Mounts a repository that is the one that was meant, whatever else is wrong with it. Writes nothing.
    pub async fn open_to_look(repository: &Repository, place: &Place) -> Result<Self, Failure> {
        let is_meant = |root: &Dir, meant: &Repository| read_identity(root)?.must_be(meant.id, &meant.address);
        Self::open_proven(repository, place, is_meant).await.map(|(mounted, ())| mounted)
    }

    async fn open_proven<P: Send + 'static>(
        repository: &Repository,
        place: &Place,
        prove: impl FnOnce(&Dir, &Repository) -> Result<P, Failure> + Send + 'static,
    ) -> Result<(Self, P), Failure> {
        let mount_point = place.mount_point.clone();
        match Self::try_open(repository, place, prove).await {
            Ok((root, proof)) => Ok((Self { root: Arc::new(root), mount_point }, proof)),
            Err(failure) => {
                blocking(move || Ok(unmount(&mount_point))).await?;
                Err(failure)
            }
        }
    }

    async fn try_open<P: Send + 'static>(
        repository: &Repository,
        place: &Place,
        prove: impl FnOnce(&Dir, &Repository) -> Result<P, Failure> + Send + 'static,
    ) -> Result<(Dir, P), Failure> {
        let mount_point = place.mount_point.clone();
        std::fs::create_dir_all(&mount_point).map_err(|error| {
            let text = format!("cannot make the mount point `{}`", mount_point.display());
            Failure::new(Code::MountFailed, text).because(&error)
        })?;
        let (repository, same_device_ok) = (repository.clone(), place.same_device_ok);
        let root = match Kind::of(repository.repository_type) {
            None => {
                let address = PathBuf::from(&repository.address);
                blocking(move || directory::mount(&address, &mount_point, same_device_ok)).await?
            }
            Some(kind) => network::mount(kind, &repository, place).await?,
        };
        blocking(move || prove(&root, &repository).map(|proof| (root, proof))).await
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
    bind_file(dir, place)?;
    // The flags of a bind mount can only be set in a second step.
    restrict(dir, place)
}

/// With the flags of the mount that it was opened through.
fn bind_file(file: &impl AsFd, place: &Path) -> nix::Result<()> {
    let none = None::<&Path>;
    // The kernel's own link from a descriptor to what it is open on; no name is looked up.
    let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    nix::mount::mount(Some(Path::new(&source)), place, none, MsFlags::MS_BIND, none)
}

/// Restricts what is mounted at `place`, which `dir` is, or is the source of; where that is read-only it stays so.
fn restrict(dir: &Dir, place: &Path) -> nix::Result<()> {
    let none = None::<&Path>;
    // Flags that are not named here are taken away.
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
    let mut warnings: Vec<_> = probe(root)?.warning.into_iter().collect();
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

/// Nothing mounted there is fine. Busy for long, or behind a server that does not answer: detached, with a warning.
fn unmount(mount_point: &Path) -> Option<String> {
    let (tell, told) = mpsc::channel();
    let place = mount_point.to_owned();
    // A thread of its own, since the call may not return for as long as the server is gone.
    std::thread::spawn(move || tell.send(unmount_in_order(&place)));
    match told.recv_timeout(UNMOUNT_LIMIT) {
        Ok(warning) => warning,
        Err(_) => {
            // It fails what waits for the server, and thereby what keeps the other thread.
            let forced = nix::mount::umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE);
            let what = if forced.is_ok() { "it was forced" } else { detach(mount_point) };
            let seconds = UNMOUNT_LIMIT.as_secs();
            Some(format!("`{}` was not unmounted within {seconds} s: {what}", mount_point.display()))
        }
    }
}

fn detach(mount_point: &Path) -> &'static str {
    match nix::mount::umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) => "it was detached",
        Err(_) => "it goes with the mover",
    }
}

fn unmount_in_order(mount_point: &Path) -> Option<String> {
    let mut tries = 0;
    loop {
        tries += 1;
        match nix::mount::umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return None,
            // A tool that was killed a moment ago still holds its files.
            Err(Errno::EBUSY) if tries < UNMOUNT_TRIES => std::thread::sleep(UNMOUNT_PAUSE),
            Err(errno) => {
                let what = detach(mount_point);
                return Some(format!("cannot unmount `{}` ({errno}): {what}", mount_point.display()));
            }
        }
    }
}
