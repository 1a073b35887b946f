//! What a new backup is based on, from what the repository has of its instance. Pure.
//!
//! The latest backup of the instance in the same repository is the one that any other is based on: each has at most one that is, so
//! that a chain is a line. Whether a disk of it can really be stood on, its mover finds out by looking at the images; what is decided
//! here is what the manifests can tell. Where a disk can't be, all of it is stored, and the manifest says why.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::{BackupPlan, PlannedDisk};
use super::tracking;
use crate::model::id::{DiskTarget, RepositoryId};
use crate::model::job::BackupMode;
use crate::model::manifest::{CHAIN_IMAGES_MAX, Manifest, ManifestDisk, Proof, TransferUsed};
use crate::mover::protocol::BaseDisk;

/// What QEMU counts disks in, bytes.
const SECTOR_BYTES: u64 = 512;

/// What each disk of the backup is based on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// By target; one that is not here stands alone, and nobody asks why.
    pub disks: BTreeMap<DiskTarget, Base>,
    /// For disks that are based on something, the checkpoint that was made in its moment, if one was.
    pub since: BTreeMap<DiskTarget, String>,
    /// All checkpoints of the latest backup, by name, with their disks.
    pub checkpoints: BTreeMap<String, Vec<DiskTarget>>,
    /// The moment that the latest backup shows.
    pub moment: Option<Timestamp>,
}

/// What a disk is based on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// On what an earlier backup holds of it.
    On(BaseDisk),
    /// On nothing, and why.
    Full(String),
}

impl Basis {
    /// What the disk is based on, if on anything.
    pub fn base(&self, target: &DiskTarget) -> Option<&BaseDisk> {
        match self.disks.get(target)? {
            Base::On(base) => Some(base),
            Base::Full(_) => None,
        }
    }

    /// Why it is based on nothing.
    pub fn full_reason(&self, target: &DiskTarget) -> Option<&str> {
        match self.disks.get(target)? {
            Base::On(_) => None,
            Base::Full(reason) => Some(reason),
        }
    }
}

/// Decides. `backups` is the latest of the instance's in `repository`, after all that it needs; `unreadable`, how many can't be read.
pub fn choose(plan: &BackupPlan, repository: RepositoryId, backups: &[Manifest], unreadable: u64) -> Basis {
    let mut basis = Basis { moment: backups.last().map(|latest| latest.taken_at), ..Basis::default() };
    for (target, name) in backups.last().into_iter().flat_map(|latest| checkpoints(latest, repository)) {
        basis.checkpoints.entry(name.to_owned()).or_default().push(target.clone());
    }
    if plan.mode == BackupMode::Full {
        return basis;
    }
    for disk in &plan.disks {
        let base = match on(plan, disk, backups, unreadable) {
            Ok((latest, found)) => {
                basis.since.extend(since(disk, latest, found, repository).map(|name| (disk.target.clone(), name)));
                let (virtual_bytes, content_root) = (found.virtual_bytes, found.content_root.clone());
                Base::On(BaseDisk { backup: latest.backup_id, virtual_bytes, content_root })
            }
            Err(reason) => Base::Full(reason),
        };
        basis.disks.insert(disk.target.clone(), base);
    }
    basis
}

/// The checkpoints that a backup's manifest names, disk by disk; only what may be one of its own.
fn checkpoints(backup: &Manifest, repository: RepositoryId) -> impl Iterator<Item = (&DiskTarget, &str)> {
    let named = backup.disks.iter().filter_map(|disk| Some((&disk.target, disk.checkpoint.as_deref()?)));
    named.filter(move |(_, name)| tracking::is_of(name, repository, backup.backup_id))
}

/// The checkpoint since which a disk's bitmap says what was written to it, if that can be believed. All disks of a checkpoint have bitmaps
/// of one name: behind a target whose source is another now is another disk's bitmap. And what is only left out because a bitmap
/// calls it clean has to have been compared when it was stored.
fn since(disk: &PlannedDisk, latest: &Manifest, found: &ManifestDisk, repository: RepositoryId) -> Option<String> {
    let name = found.checkpoint.as_deref()?;
    let believed = latest.verification == Proof::Compared
        && found.source == disk.source
        && tracking::is_of(name, repository, latest.backup_id);
    believed.then(|| name.to_owned())
}

/// What the disk is based on; or why on nothing.
fn on<'b>(
    plan: &BackupPlan,
    disk: &PlannedDisk,
    backups: &'b [Manifest],
    unreadable: u64,
) -> Result<(&'b Manifest, &'b ManifestDisk), String> {
    if plan.transfer() == TransferUsed::Push {
        return Err("QEMU writes all of a disk in a push".to_owned());
    }
    let Some(latest) = backups.last() else {
        return Err(match unreadable {
            0 => "it is the first backup of the instance in this repository".to_owned(),
            _ => format!("none of the {unreadable} earlier backups of the instance can be read"),
        });
    };
    let backup = latest.backup_id;
    if latest.verification == Proof::Unverified {
        return Err(format!("the latest backup `{backup}` was not verified"));
    }
    let found = latest.disks.iter().find(|known| known.target == disk.target);
    let Some(found) = found.filter(|known| known.serial == disk.serial) else {
        return Err(format!("the latest backup `{backup}` has no such disk"));
    };
    // QEMU's tools round a raw file up to sectors.
    let bytes = disk.virtual_bytes.and_then(|bytes| bytes.checked_next_multiple_of(SECTOR_BYTES));
    if bytes.is_some_and(|bytes| bytes < found.virtual_bytes) {
        return Err(format!("the disk became smaller since the latest backup `{backup}`"));
    }
    let images =
        images(found, backups).ok_or_else(|| format!("the chain of the latest backup `{backup}` is broken"))?;
    let full_every = usize::try_from(plan.full_every.0).unwrap_or(CHAIN_IMAGES_MAX);
    let most = match plan.mode {
        BackupMode::Auto => full_every.min(CHAIN_IMAGES_MAX),
        BackupMode::Full | BackupMode::Incremental => CHAIN_IMAGES_MAX,
    };
    if images >= most {
        return Err(format!("the chain of the latest backup `{backup}` has {images} images, and may have {most}"));
    }
    Ok((latest, found))
}

/// How many images the chain of a disk has; none where a backup of it is not there.
fn images(disk: &ManifestDisk, backups: &[Manifest]) -> Option<usize> {
    let (mut disk, mut images) = (disk, 1);
    while let Some(based_on) = &disk.based_on {
        let parent = backups.iter().find(|backup| backup.backup_id == based_on.backup_id)?;
        disk = parent.disks.iter().find(|below| below.target == disk.target)?;
        images += 1;
        if images > CHAIN_IMAGES_MAX {
            break;
        }
    }
    Some(images)
}
