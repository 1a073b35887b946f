//! The files and devices that a disk is written into, in the staging directory or beside a volume, and the descriptors by which we learn whether they were really written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};
use serde_json::{Value, json};

use super::server::{Besides, Cache, Serve, Server, Sockets, pseudo_name};
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;
use crate::mover::command::Command;
use crate::mover::device;
use crate::mover::nbd::Connection;
use crate::mover::share;

/// Clusters of the images: QEMU's own default, and small enough that little is rounded up.
pub(in crate::mover) const CLUSTER_BYTES: usize = 64 * 1024;
/// What every device counts in, or parts of: the kernel zeroes whole blocks of the device's own, of 4 KiB and more.
const ZERO_ALIGNMENT: u64 = 1024 * 1024;
/// Free bytes below which a share counts as full: what an empty image takes.
const ROOM_MIN_BYTES: u64 = 4 * 64 * 1024;
/// How long `qemu-img create` may take.
const CREATE_DEADLINE_SECONDS: u64 = 60;

/// What a disk is to be written into.
#[derive(Clone, Debug)]
pub(super) struct New {
    /// Absolute; no file may be there.
    pub path: PathBuf,
    /// The size that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Format of the file.
    pub format: ImageFormat,
    /// What an image leaves to another one.
    pub backing: Option<Backing>,
    /// The code of a failure that lies in its storage.
    pub device: Code,
}

/// The image below an image.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    /// As the header names it, for those who read the image without us.
    pub name: String,
    /// As it is opened now.
    pub node: Value,
}

/// The image of one disk.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    device: Code,
    node: Value,
    cache: Cache,
    /// Open since before anybody else wrote to the file. A write that fails late, after the writer has closed the file, is told
    /// to those who had it open then and call fsync; a descriptor opened afterwards learns nothing.
    held: Arc<File>,
    kind: Kind,
}

/// What a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file that we made.
    File,
    /// A block device, which holds anything until it is written to unless it is blank.
    Device { blank: bool },
}

impl Target {
    /// Makes an empty image.
    pub(super) async fn create(new: New) -> Result<Self, Failure> {
        let New { path, virtual_bytes, format, backing, device } = new;
        let Some(name) = path.to_str().filter(|_| path.is_absolute()).map(str::to_owned) else {
            return Err(Failure::new(Code::Internal, format!("`{}` is no absolute path in UTF-8", path.display())));
        };
        let held = Arc::new(create_file(&path, device).await?);
        let cache = cache_of(&path).await;
        let file = json!({"driver": "file", "filename": name});
        if format == ImageFormat::Raw {
            let node = json!({"driver": "raw", "file": file});
            let target = Self { path, device, node, cache, held, kind: Kind::File };
            target.has_length(virtual_bytes).await?;
            return Ok(target);
        }
        // Its own options in JSON would be read by few versions of `qemu-img create`; a path with `file:` before it is taken
        // literally by all of them.
        let create = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o"]);
        let create = create.arg(format!("cluster_size={CLUSTER_BYTES},compat=1.1,lazy_refcounts=off"));
        let create = match &backing {
            // Without a look at what has that name: it leads there only from where the image will be.
            Some(backing) => create.args(["-u", "-F", "qcow2", "-b"]).arg(&backing.name),
            None => create,
        };
        let create = create.arg(format!("file:{name}")).arg(virtual_bytes.to_string());
        let created = create.run_to_success(Duration::from_secs(CREATE_DEADLINE_SECONDS)).await;
        let backing = backing.map(|backing| backing.node);
        let node = json!({"driver": "qcow2", "backing": backing, "file": file});
        let target = Self { path, device, node, cache, held, kind: Kind::File };
        match (target.leads_to_ours().await, created) {
            (Ok(true), Ok(_)) => Ok(target),
            // What was put in its place explains why the tool failed.
            (Ok(false), _) => Err(target.replaced()),
            // A tool that fails removes the file, so that looking at it says less.
            (_, Err(error)) => {
                let failed = error.failure(Code::ImageToolFailed, format!("cannot make the image `{name}`"));
                Err(target.storage_fault(failed).await)
            }
            (Err(unseen), Ok(_)) => Err(target.failed("look at", &unseen)),
        }
    }

    /// A block device that is there, of which only the first `virtual_bytes` are written. `node` leads to it, whatever else is renamed.
    pub(super) async fn device(
        node: PathBuf,
        held: Arc<File>,
        virtual_bytes: u64,
        blank: bool,
    ) -> Result<Self, Failure> {
        let Some(name) = node.to_str().map(str::to_owned) else {
            return Err(Failure::new(Code::Internal, format!("`{}` is no path in UTF-8", node.display())));
        };
        let file = json!({"driver": "host_device", "filename": name});
        let opened = json!({"driver": "raw", "size": virtual_bytes, "file": file});
        let cache = cache_of(&node).await;
        Ok(Self { path: node, device: Code::VolumeIo, node: opened, cache, held, kind: Kind::Device { blank } })
    }

    /// What is not written of it does not read as zeros.
    pub(super) fn holds_anything(&self) -> bool {
        self.kind == Kind::Device { blank: false }
    }

    /// Lets everything of a device that lies beyond read as zeros.
    pub(super) async fn zero_beyond(&self, bytes: u64) -> Result<(), Failure> {
        let zeroed = on_file(&self.held, move |file| {
            let end = lseek(file, 0, Whence::SeekEnd)?;
            // By a path that takes any length, to where every device can be told to do it by itself.
            let start =
                bytes.div_ceil(ZERO_ALIGNMENT).saturating_mul(ZERO_ALIGNMENT).min(u64::try_from(end).unwrap_or(0));
            let by_hand = usize::try_from(start.saturating_sub(bytes)).map_err(io::Error::other)?;
            file.write_all_at(&vec![0; by_hand], bytes)?;
            let start = i64::try_from(start).map_err(io::Error::other)?;
            if start < end {
                fallocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, start, end - start)?;
            }
            Ok(())
        });
        zeroed.await.map_err(|error| self.failed("write zeros to the end of", &error))
    }

    /// Makes the file exactly so long; what is new of it reads as zeros and takes no room. A device has the length that it has.
    pub(super) async fn has_length(&self, bytes: u64) -> Result<(), Failure> {
        if self.kind != Kind::File {
            return Ok(());
        }
        let lengthened = on_file(&self.held, move |file| match file.metadata()?.len() {
            length if length == bytes => Ok(()),
            _ => file.set_len(bytes),
        });
        lengthened.await.map_err(|error| self.failed("set the length of", &error))
    }

    /// Serves it for writing.
    pub(super) async fn serve_to_write(&self, sockets: &mut Sockets) -> Result<(Server, Connection), Failure> {
        Server::start(self.serve(true, Besides::Nothing), &sockets.next()).await
    }

    /// Puts an image that stands alone on top of another one, whatever either holds.
    pub(super) async fn stand_on(&mut self, backing: Backing) -> Result<(), Failure> {
        let rebase = Command::new("qemu-img").args(["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]);
        let rebase = rebase.arg(&backing.name).arg(format!("file:{}", self.path.display()));
        if let Err(error) = rebase.run_to_success(Duration::from_secs(CREATE_DEADLINE_SECONDS)).await {
            let shown = self.path.display();
            let failed =
                error.failure(Code::ImageToolFailed, format!("cannot put `{shown}` on top of `{}`", backing.name));
            return Err(self.storage_fault(failed).await);
        }
        if let Some(below) = self.node.get_mut("backing") {
            *below = backing.node;
        }
        self.is_still_ours().await
    }

    /// Serves what is on the storage: past this host's cache, or with the file dropped from it.
    pub(super) async fn serve_from_storage(
        &self,
        sockets: &mut Sockets,
        besides: Besides<'_>,
    ) -> Result<(Server, Connection), Failure> {
        self.sync().await?;
        if self.cache == Cache::Buffered {
            self.drop_from_cache().await?;
        }
        Server::start(self.serve(false, besides), &sockets.next()).await
    }

    /// Makes everything that was written durable, by whomever, or learns that it was not.
    pub(super) async fn sync(&self) -> Result<(), Failure> {
        on_file(&self.held, share::sync).await.map_err(|error| self.failed("fsync", &error))
    }

    /// Clean pages are dropped; they are all clean after an fsync.
    async fn drop_from_cache(&self) -> Result<(), Failure> {
        let dropped = on_file(&self.held, |file| {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
        });
        dropped.await.map_err(|error| self.failed("drop from the cache", &error))
    }

    /// The held file and its path.
    pub(super) fn held(&self) -> (PathBuf, Arc<File>) {
        (self.path.clone(), Arc::clone(&self.held))
    }

    /// Does something with the held file.
    pub(super) async fn on_held<T: Send + 'static>(
        &self,
        act: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        on_file(&self.held, act).await.map_err(|error| self.failed("look at", &error))
    }

    /// Likewise, with what was fsynced read from the storage.
    pub(super) async fn on_stored<T: Send + 'static>(
        &self,
        act: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        self.drop_from_cache().await?;
        self.on_held(act).await
    }

    /// The path still leads to the file that was made.
    pub(super) async fn is_still_ours(&self) -> Result<(), Failure> {
        match self.leads_to_ours().await.map_err(|error| self.failed("look at", &error))? {
            true => Ok(()),
            false => Err(self.replaced()),
        }
    }

    async fn leads_to_ours(&self) -> io::Result<bool> {
        let path = self.path.clone();
        on_file(&self.held, move |file| {
            let (held, found) = (file.metadata()?, std::fs::symlink_metadata(path)?);
            Ok((held.dev(), held.ino()) == (found.dev(), found.ino()))
        })
        .await
    }

    fn replaced(&self) -> Failure {
        let text = format!("`{}` was replaced while it was written", self.path.display());
        Failure::new(device::replaced(self.device), text)
    }

    /// Length of the file, bytes.
    pub(super) async fn file_bytes(&self) -> Result<u64, Failure> {
        let length = on_file(&self.held, |file| file.metadata().map(|metadata| metadata.len()));
        length.await.map_err(|error| self.failed("look at", &error))
    }

    /// A tool says in words alone what kept it from its work, and other words on each file system. So the storage is asked itself: the
    /// tool's failure with the storage's own code, if that is what it was.
    async fn storage_fault(&self, failed: Failure) -> Failure {
        let asked = on_file(&self.held, |file| {
            share::sync(file)?;
            let room = nix::sys::statvfs::fstatvfs(file)?;
            Ok(room.blocks_available().saturating_mul(room.fragment_size()))
        });
        let code = match asked.await {
            Ok(free) if free < ROOM_MIN_BYTES => device::full(self.device),
            Ok(_) => failed.code,
            Err(error) => self.failed("look at", &error).code,
        };
        Failure { code, ..failed }
    }

    /// Hears what closing the file says, and keeps it open: a file system is asked at the closing of any descriptor.
    pub(super) async fn hear_close(&self) -> Result<(), Failure> {
        let closed = on_file(&self.held, |file| nix::unistd::close(file.try_clone()?).map_err(io::Error::from));
        closed.await.map_err(|error| self.failed("close", &error))
    }

    /// Closes the held descriptor; the last place where a file system can report a failed write (NFS does).
    pub(super) async fn close(self) -> Result<(), Failure> {
        let Self { path, device, held, .. } = self;
        match Arc::into_inner(held) {
            Some(file) => close(file).await.map_err(|error| io_failure(device, "close", &path, &error)),
            None => Err(Failure::new(Code::Internal, format!("`{}` is still used while it is closed", path.display()))),
        }
    }

    /// The image as QEMU's tools name it.
    pub(super) fn name(&self) -> String {
        pseudo_name(&self.node)
    }

    /// How QEMU's tools are to read it.
    pub(super) fn cache(&self) -> Cache {
        self.cache
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn serve<'s>(&'s self, writable: bool, besides: Besides<'s>) -> Serve<'s> {
        let shown = format!("`{}`", self.path.display());
        Serve { node: &self.node, key: None, writable, cache: self.cache, besides, device: self.device, shown }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        io_failure(self.device, what, &self.path, error)
    }
}

/// Writes a small new file of a repository whole, durably.
pub(super) async fn write_file(path: &Path, content: Vec<u8>) -> Result<(), Failure> {
    let failed = |what: &str, error: &io::Error| io_failure(Code::RepositoryIo, what, path, error);
    let file = Arc::new(create_file(path, Code::RepositoryIo).await?);
    let written = on_file(&file, move |mut file| file.write_all(&content).and_then(|()| share::sync(file)));
    written.await.map_err(|error| failed("write", &error))?;
    match Arc::into_inner(file) {
        Some(file) => close(file).await.map_err(|error| failed("close", &error)),
        None => Ok(()),
    }
}

/// Whether the file can be opened past the cache.
pub(super) async fn cache_of(path: &Path) -> Cache {
    let path = path.to_owned();
    let flags = (OFlag::O_DIRECT | OFlag::O_NONBLOCK).bits();
    let direct = move || OpenOptions::new().read(true).custom_flags(flags).open(path);
    match tokio::task::spawn_blocking(direct).await {
        Ok(Ok(_)) => Cache::Direct,
        // Whatever else is wrong with it, opening it for real says it better.
        _ => Cache::Buffered,
    }
}

/// A failure of storage that is told from others by `device`.
pub(super) fn io_failure(device: Code, what: &str, path: &Path, error: &io::Error) -> Failure {
    let code = device::refused(device, error.raw_os_error().map(Errno::from_raw));
    Failure::new(code, format!("cannot {what} `{}`", path.display())).because(error)
}

async fn create_file(path: &Path, device: Code) -> Result<File, Failure> {
    let owned = path.to_owned();
    let create = move || {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).custom_flags(flags).open(owned)
    };
    let created = tokio::task::spawn_blocking(create).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    created.map_err(|error| io_failure(device, "create", path, &error))
}

/// Does something with a file on a thread of its own: a share may answer late.
pub(super) async fn on_file<T: Send + 'static>(
    file: &Arc<File>,
    act: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = Arc::clone(file);
    let acting = move || {
        let result = act(&file);
        drop(file);
        result
    };
    tokio::task::spawn_blocking(acting).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn close(file: File) -> io::Result<()> {
    let close = move || nix::unistd::close(file).map_err(io::Error::from);
    tokio::task::spawn_blocking(close).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
