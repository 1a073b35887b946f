//! What a restore needs of the places where volumes are, before a byte of it is written: the old ones are there and nobody uses
//! them, the names of the new ones are free, and there is room.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use nix::sys::stat::SFlag;

use super::old_image::only_here;
use super::{Place, names, open};
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;
use crate::mover::protocol::RestoredVolume;
use crate::mover::share::Dir;

/// Room that is left to others, and taken by what an image has besides its data, for each volume, bytes.
const MARGIN_BYTES: u64 = 16 * 1024 * 1024;
/// And as a part of the data.
const MARGIN_PART: u64 = 100;

/// A place where a new volume can be made.
#[derive(Debug)]
pub(in crate::mover) struct Prepared {
    /// Its directory.
    pub dir: Arc<Dir>,
    /// The new one's name there, which is free.
    pub fresh: OsString,
    /// The old one.
    pub old: File,
}

/// Looks at all places; what an earlier try has left at the names of the new volumes is removed. `data_bytes` are those of each
/// volume.
///
/// `in_use_elsewhere`: somebody has an old volume open. `volume_full`: there is no room. `disk_unsupported`: what stands there is
/// no regular file or, unless it is kept, holds what no backup does. `internal`: an earlier exchange of the same names is not over and
/// done with.
pub(in crate::mover) fn prepare(
    volumes: &[RestoredVolume],
    data_bytes: &[u64],
    keep_previous: bool,
) -> Result<Vec<Prepared>, Failure> {
    let places = open(names(volumes)?)?;
    let olds = places.iter().map(Place::old).collect::<Result<Vec<_>, _>>()?;
    if !keep_previous {
        for ((place, old), wanted) in places.iter().zip(&olds).zip(volumes) {
            place.loses_nothing(old, wanted.format)?;
        }
    }
    for place in &places {
        place.remove(&place.fresh)?;
    }
    has_room(places.iter().map(|place| place.dir.as_ref()).zip(data_bytes.iter().copied()))?;
    let prepared = places.into_iter().zip(olds);
    Ok(prepared.map(|(place, old)| Prepared { dir: place.dir, fresh: place.fresh, old }).collect())
}

impl Place {
    /// What a restore would take away for good.
    pub(super) fn loses_nothing(&self, old: &File, format: ImageFormat) -> Result<(), Failure> {
        let only_here = match format {
            ImageFormat::Qcow2 => only_here(old),
            ImageFormat::Raw => Ok(None),
        };
        let only_here = only_here.map_err(|error| {
            Failure::new(Code::VolumeIo, format!("cannot read the header of `{}`", self.shown())).because(&error)
        })?;
        match only_here {
            None => Ok(()),
            Some(what) => {
                let text = format!("`{}` holds {what}, which no backup does", self.shown());
                Err(Failure::new(Code::DiskUnsupported, text)
                    .caused_by("`keep_previous` would leave it beside the new one"))
            }
        }
    }

    fn old(&self) -> Result<File, Failure> {
        let io = |error: crate::mover::share::ShareError| error.failure(Code::VolumeIo);
        if self.dir.stat(&self.previous).map_err(io)?.is_some() {
            let text = format!("`{}` was exchanged already", self.shown());
            return Err(Failure::new(Code::Internal, text));
        }
        let status = self.dir.stat(&self.volume).map_err(io)?;
        let Some(status) = status else {
            return Err(Failure::new(Code::VolumeIo, format!("there is no volume `{}`", self.shown())));
        };
        if SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(Failure::new(Code::DiskUnsupported, format!("`{}` is no regular file", self.shown())));
        }
        self.unused(&self.volume)?.ok_or_else(|| self.in_use())
    }
}

/// The directories take so many bytes of data each: by file system, as several may share one. `volume_full`: there is no room.
pub(in crate::mover) fn has_room<'d>(wanted: impl Iterator<Item = (&'d Dir, u64)>) -> Result<(), Failure> {
    let io = |error: crate::mover::share::ShareError| error.failure(Code::VolumeIo);
    let mut needed: BTreeMap<u64, (&Dir, u64)> = BTreeMap::new();
    for (dir, data) in wanted {
        let (device, _) = dir.device_and_inode().map_err(io)?;
        let (_, bytes) = needed.entry(device).or_insert((dir, 0));
        *bytes = bytes.saturating_add(data).saturating_add(data / MARGIN_PART).saturating_add(MARGIN_BYTES);
    }
    for (dir, bytes) in needed.values() {
        let free = dir.free_bytes().map_err(io)?;
        if free < *bytes {
            let shown = dir.path().display();
            let text = format!("`{shown}` has {free} bytes free where the new volumes need {bytes}");
            return Err(Failure::new(Code::VolumeFull, text));
        }
    }
    Ok(())
}
