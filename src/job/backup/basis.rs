//! What a new backup is based on, from what the repository has of its instance. Pure.
//!
//! The latest backup of the instance in the same repository is the one that any other is based on: each has at most one that is, so
//! that a chain is a line. Whether a disk of it can really be stood on, its mover finds out by looking at the images; what is decided
//! here is what the manifests can tell. Where a disk can't be, all of it is stored, and the manifest says why.
//!
//! What was written since, a bitmap of the hypervisor may tell: that of the checkpoint which the latest backup has made or, where that has made
//! none, one that it stands on. A stopped instance gets no checkpoint, so that the backups after one that was made of it go by an older one's.
//! What such a bitmap calls clean is what it was then, and no more is said; who reads by it holds the hashes of then against the latest ones.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::{BackupPlan, PlannedDisk};
use super::tracking;
use crate::model::id::{BackupId, DiskTarget, RepositoryId};
use crate::model::job::BackupMode;
use crate::model::manifest::{CHAIN_IMAGES_MAX, Manifest, ManifestDisk, Proof};
use crate::mover::protocol::BaseDisk;

/// What QEMU counts disks in, bytes.
const SECTOR_BYTES: u64 = 512;

/// What each disk of the backup is based on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// By target; one that is not here stands alone, and nobody asks why.
    pub disks: BTreeMap<DiskTarget, Base>,
    /// For disks that are based on something, since when it can be told what was written to them, if it can.
    pub since: BTreeMap<DiskTarget, Since>,
    /// All checkpoints of the latest backup and those that are named in `since`, by name, with their disks.
    pub checkpoints: BTreeMap<String, Vec<DiskTarget>>,
    /// The moment that the latest backup shows.
    pub moment: Option<Timestamp>,
}

/// Since when it can be told what was written to a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The checkpoint that was made then.
    pub checkpoint: String,
    /// What the disk held then: its base, or what that stands on.
    pub held: BaseDisk,
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

    /// For a push: QEMU writes all of a disk where it isn't told since when, so that only those stay based on something.
    pub fn only_since(&mut self, since: &BTreeMap<DiskTarget, String>, reason: &str) {
        for (target, base) in &mut self.disks {
            if matches!(base, Base::On(_)) && !since.contains_key(target) {
                *base = Base::Full(reason.to_owned());
            }
        }
    }
}

/// Decides. `backups` is the latest of the instance's in `repository`, after all that it needs; `unreadable`, how many can't be read.
pub fn choose(plan: &BackupPlan, repository: RepositoryId, backups: &[Manifest], unreadable: u64) -> Basis {
    let mut basis = Basis { moment: backups.last().map(|latest| latest.taken_at), ..Basis::default() };
    basis.checkpoints = backups.last().map(|latest| checkpoints(latest, repository)).unwrap_or_default();
    if plan.mode == BackupMode::Full {
        return basis;
    }
    for disk in &plan.disks {
        let base = match on(plan, disk, backups, unreadable) {
            Ok((latest, found)) => match since(plan, disk, backups, (latest, found), repository) {
                Some((backup, since)) => {
                    basis.checkpoints.extend(checkpoints(backup, repository));
                    basis.since.insert(disk.target.clone(), since);
                    Base::On(held(latest, found))
                }
                None if plan.push().is_some() => Base::Full(format!(
                    "QEMU writes all of a disk in a push, as nothing tells it what was written since the latest backup `{}`",
                    latest.backup_id
                )),
                None => Base::On(held(latest, found)),
            },
            Err(reason) => Base::Full(reason),
        };
        basis.disks.insert(disk.target.clone(), base);
    }
    basis
}

fn held(backup: &Manifest, disk: &ManifestDisk) -> BaseDisk {
    let (virtual_bytes, content_root) = (disk.virtual_bytes, disk.content_root.clone());
    BaseDisk { backup: backup.backup_id, virtual_bytes, content_root }
}

/// The checkpoints that a backup's manifest names with their disks; only what may be one of its own.
fn checkpoints(backup: &Manifest, repository: RepositoryId) -> BTreeMap<String, Vec<DiskTarget>> {
    let mut checkpoints: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for disk in &backup.disks {
        if let Some(name) = disk.checkpoint.as_ref().filter(|name| tracking::is_of(name, repository, backup.backup_id))
        {
            checkpoints.entry(name.clone()).or_default().push(disk.target.clone());
        }
    }
    checkpoints
}

/// Since when a disk's bitmap says what was written to it, if that can be believed, and the backup of that moment. All disks of a
/// checkpoint have bitmaps of one name: behind a target whose source is another now is another disk's bitmap. And what is only left out
/// because a bitmap calls it clean has to have been proven when it was stored, as far as the new backup is going to be.
///
/// What QEMU is told to write in a push is all that is stored, so that only the latest backup's own checkpoint will do: since an older one
/// an image may have been put back.
fn since<'b>(
    plan: &BackupPlan,
    disk: &PlannedDisk,
    backups: &'b [Manifest],
    (latest, found): (&'b Manifest, &'b ManifestDisk),
    repository: RepositoryId,
) -> Option<(&'b Manifest, Since)> {
    if disk.data_elsewhere {
        return None;
    }
    let (mut backup, mut known) = (latest, found);
    for _ in 0..CHAIN_IMAGES_MAX {
        let proven = match backup.verification {
            Proof::Compared => true,
            Proof::Structure => plan.push().is_some(),
            Proof::Unverified => false,
        };
        if !proven || !known.source.is_same_place(&disk.source) {
            return None;
        }
        if let Some(checkpoint) = &known.checkpoint {
            let since = Since { checkpoint: checkpoint.clone(), held: held(backup, known) };
            let fits = plan.push().is_none() || (plan.checkpoint.is_some() && has_kept_its_size(disk, known));
            let believed = fits && tracking::is_of(checkpoint, repository, backup.backup_id);
            return believed.then_some((backup, since));
        }
        let based_on = known.based_on.as_ref().filter(|_| plan.push().is_none())?;
        (backup, known) = parent(backups, &based_on.backup_id, known)?;
    }
    None
}

/// An image of another size can't be laid over one that holds only what was written to.
fn has_kept_its_size(disk: &PlannedDisk, known: &ManifestDisk) -> bool {
    disk.virtual_bytes == Some(known.virtual_bytes)
}

fn parent<'b>(
    backups: &'b [Manifest],
    backup: &BackupId,
    disk: &ManifestDisk,
) -> Option<(&'b Manifest, &'b ManifestDisk)> {
    let parent = backups.iter().find(|known| known.backup_id == *backup)?;
    let found = parent.disks.iter().find(|below| below.target == disk.target)?;
    Some((parent, found))
}

/// What the disk is based on; or why on nothing.
fn on<'b>(
    plan: &BackupPlan,
    disk: &PlannedDisk,
    backups: &'b [Manifest],
    unreadable: u64,
) -> Result<(&'b Manifest, &'b ManifestDisk), String> {
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
        (_, disk) = parent(backups, &based_on.backup_id, disk)?;
        images += 1;
        if images > CHAIN_IMAGES_MAX {
            break;
        }
    }
    Some(images)
}
