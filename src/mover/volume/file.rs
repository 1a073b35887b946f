//! Volumes that are files: the three names are in one directory, and QEMU's own locks keep others from them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::SFlag;

use super::old_image::only_here;
use super::state::Seen;
use super::{Amount, Name, Place, Prepared, Room, in_use, locks};
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;
use crate::mover::protocol::RestoredVolume;
use crate::mover::share::{Dir, ShareError};

/// The names as they were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    directory: PathBuf,
    volume: OsString,
    fresh: OsString,
    previous: OsString,
}

impl Names {
    /// None where they are not absolute, and beside each other.
    pub fn of(volume: &Path, fresh: &Path, previous: &Path) -> Option<Self> {
        let directory = volume.parent().filter(|_| volume.is_absolute());
        let name = |path: &Path| path.file_name().filter(|_| path.parent() == directory).map(OsStr::to_owned);
        Some(Self {
            directory: directory?.to_owned(),
            volume: name(volume)?,
            fresh: name(fresh)?,
            previous: name(previous)?,
        })
    }

    /// Opens the directory, once for all that are in it.
    pub fn open(self, opened: &mut BTreeMap<PathBuf, Arc<Dir>>) -> Result<FilePlace, Failure> {
        let Self { directory, volume, fresh, previous } = self;
        let dir = match opened.get(&directory) {
            Some(dir) => Arc::clone(dir),
            None => Arc::new(Dir::open_root(&directory).map_err(io)?),
        };
        opened.insert(directory, Arc::clone(&dir));
        Ok(FilePlace { dir, volume, fresh, previous })
    }
}

/// A volume's directory, and its three names there.
#[derive(Debug)]
pub(super) struct FilePlace {
    dir: Arc<Dir>,
    volume: OsString,
    fresh: OsString,
    previous: OsString,
}

impl FilePlace {
    fn name(&self, name: Name) -> &OsStr {
        match name {
            Name::Volume => &self.volume,
            Name::Fresh => &self.fresh,
            Name::Previous => &self.previous,
        }
    }

    fn file(&self, name: Name) -> Result<File, Failure> {
        self.dir.open_file(self.name(name), false).map_err(io)
    }
}

impl Place for FilePlace {
    fn shown(&self, name: Name) -> String {
        self.dir.path().join(self.name(name)).display().to_string()
    }

    fn look(&self) -> Result<Seen, Failure> {
        let there = |name| self.dir.stat(self.name(name)).map(|found| found.is_some()).map_err(io);
        Ok(Seen { volume: there(Name::Volume)?, fresh: there(Name::Fresh)?, previous: there(Name::Previous)? })
    }

    fn unused(&self, name: Name) -> Result<bool, Failure> {
        let in_use = locks::is_in_use(&self.file(name)?).map_err(|error| {
            Failure::new(Code::VolumeIo, format!("cannot look for locks on `{}`", self.shown(name))).because(&error)
        })?;
        Ok(!in_use)
    }

    /// Locks the file against everybody else who opens it as QEMU does.
    fn lock(&self) -> Result<Option<File>, Failure> {
        let shown = self.shown(Name::Volume);
        let failed =
            |error: std::io::Error| Failure::new(Code::VolumeIo, format!("cannot lock `{shown}`")).because(&error);
        let file = self.file(Name::Volume)?;
        if !locks::hold(&file).map_err(failed)? {
            return Err(in_use(self));
        }
        let locked = file.metadata().map_err(failed)?;
        let found = self.dir.stat(&self.volume).map_err(io)?;
        match found.is_some_and(|found| (found.st_dev, found.st_ino) == (locked.dev(), locked.ino())) {
            true => Ok(Some(file)),
            false => Err(Failure::new(Code::VolumeIo, format!("`{shown}` was replaced while it was locked"))),
        }
    }

    /// It is found by its name alone, and locked while it has none of its own.
    fn left_alone(&self) -> Result<bool, Failure> {
        Ok(true)
    }

    /// An error of the call says nothing about whether it happened: then both names are looked at.
    fn rename(&self, from: Name, to: Name) -> Result<(), Failure> {
        let (from, to) = (self.name(from), self.name(to));
        let Err(error) = self.dir.rename_new(from, to) else { return Ok(()) };
        match (self.dir.stat(from), self.dir.stat(to)) {
            (Ok(None), Ok(Some(_))) => Ok(()),
            _ => Err(io(error)),
        }
    }

    fn remove(&self, name: Name) -> Result<(), Failure> {
        self.dir.remove_file(self.name(name)).map_err(io)
    }

    fn sync(&self) -> Result<(), Failure> {
        self.dir.sync().map(drop).map_err(io)
    }

    fn fits(&self, _format: ImageFormat) -> Result<(), Failure> {
        let status = self.dir.stat(&self.volume).map_err(io)?;
        let kind = status.map(|status| SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()));
        match kind {
            Some(SFlag::S_IFREG) => Ok(()),
            _ => {
                let text = format!("`{}` is no regular file", self.shown(Name::Volume));
                Err(Failure::new(Code::DiskUnsupported, text))
            }
        }
    }

    fn loses_nothing(&self, name: Name, format: ImageFormat) -> Result<(), Failure> {
        let only_here = match format {
            ImageFormat::Qcow2 => only_here(&self.file(name)?),
            ImageFormat::Raw => Ok(None),
        };
        let only_here = only_here.map_err(|error| {
            Failure::new(Code::VolumeIo, format!("cannot read the header of `{}`", self.shown(name))).because(&error)
        })?;
        match only_here {
            None => Ok(()),
            Some(what) => {
                let text = format!("`{}` holds {what}, which no backup does", self.shown(Name::Volume));
                Err(Failure::new(Code::DiskUnsupported, text)
                    .caused_by("`keep_previous` (`--keep-previous`) would leave it beside the new one"))
            }
        }
    }

    fn rooms(&self, _wanted: &RestoredVolume, data: &Amount) -> Result<Vec<Room>, Failure> {
        Room::of_files(&self.dir, data.bytes).map(|room| vec![room])
    }

    fn prepared(self: Box<Self>, _wanted: &RestoredVolume) -> Result<Prepared, Failure> {
        let old = self.file(Name::Volume)?;
        Ok(Prepared::File { dir: self.dir, fresh: self.fresh, old })
    }
}

fn io(error: ShareError) -> Failure {
    error.failure(Code::VolumeIo)
}
