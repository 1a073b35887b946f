//! What changed while it was looked at is no damage: no lease was taken, so that backups may be deleted, and their images merged, all the
//! while. Blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::InstanceFacts;
use super::read::is_as_it_was;
use super::select::instances_of;
use super::telling::Telling;
use super::{backup_path, must_be_there_for};
use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId};
use crate::model::validation::{Finding, FindingCode, Severity};
use crate::mover::share::Dir;

/// What is left of what was found.
#[derive(Debug)]
pub(in crate::mover) struct Kept {
    /// With a note for each backup that changed.
    pub found: Vec<Finding>,
    /// Backups of which what was said was taken back.
    pub changed: BTreeSet<BackupId>,
}

/// Takes back what was said of backups that are not as they were when that was said, or are based on such a one. An error: the share is
/// gone, so that nothing that was said means anything.
pub(in crate::mover) fn take_back(
    root: &Dir,
    facts: &InstanceFacts,
    mut found: Vec<Finding>,
    telling: &Telling,
) -> Result<Kept, Failure> {
    must_be_there_for(root, &found)?;
    let bad = found.iter().filter(|finding| finding.severity > Severity::Note);
    let suspects: BTreeSet<BackupId> = bad.filter_map(|finding| finding.backup_id).collect();
    let mut changed = BTreeSet::new();
    let Ok(instances) = instances_of(root)? else { return Ok(Kept { found, changed }) };
    let mut looked: BTreeMap<BackupId, bool> = BTreeMap::new();
    for suspect in suspects {
        for id in facts.line(suspect) {
            telling.go_on()?;
            let Some(before) = facts.backups.get(&id) else { continue };
            let same = match looked.get(&id) {
                Some(same) => *same,
                None => is_as_it_was(root, &instances, facts.instance, id, before, telling)?,
            };
            looked.insert(id, same);
            if !same {
                changed.insert(suspect);
            }
        }
    }
    found.retain(|finding| finding.backup_id.is_none_or(|id| !changed.contains(&id)));
    found.extend(changed.iter().map(|id| superseded(facts.instance, *id)));
    Ok(Kept { found, changed })
}

/// The note of a backup that could not be looked at as it was.
pub(in crate::mover) fn superseded(instance: InstanceId, id: BackupId) -> Finding {
    let text = "it, or a backup that it is based on, was deleted, merged or replaced meanwhile";
    Finding::new(FindingCode::Superseded, &backup_path(instance, id), text).of_instance(instance).of_backup(id)
}
