//! Volumes without a disk: what stands at which path, and what a restore makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure, RbdRemains};
use crate::host::mover::{Usage, User};
use crate::model::id::{BackupId, DiskTarget};
use crate::mover::protocol::{BlockDevice, DeviceNumbers, RestoredVolume, VolumePlace};

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FakeVolume {
    /// What was there before any restore.
    Old,
    /// What a restore made of a backup's disk.
    Restored {
        /// The backup.
        backup: BackupId,
        /// The disk.
        disk: DiskTarget,
    },
    /// What a restore made of a backup's record.
    Record {
        /// The backup.
        backup: BackupId,
        /// The record.
        file: String,
    },
}

/// All volumes of a host.
#[derive(Default)]
pub(super) struct Volumes {
    pub standing: BTreeMap<PathBuf, FakeVolume>,
    /// Those that somebody has open.
    pub in_use: BTreeSet<PathBuf>,
    /// By which a file that was made where nothing was is known again.
    pub inodes: BTreeMap<PathBuf, u64>,
    made: u64,
    /// How often another directory has come into the place of one.
    remounts: BTreeMap<PathBuf, u64>,
    /// What there is of block devices, which stand among the volumes as well.
    pub devices: BTreeMap<PathBuf, BlockDevice>,
    /// Those that are used.
    pub used: BTreeMap<u64, User>,
    /// What may use them and cannot be looked at.
    pub unseen: Vec<String>,
}

impl Volumes {
    /// Another file than any before. Its inode.
    pub fn make(&mut self, path: &Path, volume: FakeVolume) -> u64 {
        self.made += 1;
        self.standing.insert(path.to_owned(), volume);
        self.inodes.insert(path.to_owned(), self.made);
        self.made
    }

    /// Those of the images that are there.
    pub fn images_there(&self, images: Vec<RbdRemains>) -> Vec<String> {
        images.into_iter().map(|one| one.image).filter(|image| self.has(Path::new(image))).collect()
    }

    /// The same file under another name.
    pub fn rename(&mut self, from: &Path, to: &Path) {
        if let Some(volume) = self.standing.remove(from) {
            self.standing.insert(to.to_owned(), volume);
        }
        if let Some(inode) = self.inodes.remove(from) {
            self.inodes.insert(to.to_owned(), inode);
        }
    }

    /// The inode of the directory that a path is in.
    pub fn directory_of(&self, path: &Path) -> u64 {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let [first, second, third, ..] = *blake3::hash(parent.as_os_str().as_encoded_bytes()).as_bytes();
        let remounts = self.remounts.get(parent).copied().unwrap_or_default();
        u64::from_be_bytes([0, 0, 0, 0, 1, first, second, third]) + (remounts << 32)
    }

    /// Another directory is in the place of that one from now on, with the same names in it.
    pub fn remount(&mut self, directory: &Path) {
        *self.remounts.entry(directory.to_owned()).or_default() += 1;
    }

    /// The new volumes are made, unless one of the old ones is not as a restore needs it.
    pub fn restore(&mut self, volumes: &[RestoredVolume], backup: BackupId) -> Result<(), Failure> {
        self.can_be_replaced(volumes)?;
        for (volume, ..) in volumes.iter().filter_map(names) {
            self.may_be_replaced(volume)?;
        }
        for (wanted, (_, fresh, _)) in volumes.iter().filter_map(|wanted| Some((wanted, names(wanted)?))) {
            self.standing.insert(fresh.to_owned(), FakeVolume::Restored { backup, disk: wanted.disk.clone() });
        }
        Ok(())
    }

    /// The old volumes are there, and the names of the new ones beside them.
    pub fn can_be_replaced(&self, volumes: &[RestoredVolume]) -> Result<(), Failure> {
        for wanted in volumes.iter().filter(|wanted| names(wanted).is_none()) {
            self.device(wanted.place.volume())?;
        }
        for wanted in volumes {
            let Some((volume, fresh, previous)) = names(wanted) else { continue };
            // An image's pool is no directory.
            let is_whole = |path: &Path| path.is_absolute() || matches!(wanted.place, VolumePlace::Rbd { .. });
            let beside = |path: &Path| is_whole(path) && path.parent() == volume.parent();
            if !beside(volume) || !beside(fresh) || !beside(previous) || self.has(previous) {
                let text = format!("`{}` cannot be restored with those names", volume.display());
                return Err(Failure::new(Code::Internal, text));
            }
            if !self.has(volume) {
                return Err(Failure::new(Code::VolumeIo, format!("there is no `{}`", volume.display())));
            }
        }
        Ok(())
    }

    /// All new volumes take the places of the old ones, wherever an earlier exchange was cut off.
    pub fn exchange(&mut self, volumes: &[RestoredVolume], only_go_on: bool) -> Result<(), Failure> {
        if self.all_in_place(volumes) {
            return Ok(());
        }
        let untouched = |(volume, fresh, previous): (&Path, &Path, &Path)| {
            self.has(volume) && self.has(fresh) && !self.has(previous)
        };
        if volumes.iter().all(|one| names(one).is_none()) {
            return Ok(());
        }
        if only_go_on && volumes.iter().filter_map(names).all(untouched) {
            return Err(Failure::new(Code::Interrupted, "the exchange of the volumes had not begun"));
        }
        for (volume, fresh, previous) in volumes.iter().filter_map(names) {
            match (self.has(volume), self.has(fresh), self.has(previous)) {
                (true, true, false) => self.may_be_replaced(volume)?,
                (false, true, true) | (true, false, true) => {}
                (true, false, false) => {
                    return Err(Failure::new(Code::Internal, format!("there is no `{}`", fresh.display())));
                }
                _ => return Err(Failure::new(Code::VolumeIo, format!("`{}` is not as it was", volume.display()))),
            }
        }
        for (volume, fresh, previous) in volumes.iter().filter_map(names) {
            let Some(new) = self.standing.remove(fresh) else { continue };
            if let Some(old) = self.standing.insert(volume.to_owned(), new) {
                self.standing.insert(previous.to_owned(), old);
            }
        }
        Ok(())
    }

    /// What an exchange left half done is put back first.
    pub fn remove_fresh(&mut self, volumes: &[RestoredVolume]) {
        if self.all_in_place(volumes) {
            return;
        }
        for (volume, fresh, previous) in volumes.iter().filter_map(names) {
            if let Some(old) = self.standing.remove(previous) {
                self.standing.insert(volume.to_owned(), old);
            }
            self.standing.remove(fresh);
        }
    }

    /// Refused where an exchange is not done.
    pub fn remove_previous(&mut self, volumes: &[RestoredVolume]) -> Result<(), Failure> {
        let left: Vec<_> = volumes.iter().filter_map(names).filter(|(.., previous)| self.has(previous)).collect();
        if !left.is_empty() && !self.all_in_place(volumes) {
            return Err(Failure::new(Code::Internal, "the old volumes were to be removed before they were exchanged"));
        }
        volumes.iter().filter_map(names).for_each(|(.., previous)| drop(self.standing.remove(previous)));
        Ok(())
    }

    /// What stands there as a block device.
    pub fn device(&self, path: &Path) -> Result<BlockDevice, Failure> {
        let none = || Failure::new(Code::DiskUnsupported, format!("`{}` is no block device", path.display()));
        self.devices.get(path).cloned().ok_or_else(none)
    }

    /// The host uses none of those that are written over.
    pub fn claim(&self, volumes: &[RestoredVolume]) -> Result<(), Failure> {
        volumes.iter().filter(|one| names(one).is_none()).try_for_each(|one| self.may_be_replaced(one.place.volume()))
    }

    /// They are written over.
    pub fn overwrite(&mut self, volumes: &[RestoredVolume], backup: BackupId) {
        for one in volumes.iter().filter(|one| names(one).is_none()) {
            let restored = FakeVolume::Restored { backup, disk: one.disk.clone() };
            self.standing.insert(one.place.volume().to_owned(), restored);
        }
    }

    /// Who uses one of those devices.
    pub fn usage(&self, devices: &[DeviceNumbers]) -> Usage {
        let user = devices.iter().find_map(|device| Some((*device, self.used.get(&device.device)?.clone())));
        Usage { user, unseen: self.unseen.clone() }
    }

    fn has(&self, path: &Path) -> bool {
        self.standing.contains_key(path)
    }

    /// Also once the removal of the old ones has begun.
    fn all_in_place(&self, volumes: &[RestoredVolume]) -> bool {
        let seen = || volumes.iter().filter_map(names);
        seen().all(|(volume, fresh, _)| self.has(volume) && !self.has(fresh))
            && seen().any(|(_, _, previous)| self.has(previous))
    }

    fn may_be_replaced(&self, volume: &Path) -> Result<(), Failure> {
        match self.in_use.contains(volume) {
            true => Err(Failure::new(Code::InUseElsewhere, format!("somebody has `{}` open", volume.display()))),
            false => Ok(()),
        }
    }
}

/// None for what is written over. A logical volume is one device, whichever of its names the definition has.
fn names(wanted: &RestoredVolume) -> Option<(&Path, &Path, &Path)> {
    let (fresh, previous) = (wanted.place.fresh()?, wanted.place.previous()?);
    Some((wanted.place.volume(), fresh, previous))
}
