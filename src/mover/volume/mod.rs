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
//! ([`put_back`](exchange::put_back)). So the instance never finds some of each. That is the same for every kind of storage; what a
//! name is there, and how one is looked at, moved and removed, is said by a [`Place`] of that kind. Everything here blocks, for as long
//! as the storage does.
//!
//! What is written over has one name, and is [claimed](device) instead.

mod amount;
pub(in crate::mover) mod device;
mod exchange;
mod file;
pub(in crate::mover) mod likeness;
pub(in crate::mover) mod locks;
mod logical;
mod old_image;
mod prepare;
mod rbd;
mod rbd_room;
mod remove;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::path::PathBuf;

pub(super) use amount::Amount;
pub(super) use exchange::{Outcome, exchange};
pub(super) use prepare::{Prepared, Room, Unit, has_room, look_at, prepare};
pub(super) use remove::{remove_fresh, remove_previous};

use super::protocol::{RestoredVolume, VolumePlace};
use super::rbd::Keys;
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;
use state::Seen;

/// One of the three names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Volume,
    Fresh,
    Previous,
}

/// A volume with its three names, on storage of some kind. Failures that lie in the storage are `volume_io`.
trait Place: fmt::Debug {
    /// What has that name, for errors.
    fn shown(&self, name: Name) -> String;

    /// Which of the names are there.
    fn look(&self) -> Result<Seen, Failure>;

    /// Whether nobody has what has that name open; what opens it to read by force is not always seen.
    fn unused(&self, name: Name) -> Result<bool, Failure>;

    /// Keeps everybody from opening the volume for as long as what is returned is held, where the storage can do that. `in_use_elsewhere`:
    /// somebody has it open.
    fn lock(&self) -> Result<Option<File>, Failure>;

    /// Nobody has the old volume open who found it, by whatever is not its name, before it was moved away. Looked at once all new ones are in
    /// place.
    fn left_alone(&self) -> Result<bool, Failure>;

    /// Gives what has one name the other, which must be free. A failure means that it did not happen.
    fn rename(&self, from: Name, to: Name) -> Result<(), Failure>;

    /// Removes what has that name, if it is there.
    fn remove(&self, name: Name) -> Result<(), Failure>;

    /// Makes the names durable.
    fn sync(&self) -> Result<(), Failure>;

    /// The volume is one that can be exchanged for one of that format; `disk_unsupported`.
    fn fits(&self, format: ImageFormat) -> Result<(), Failure>;

    /// What has that name holds nothing that a restored volume of that format does not; `disk_unsupported`.
    fn loses_nothing(&self, name: Name, format: ImageFormat) -> Result<(), Failure>;

    /// What a new volume takes of which storages.
    fn rooms(&self, wanted: &RestoredVolume, data: &Amount) -> Result<Vec<Room>, Failure>;

    /// Everything is there for the new volume to be written.
    fn prepared(self: Box<Self>, wanted: &RestoredVolume) -> Result<Prepared, Failure>;
}

type Places = Vec<Box<dyn Place>>;

/// A volume as it was asked for, before anything is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    File(file::Names),
    Logical(logical::LogicalPlace),
    Rbd(rbd::Names),
}

/// The names of all volumes that have three, which those do not that are written over. `internal`: one is not as its kind has it, or there twice.
fn names(volumes: &[RestoredVolume]) -> Result<Vec<Named>, Failure> {
    let mut taken = BTreeSet::new();
    let mut all = Vec::with_capacity(volumes.len());
    for RestoredVolume { place, .. } in volumes {
        let paths: Vec<_> = [Some(place.volume()), place.fresh(), place.previous()].into_iter().flatten().collect();
        let once = paths.iter().all(|path| taken.insert(path.to_path_buf()));
        let named = match place {
            VolumePlace::File { volume, fresh, previous } => file::Names::of(volume, fresh, previous).map(Named::File),
            VolumePlace::Rbd { access, volume, fresh, previous } => {
                rbd::Names::of(access, volume, fresh, previous).map(Named::Rbd)
            }
            VolumePlace::Logical { group, name, uuid, fresh, previous, .. } => {
                logical::LogicalPlace::of(group, (name, uuid.as_deref()), fresh, previous).map(Named::Logical)
            }
            VolumePlace::Device { .. } if once => continue,
            VolumePlace::Device { .. } => None,
        };
        let text = || {
            let shown: Vec<_> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
            format!("{} are not whole names beside each other, each there once", shown.join(", "))
        };
        all.push(named.filter(|_| once).ok_or_else(|| Failure::new(Code::Internal, text()))?);
    }
    Ok(all)
}

/// Those that have three names.
fn exchanged(volumes: &[RestoredVolume]) -> impl Iterator<Item = &RestoredVolume> {
    volumes.iter().filter(|volume| volume.place.fresh().is_some())
}

/// Opens what the names are in, with the keys that it takes.
fn open(names: Vec<Named>, keys: &Keys) -> Result<Places, Failure> {
    let mut directories: BTreeMap<PathBuf, _> = BTreeMap::new();
    let open = |named| -> Result<Box<dyn Place>, Failure> {
        match named {
            Named::File(names) => Ok(Box::new(names.open(&mut directories)?)),
            Named::Logical(place) => Ok(Box::new(place)),
            Named::Rbd(names) => Ok(Box::new(names.open(keys)?)),
        }
    };
    names.into_iter().map(open).collect()
}

fn look_at_all(places: &[Box<dyn Place>]) -> Result<Vec<Seen>, Failure> {
    places.iter().map(|place| place.look()).collect()
}

/// Brings all names to stable storage, where there is such a thing.
fn sync(places: &[Box<dyn Place>]) -> Result<(), Failure> {
    places.iter().try_for_each(|place| place.sync())
}

/// The failure where somebody else has the volume open.
fn in_use(place: &dyn Place) -> Failure {
    let text = format!("another process or host has `{}` open", place.shown(Name::Volume));
    Failure::new(Code::InUseElsewhere, text)
}

#[cfg(test)]
mod tests;
