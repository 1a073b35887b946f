//! The volumes of an instance on their primary storage, and how those that a restore has made take their places.
//!
//! Three names beside each other are all the state that there is, so that another mover can go on where one was cut off:
//!
//! ```text
//!   volume   fresh   previous
//!     old     new       -       untouched
//!      -      new      old      moved away: nobody can start the instance
//!     new      -       old      in place
//! ```
//!
//! All volumes are moved away before the first new one takes its place ([`exchange()`]), and the other way round on the way back
//! ([`put_back`](exchange::put_back)). So the instance never finds some of each. Everything here blocks, for as long as the storage does.

mod exchange;
pub(in crate::mover) mod likeness;
pub(in crate::mover) mod locks;
mod old_image;
mod prepare;
mod remove;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use exchange::{Outcome, exchange};
pub(super) use prepare::{Prepared, has_room, prepare};
pub(super) use remove::{remove_fresh, remove_previous};

use super::protocol::RestoredVolume;
use super::share::Dir;
use crate::failure::{Code, Failure};
use state::Seen;

/// A volume's directory, and its three names there.
#[derive(Debug)]
struct Place {
    dir: Arc<Dir>,
    volume: OsString,
    fresh: OsString,
    previous: OsString,
}

/// A volume as it was asked for, before anything is looked at.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    directory: PathBuf,
    volume: OsString,
    fresh: OsString,
    previous: OsString,
}

/// The names of all volumes. `internal`: one is not absolute, not beside its volume, or there twice.
fn names(volumes: &[RestoredVolume]) -> Result<Vec<Names>, Failure> {
    let mut taken = BTreeSet::new();
    let mut all = Vec::with_capacity(volumes.len());
    for RestoredVolume { volume, fresh, previous, .. } in volumes {
        let directory = volume.parent().filter(|_| volume.is_absolute());
        let mut name = |path: &Path| -> Option<OsString> {
            let name = path.file_name().filter(|_| path.parent() == directory && taken.insert(path.to_owned()))?;
            Some(name.to_owned())
        };
        let named = (|| {
            Some(Names {
                directory: directory?.to_owned(),
                volume: name(volume)?,
                fresh: name(fresh)?,
                previous: name(previous)?,
            })
        })();
        let text = || {
            let [volume, fresh, previous] = [volume, fresh, previous].map(|path| path.display());
            format!("`{volume}`, `{fresh}` and `{previous}` are not three absolute names beside each other")
        };
        all.push(named.ok_or_else(|| Failure::new(Code::Internal, text()))?);
    }
    Ok(all)
}

/// Opens the directories.
fn open(names: Vec<Names>) -> Result<Vec<Place>, Failure> {
    let mut opened: BTreeMap<PathBuf, Arc<Dir>> = BTreeMap::new();
    let mut places = Vec::with_capacity(names.len());
    for Names { directory, volume, fresh, previous } in names {
        let dir = match opened.get(&directory) {
            Some(dir) => Arc::clone(dir),
            None => Arc::new(Dir::open_root(&directory).map_err(|error| error.failure(Code::VolumeIo))?),
        };
        opened.insert(directory, Arc::clone(&dir));
        places.push(Place { dir, volume, fresh, previous });
    }
    Ok(places)
}

impl Place {
    fn look(&self) -> Result<Seen, Failure> {
        let there = |name: &OsStr| match self.dir.stat(name) {
            Ok(found) => Ok(found.is_some()),
            Err(error) => Err(error.failure(Code::VolumeIo)),
        };
        Ok(Seen { volume: there(&self.volume)?, fresh: there(&self.fresh)?, previous: there(&self.previous)? })
    }

    /// Gives what has one name the other, which must be free. An error says nothing about whether it happened: then both
    /// names are looked at.
    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Failure> {
        let Err(error) = self.dir.rename_new(from, to) else { return Ok(()) };
        match (self.dir.stat(from), self.dir.stat(to)) {
            (Ok(None), Ok(Some(_))) => Ok(()),
            _ => Err(error.failure(Code::VolumeIo)),
        }
    }

    fn remove(&self, name: &OsStr) -> Result<(), Failure> {
        self.dir.remove_file(name).map_err(|error| error.failure(Code::VolumeIo))
    }

    /// The volume's path, for errors.
    fn shown(&self) -> String {
        self.dir.path().join(&self.volume).display().to_string()
    }
}

fn look_at_all(places: &[Place]) -> Result<Vec<Seen>, Failure> {
    places.iter().map(Place::look).collect()
}

/// Brings all names to stable storage, where the file system has such a thing.
fn sync(places: &[Place]) -> Result<(), Failure> {
    let dirs: BTreeMap<_, _> = places.iter().map(|place| (place.dir.path(), &place.dir)).collect();
    for dir in dirs.values() {
        dir.sync().map_err(|error| error.failure(Code::VolumeIo))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
