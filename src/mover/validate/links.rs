//! Chains: whether each backup's parent is there and is what it was, and who can't be restored because another one is damaged. Pure.

use std::collections::BTreeSet;

use super::backup_path;
use super::facts::InstanceFacts;
use crate::model::id::{BackupId, DiskTarget};
use crate::model::manifest::{BasedOn, CHAIN_IMAGES_MAX, Manifest, ManifestDisk};
use crate::model::validation::{Finding, FindingCode, Severity};

/// Disks that can't be read whole: of which backup, and which one; none for all of them.
pub(in crate::mover) type Damaged = BTreeSet<(BackupId, Option<DiskTarget>)>;

/// What is wrong with the links between an instance's backups.
pub(super) fn judge(facts: &InstanceFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    for id in facts.by_number() {
        let Some(manifest) = facts.manifest(id) else { continue };
        for disk in &manifest.disks {
            let fault = disk.based_on.as_ref().and_then(|based_on| link_fault(facts, manifest, disk, based_on));
            let fault = fault.or_else(|| too_long(facts, id, disk));
            found.extend(fault.map(|(code, text)| told(facts, manifest, disk, code, text)));
        }
    }
    found
}

fn told(facts: &InstanceFacts, manifest: &Manifest, disk: &ManifestDisk, code: FindingCode, text: String) -> Finding {
    let path = format!("{}/{}", backup_path(facts.instance, manifest.backup_id), super::read::printable(&disk.file));
    Finding::new(code, &path, text).of_instance(facts.instance).of_backup(manifest.backup_id).of_disk(&disk.target)
}

fn link_fault(
    facts: &InstanceFacts,
    manifest: &Manifest,
    disk: &ManifestDisk,
    based_on: &BasedOn,
) -> Option<(FindingCode, String)> {
    let parent_id = based_on.backup_id;
    if manifest.parent() != Some(parent_id) {
        let text = format!("it is based on backup `{parent_id}`, and another disk of its backup on another one");
        return Some((FindingCode::ChainImpossible, text));
    }
    // Where not all of the directory was looked at, nobody knows.
    if !facts.backups.contains_key(&parent_id) && facts.cut_short {
        return None;
    }
    if !facts.backups.contains_key(&parent_id) {
        return Some((FindingCode::ParentMissing, format!("it is based on backup `{parent_id}`, which is not there")));
    }
    // One whose manifest can't be read is told as that, and this one as its heir.
    let parent = facts.manifest(parent_id)?;
    if parent.number >= manifest.number {
        let text = format!(
            "it has the number {} and is based on backup `{parent_id}`, which has the number {}",
            manifest.number, parent.number
        );
        return Some((FindingCode::ChainImpossible, text));
    }
    match facts.disk(parent_id, &disk.target) {
        None => {
            let text = format!("it is based on backup `{parent_id}`, which has no disk `{}`", disk.target);
            Some((FindingCode::ParentDiffers, text))
        }
        Some(of_parent) if of_parent.content_root != based_on.content_root => {
            let text = format!(
                "it is based on the content {} of backup `{parent_id}`, and that has {}",
                based_on.content_root, of_parent.content_root
            );
            Some((FindingCode::ParentDiffers, text))
        }
        Some(_) => None,
    }
}

fn too_long(facts: &InstanceFacts, id: BackupId, disk: &ManifestDisk) -> Option<(FindingCode, String)> {
    let images = below(facts, id, &disk.target).count() + 1;
    (images > CHAIN_IMAGES_MAX).then(|| {
        (FindingCode::ChainTooLong, format!("its chain has more than the {CHAIN_IMAGES_MAX} images that are read"))
    })
}

/// The backups that a disk of a backup is based on, nearest first, as far as they are there, and no more than tell that a chain is too long.
fn below<'f>(facts: &'f InstanceFacts, id: BackupId, target: &'f DiskTarget) -> impl Iterator<Item = BackupId> + 'f {
    let parent = move |id: BackupId| facts.disk(id, target)?.based_on.as_ref().map(|based_on| based_on.backup_id);
    // Numbers fall from link to link, or a manifest that lies could lead in a circle.
    let falls = move |child: BackupId, id: BackupId| match (facts.manifest(child), facts.manifest(id)) {
        (Some(child), Some(parent)) => parent.number < child.number,
        _ => true,
    };
    std::iter::successors(Some(id), move |child| parent(*child).filter(|id| falls(*child, *id)))
        .skip(1)
        .take(CHAIN_IMAGES_MAX)
}

/// Which disks can't be read whole, by what was found.
pub(in crate::mover) fn damaged(found: &[Finding]) -> Damaged {
    let errors = found.iter().filter(|finding| finding.severity == Severity::Error);
    let harmful = errors.filter(|finding| match finding.code {
        // A record is no disk, a file of hashes says nothing of the image beside it, and strangers do no harm.
        FindingCode::RecordChanged | FindingCode::BlocksDamaged | FindingCode::TooMany => false,
        FindingCode::FileMissing | FindingCode::FileSizeDiffers | FindingCode::FilesExchanged => {
            finding.disk.is_some() && !finding.path.ends_with(".blocks")
        }
        FindingCode::NotWhatItSays | FindingCode::Unreadable => {
            finding.disk.is_some() && !finding.path.ends_with(".blocks") || is_of_whole_backup(finding)
        }
        _ => true,
    });
    harmful.filter_map(|finding| Some((finding.backup_id?, finding.disk.clone()))).collect()
}

fn is_of_whole_backup(finding: &Finding) -> bool {
    let (Some(instance), Some(backup)) = (finding.instance_id, finding.backup_id) else { return false };
    let path = backup_path(instance, backup);
    finding.path == path || finding.path == format!("{path}/{}", Manifest::FILE)
}

/// Whether a disk of a backup can't be read whole for its own sake.
pub(in crate::mover) fn is_damaged(damaged: &Damaged, id: BackupId, target: &DiskTarget) -> bool {
    damaged.contains(&(id, None)) || damaged.contains(&(id, Some(target.clone())))
}

/// The nearest backup below a disk that is damaged.
pub(in crate::mover) fn damaged_below(
    facts: &InstanceFacts,
    damaged: &Damaged,
    id: BackupId,
    target: &DiskTarget,
) -> Option<BackupId> {
    below(facts, id, target).find(|below| is_damaged(damaged, *below, target))
}

/// What the disks below a disk of a backup hold, by their manifests.
pub(in crate::mover) fn roots_below(facts: &InstanceFacts, id: BackupId, target: &DiskTarget) -> BTreeSet<String> {
    below(facts, id, target).filter_map(|id| Some(facts.disk(id, target)?.content_root.clone())).collect()
}

/// Which backups need one that is damaged, though they are not damaged themselves.
pub(in crate::mover) fn heirs(facts: &InstanceFacts, damaged: &Damaged) -> Vec<Finding> {
    let mut found = Vec::new();
    for id in facts.by_number() {
        let Some(manifest) = facts.manifest(id) else { continue };
        for disk in manifest.disks.iter().filter(|disk| !is_damaged(damaged, id, &disk.target)) {
            if let Some(below) = damaged_below(facts, damaged, id, &disk.target) {
                let text = format!("it needs backup `{below}`, of which this disk is damaged");
                found.push(told(facts, manifest, disk, FindingCode::AncestorDamaged, text));
            }
        }
    }
    found
}
