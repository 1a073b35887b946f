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
use crate::model::id::DiskTarget;
use crate::model::job::BackupMode;
use crate::model::manifest::{CHAIN_IMAGES_MAX, Manifest, ManifestDisk, Proof, TransferUsed};
use crate::mover::protocol::BaseDisk;

/// What each disk of the backup is based on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// By target; one that is not here stands alone, and nobody asks why.
    pub disks: BTreeMap<DiskTarget, Base>,
    /// For disks that are based on something, the checkpoint that was made in its moment, if one was.
    pub since: BTreeMap<DiskTarget, String>,
    /// That moment; none where nothing is based on anything.
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

/// Decides. `backups` are all of the instance's that can be read, in the order of their numbers.
pub fn choose(plan: &BackupPlan, backups: &[Manifest]) -> Basis {
    if plan.mode == BackupMode::Full {
        return Basis::default();
    }
    let mut basis = Basis::default();
    for disk in &plan.disks {
        let base = match on(plan, disk, backups) {
            Ok((base, checkpoint)) => {
                basis.since.extend(checkpoint.map(|checkpoint| (disk.target.clone(), checkpoint)));
                basis.moment = backups.last().map(|latest| latest.taken_at);
                Base::On(base)
            }
            Err(reason) => Base::Full(reason),
        };
        basis.disks.insert(disk.target.clone(), base);
    }
    basis
}

/// What the disk is based on, with the checkpoint of that moment; or why on nothing.
fn on(plan: &BackupPlan, disk: &PlannedDisk, backups: &[Manifest]) -> Result<(BaseDisk, Option<String>), String> {
    if plan.transfer() == TransferUsed::Push {
        return Err("QEMU writes all of a disk in a push".to_owned());
    }
    let Some(latest) = backups.last() else {
        return Err("it is the first backup of the instance in this repository".to_owned());
    };
    let backup = latest.backup_id;
    if latest.verification == Proof::Unverified {
        return Err(format!("the latest backup `{backup}` was not verified"));
    }
    let found = latest.disks.iter().find(|known| known.target == disk.target);
    let Some(found) = found.filter(|known| known.serial == disk.serial) else {
        return Err(format!("the latest backup `{backup}` has no such disk"));
    };
    if disk.virtual_bytes.is_some_and(|bytes| bytes < found.virtual_bytes) {
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
    let base = BaseDisk { backup, virtual_bytes: found.virtual_bytes, content_root: found.content_root.clone() };
    Ok((base, found.checkpoint.clone()))
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
