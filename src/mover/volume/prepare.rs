//! What a restore needs of the places where volumes are, before a byte of it is written: the old ones are there and nobody uses
//! them, the names of the new ones are free, and there is room.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use super::device::{Use, claim};
use super::{Amount, Name, Place, exchanged, in_use, names, open};
use crate::failure::{Code, Failure};
use crate::mover::protocol::{RestoredVolume, VolumePlace};
use crate::mover::rbd::{Image, Keys, Settings};
use crate::mover::share::Dir;

/// Room that is left to others, and taken by what an image has besides its data, for each volume, bytes.
const MARGIN_BYTES: u64 = 16 * 1024 * 1024;
/// And as a part of the data.
const MARGIN_PART: u64 = 100;

/// A place where a new volume can be written.
#[derive(Debug)]
pub(in crate::mover) enum Prepared {
    /// Into a file that is not there yet.
    File {
        /// Its directory.
        dir: Arc<Dir>,
        /// The new one's name there, which is free.
        fresh: OsString,
        /// The old one.
        old: File,
    },
    /// Into an RBD image.
    Rbd {
        /// It is there and empty.
        image: Image,
        /// What it is to be given besides.
        settings: Settings,
        /// Where it can't be given that.
        warning: Option<String>,
    },
    /// Into a new block device, which is open for us alone.
    Device {
        /// The device.
        file: File,
        /// It reads as zeros; else it holds anything.
        blank: bool,
        /// What it has not of the old one's, in a sentence each.
        warnings: Vec<String>,
    },
    /// Not yet: an old one is written over.
    Overwritten,
}

/// What a new volume takes of one storage.
#[derive(Debug)]
pub(in crate::mover) struct Room {
    /// Which storage: several volumes may share one.
    pub storage: String,
    /// What it is called, for errors.
    pub shown: String,
    /// What it has free, in `unit`.
    pub free: u64,
    /// What the volume takes, likewise.
    pub needed: u64,
    /// Of what it has room.
    pub unit: Unit,
}

/// Of what a storage has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum Unit {
    Bytes,
    /// Of a pool of Ceph's.
    Objects,
}

impl Room {
    /// Of a directory's file system.
    pub fn of_files(dir: &Dir, data_bytes: u64) -> Result<Self, Failure> {
        let io = |error: crate::mover::share::ShareError| error.failure(Code::VolumeIo);
        let (device, _) = dir.device_and_inode().map_err(io)?;
        Ok(Self {
            storage: format!("file system {device}"),
            shown: dir.path().display().to_string(),
            free: dir.free_bytes().map_err(io)?,
            needed: Self::with_margin(data_bytes),
            unit: Unit::Bytes,
        })
    }

    /// What so many bytes of data take.
    pub fn with_margin(data_bytes: u64) -> u64 {
        data_bytes.saturating_add(data_bytes / MARGIN_PART).saturating_add(MARGIN_BYTES)
    }
}

/// Looks at all places; what an earlier try has left at the names of the new volumes is removed. `data` is that of each
/// volume.
///
/// `in_use_elsewhere`: somebody has an old volume open. `volume_full`: there is no room. `disk_unsupported`: what stands there can't be
/// exchanged or, unless it is kept, holds what no backup does. `internal`: an earlier exchange of the same names is not over and
/// done with.
pub(in crate::mover) fn prepare(
    volumes: &[RestoredVolume],
    data: &[Amount],
    keep_previous: bool,
    keys: &Keys,
) -> Result<Vec<Prepared>, Failure> {
    let places = open(names(volumes)?, keys)?;
    can_be_replaced(&places, volumes, keep_previous)?;
    volumes.iter().filter_map(claimed).try_for_each(|claimed| claimed.map(drop))?;
    for place in &places {
        if !place.unused(Name::Volume)? {
            return Err(in_use(place.as_ref()));
        }
    }
    for place in &places {
        place.remove(Name::Fresh)?;
    }
    have_room(&places, volumes, data)?;
    let mut places = places.into_iter();
    let prepared = |wanted: &RestoredVolume| match wanted.place {
        VolumePlace::Device { .. } => Some(Ok(Prepared::Overwritten)),
        VolumePlace::File { .. } | VolumePlace::Logical { .. } | VolumePlace::Rbd { .. } => {
            Some(places.next()?.prepared(wanted))
        }
    };
    volumes.iter().filter_map(prepared).collect()
}

/// The same, with nothing changed and no lock taken, which an instance that is started meanwhile would find: who uses a volume it does not
/// say, nor anything of one that is on a cluster. Only what the host itself does with a block device, it answers, in a sentence each: that
/// is seen by claiming it for a moment, which no instance minds.
pub(in crate::mover) fn look_at(
    volumes: &[RestoredVolume],
    data: &[Amount],
    keep_previous: bool,
) -> Result<Vec<String>, Failure> {
    // A cluster is not asked: that needs a key, which nobody is given who only plans.
    let here = volumes.iter().zip(data).filter(|(volume, _)| !matches!(volume.place, VolumePlace::Rbd { .. }));
    let (volumes, data): (Vec<_>, Vec<_>) = here.map(|(volume, data)| (volume.clone(), data.clone())).unzip();
    let places = open(names(&volumes)?, &Keys::default())?;
    can_be_replaced(&places, &volumes, keep_previous)?;
    have_room(&places, &volumes, &data)?;
    let mut used = Vec::new();
    for claimed in volumes.iter().filter_map(claimed) {
        match claimed {
            Err(failure) if failure.code == Code::InUseElsewhere => used.push(failure.text),
            claimed => drop(claimed?),
        }
    }
    Ok(used)
}

/// One that is written over, as long as that is held.
fn claimed(wanted: &RestoredVolume) -> Option<Result<File, Failure>> {
    let VolumePlace::Device { volume, numbers } = &wanted.place else { return None };
    Some(claim(volume, numbers, wanted.virtual_bytes, Use::Look))
}

fn can_be_replaced(places: &[Box<dyn Place>], volumes: &[RestoredVolume], keep_previous: bool) -> Result<(), Failure> {
    for (place, RestoredVolume { format, .. }) in places.iter().zip(exchanged(volumes)) {
        let (seen, shown) = (place.look()?, place.shown(Name::Volume));
        if seen.previous {
            return Err(Failure::new(Code::Internal, format!("`{shown}` was exchanged already")));
        }
        if !seen.volume {
            return Err(Failure::new(Code::VolumeIo, format!("there is no volume `{shown}`")));
        }
        place.fits(*format)?;
        if !keep_previous {
            place.loses_nothing(Name::Volume, *format)?;
        }
    }
    Ok(())
}

fn have_room(places: &[Box<dyn Place>], volumes: &[RestoredVolume], data: &[Amount]) -> Result<(), Failure> {
    let wanted = volumes.iter().zip(data).filter(|(volume, _)| volume.place.fresh().is_some());
    let rooms = places.iter().zip(wanted).map(|(place, (wanted, data))| place.rooms(wanted, data));
    has_room(rooms.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().map(Ok))
}

/// All of them fit together, as several may share one storage. `volume_full`: they don't.
pub(in crate::mover) fn has_room(rooms: impl Iterator<Item = Result<Room, Failure>>) -> Result<(), Failure> {
    let mut all: BTreeMap<String, Room> = BTreeMap::new();
    for room in rooms {
        let room = room?;
        match all.get_mut(&room.storage) {
            Some(shared) => shared.needed = shared.needed.saturating_add(room.needed),
            None => drop(all.insert(room.storage.clone(), room)),
        }
    }
    match all.values().find(|room| room.free < room.needed) {
        None => Ok(()),
        Some(Room { shown, free, needed, unit, .. }) => {
            let unit = if *unit == Unit::Bytes { "bytes" } else { "objects" };
            let text = format!("`{shown}` has {free} {unit} free where the new volumes need {needed}");
            Err(Failure::new(Code::VolumeFull, text))
        }
    }
}
