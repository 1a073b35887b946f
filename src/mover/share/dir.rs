//! A directory of the share, held by its descriptor. Everything on a share is reached through one of these, one plain
//! name at a time: no path is ever resolved across the share, so no symbolic link and no `..` on it leads anywhere.
//!
//! All calls block, perhaps for ever behind a dead share; the mover makes them on its blocking pool.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::UnlinkatFlags;

use super::error::{ShareError, shown};

type Result<T> = std::result::Result<T, ShareError>;

/// Directories of a repository are for the workers' user alone.
const DIRECTORY_MODE: Mode = Mode::S_IRWXU;
/// Files too.
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// Deepest nesting that a removal follows; ours is 1.
const REMOVE_DEPTH_MAX: u32 = 8;
/// Entries that a removal takes at a time.
const REMOVE_BATCH: usize = 4096;
/// Batches after which a removal gives up: somebody fills the directory as fast as it is emptied.
const REMOVE_BATCHES_MAX: u32 = 1024;

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// It is a directory, as far as the listing says; unknown counts as not.
    pub is_directory: bool,
}

/// The room of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All of it, bytes.
    pub capacity_bytes: u64,
    /// What is taken, bytes.
    pub used_bytes: u64,
    /// What is free for us, bytes; some of the rest may be kept for others.
    pub free_bytes: u64,
}

/// A directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens a directory of the host: the root of a repository. The path is the operator's and may hold symbolic links.
    pub fn open_root(path: &Path) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|errno| ShareError::refused("open directory", shown(path.as_os_str()), errno))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Where it was when it was opened; for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shown(&self, name: &OsStr) -> String {
        shown(self.path.join(name).as_os_str())
    }

    fn open_at(&self, name: &OsStr, flags: OFlag, mode: Mode, expected: &'static str) -> Result<OwnedFd> {
        plain(name)?;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        nix::fcntl::openat2(&self.fd, name, how).map_err(|errno| match errno {
            Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV | Errno::ENXIO | Errno::EISDIR => {
                ShareError::NotWhatItSays { shown: self.shown(name), expected }
            }
            errno => ShareError::refused("open", self.shown(name), errno),
        })
    }

    /// Opens a directory in this one.
    pub fn open_dir(&self, name: impl AsRef<OsStr>) -> Result<Dir> {
        let name = name.as_ref();
        let fd = self.open_at(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty(), "directory")?;
        Ok(Dir { fd, path: self.path.join(name) })
    }

    /// Makes a directory in this one.
    pub fn create_dir(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        plain(name)?;
        nix::sys::stat::mkdirat(&self.fd, name, DIRECTORY_MODE)
            .map_err(|errno| ShareError::refused("make directory", self.shown(name), errno))
    }

    /// Opens a directory in this one, made first where it is missing; one that was made is on stable storage.
    pub fn ensure_dir(&self, name: impl AsRef<OsStr>) -> Result<Dir> {
        match self.create_dir(name.as_ref()) {
            // A file system without such an fsync has been warned of when it was opened.
            Ok(()) => drop(self.sync()?),
            Err(error) if error.is_taken() => {}
            Err(error) => return Err(error),
        }
        self.open_dir(name)
    }

    /// Makes a file, which must not be there, and opens it for writing.
    pub fn create_file(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        self.open_at(name.as_ref(), flags, FILE_MODE, "regular file").map(File::from)
    }

    /// Opens a regular file; one that is a pipe or device is neither opened nor waited for.
    pub fn open_file(&self, name: impl AsRef<OsStr>, write: bool) -> Result<File> {
        self.open_regular(name.as_ref(), if write { OFlag::O_RDWR } else { OFlag::O_RDONLY })
    }

    /// Opens a regular file for reads past this host's cache; none where the file system has no such thing.
    pub fn open_direct(&self, name: impl AsRef<OsStr>) -> Result<Option<File>> {
        match self.open_regular(name.as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECT) {
            Err(ShareError::Refused { errno: Errno::EINVAL, .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_regular(&self, name: &OsStr, access: OFlag) -> Result<File> {
        let fd = self.open_at(name, access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty(), "regular file")?;
        let stat = nix::sys::stat::fstat(&fd).map_err(|errno| ShareError::refused("stat", self.shown(name), errno))?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(ShareError::NotWhatItSays { shown: self.shown(name), expected: "regular file" });
        }
        Ok(File::from(fd))
    }

    /// Reads a whole file of at most `bytes_max` bytes.
    pub fn read(&self, name: impl AsRef<OsStr>, bytes_max: u64) -> Result<Vec<u8>> {
        let name = name.as_ref();
        let mut content = Vec::new();
        self.open_file(name, false)?
            .take(bytes_max.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|error| ShareError::io("read", self.shown(name), &error))?;
        if content.len() as u64 > bytes_max {
            return Err(ShareError::TooMuch { shown: self.shown(name), limit: bytes_max, unit: "bytes" });
        }
        Ok(content)
    }

    /// Makes a file with that content and brings it to stable storage. What fsync and close say is looked at: behind a
    /// network file system they are where a late write error shows.
    pub fn write_new(&self, name: impl AsRef<OsStr>, content: &[u8]) -> Result<()> {
        let file = self.create_file(name.as_ref())?;
        self.fill(file, name, content)
    }

    /// The second half of [`Dir::write_new`]: that content into the new, empty `file` of that name.
    pub(super) fn fill(&self, mut file: File, name: impl AsRef<OsStr>, content: &[u8]) -> Result<()> {
        let name = name.as_ref();
        file.write_all(content).map_err(|error| ShareError::io("write", self.shown(name), &error))?;
        super::sync(&file).map_err(|error| ShareError::io("fsync", self.shown(name), &error))?;
        nix::unistd::close(file).map_err(|errno| ShareError::refused("close", self.shown(name), errno))
    }

    /// The length of a regular file, bytes; none where there is no entry of that name.
    pub fn file_bytes(&self, name: impl AsRef<OsStr>) -> Result<Option<u64>> {
        let name = name.as_ref();
        match self.stat(name)? {
            None => Ok(None),
            Some(stat) if kind(&stat) == SFlag::S_IFREG => Ok(Some(u64::try_from(stat.st_size).unwrap_or(0))),
            Some(_) => Err(ShareError::NotWhatItSays { shown: self.shown(name), expected: "regular file" }),
        }
    }

    /// Status of an entry itself, never of what it points at; none where there is nothing of that name.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<FileStat>> {
        let name = name.as_ref();
        plain(name)?;
        match nix::sys::stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(ShareError::refused("stat", self.shown(name), errno)),
        }
    }

    /// Renames an entry within this directory, onto whatever has the new name.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        plain(from).and(plain(to))?;
        nix::fcntl::renameat(&self.fd, from, &self.fd, to)
            .map_err(|errno| ShareError::refused("rename", self.shown(from), errno))
    }

    /// Renames an entry of this directory into another one, onto whatever has the new name there.
    pub fn rename_into(&self, from: impl AsRef<OsStr>, other: &Dir, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        plain(from).and(plain(to))?;
        nix::fcntl::renameat(&self.fd, from, &other.fd, to)
            .map_err(|errno| ShareError::refused("rename", self.shown(from), errno))
    }

    /// Renames an entry within this directory to a name that must be free. Where the file system cannot do both at
    /// once (NFS, CIFS) the name is looked at first, and a directory that is not empty refuses in any case.
    pub fn rename_new(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        plain(from).and(plain(to))?;
        match nix::fcntl::renameat2(&self.fd, from, &self.fd, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => match self.stat(to)? {
                Some(_) => Err(ShareError::refused("rename onto", self.shown(to), Errno::EEXIST)),
                None => self.rename(from, to),
            },
            Err(errno @ (Errno::EEXIST | Errno::ENOTEMPTY)) => {
                Err(ShareError::refused("rename onto", self.shown(to), errno))
            }
            Err(errno) => Err(ShareError::refused("rename", self.shown(from), errno)),
        }
    }

    /// Gives a file another name within this directory, which must be free: nothing is overwritten, also where the file system cannot rename
    /// so (NFS). There it has both names for a moment, and for good where an error comes between.
    pub fn rename_onto_nothing(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        plain(from).and(plain(to))?;
        match nix::fcntl::renameat2(&self.fd, from, &self.fd, to, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                nix::unistd::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())
                    .map_err(|errno| ShareError::refused("give another name to", self.shown(from), errno))?;
                self.remove_file(from)
            }
            renamed => renamed.map_err(|errno| ShareError::refused("rename", self.shown(from), errno)),
        }
    }

    /// Removes a file or link. Nothing of that name is no error.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        plain(name)?;
        match nix::unistd::unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(ShareError::refused("remove", self.shown(name), errno)),
        }
    }

    /// Removes an empty directory. Nothing of that name is no error.
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        plain(name)?;
        match nix::unistd::unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(ShareError::refused("remove directory", self.shown(name), errno)),
        }
    }

    /// Removes whatever has that name, with what is in it. Links are removed, never followed. Nothing there is no error.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<()> {
        self.remove_below(name.as_ref(), REMOVE_DEPTH_MAX)
    }

    fn remove_below(&self, name: &OsStr, depth_left: u32) -> Result<()> {
        let is_directory = self.stat(name)?.is_some_and(|stat| kind(&stat) == SFlag::S_IFDIR);
        if !is_directory {
            return self.remove_file(name);
        }
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(ShareError::TooMuch {
                shown: self.shown(name),
                limit: REMOVE_DEPTH_MAX.into(),
                unit: "directories within each other",
            });
        };
        let inner = self.open_dir(name)?;
        for _ in 0..REMOVE_BATCHES_MAX {
            let (entries, _) = inner.list_some(REMOVE_BATCH)?;
            for entry in &entries {
                inner.remove_below(&entry.name, depth_left)?;
            }
            if entries.is_empty() {
                match nix::unistd::unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                    // A file came after the last look: a child of a process that was killed a moment ago.
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                    Err(errno) => return Err(ShareError::refused("remove directory", self.shown(name), errno)),
                }
            }
        }
        Err(ShareError::refused("empty directory", self.shown(name), Errno::ENOTEMPTY))
    }

    /// All entries, in no order; more than `entries_max` is an error.
    pub fn list(&self, entries_max: usize) -> Result<Vec<Entry>> {
        match self.list_some(entries_max)? {
            (entries, false) => Ok(entries),
            (_, true) => Err(ShareError::TooMuch {
                shown: shown(self.path.as_os_str()),
                limit: entries_max as u64,
                unit: "entries",
            }),
        }
    }

    /// Entries, in no order, `entries_max` at most, and whether there are more.
    pub(crate) fn list_some(&self, entries_max: usize) -> Result<(Vec<Entry>, bool)> {
        let failed = |errno| ShareError::refused("list", shown(self.path.as_os_str()), errno);
        // A descriptor of its own: the position in the listing belongs to the open file.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut stream = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty()).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in stream.iter() {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == entries_max {
                return Ok((entries, true));
            }
            let is_directory = match entry.file_type() {
                Some(kind) => kind == Type::Directory,
                None => self.stat(name)?.is_some_and(|stat| kind(&stat) == SFlag::S_IFDIR),
            };
            entries.push(Entry { name: name.to_owned(), is_directory });
        }
        Ok((entries, false))
    }

    /// Brings the directory's entries to stable storage. False where the file system has no such thing, which is for the
    /// caller to note.
    pub fn sync(&self) -> Result<bool> {
        match nix::unistd::fsync(&self.fd) {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(ShareError::refused("fsync directory", shown(self.path.as_os_str()), errno)),
        }
    }

    /// Lets others pass through to files whose names they know, or no more. A share without permissions of its own keeps those that
    /// its mount gives to all directories.
    pub fn let_others_pass(&self, pass: bool) -> Result<()> {
        let mode = if pass { DIRECTORY_MODE | Mode::S_IXGRP | Mode::S_IXOTH } else { DIRECTORY_MODE };
        match nix::sys::stat::fchmod(&self.fd, mode) {
            Ok(()) | Err(Errno::EPERM | Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(ShareError::refused("change who passes", shown(self.path.as_os_str()), errno)),
        }
    }

    /// Bytes free for us.
    pub fn free_bytes(&self) -> Result<u64> {
        self.room().map(|room| room.free_bytes)
    }

    /// What room its file system has.
    pub fn room(&self) -> Result<Room> {
        let stat = nix::sys::statvfs::fstatvfs(&self.fd)
            .map_err(|errno| ShareError::refused("ask for the free space of", shown(self.path.as_os_str()), errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok(Room {
            capacity_bytes: bytes(stat.blocks()),
            used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            free_bytes: bytes(stat.blocks_available()),
        })
    }

    /// What kind of file system it is on, in statfs(2)'s numbers, all of which have 32 bits.
    pub fn file_system(&self) -> Result<u32> {
        let stat = nix::sys::statfs::fstatfs(&self.fd)
            .map_err(|errno| ShareError::refused("ask for the kind of", shown(self.path.as_os_str()), errno))?;
        Ok(stat.filesystem_type().0 as u32)
    }

    /// Which directory it is: device and inode.
    pub fn device_and_inode(&self) -> Result<(u64, u64)> {
        let stat = nix::sys::stat::fstat(&self.fd)
            .map_err(|errno| ShareError::refused("stat", shown(self.path.as_os_str()), errno))?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kind of file in a status.
fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn plain(name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    let fits = (1..=255).contains(&bytes.len()) && bytes != b"." && bytes != b"..";
    if fits && !bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        Ok(())
    } else {
        Err(ShareError::NotPlain { shown: shown(name) })
    }
}
