//! What changed while it was looked at is no damage: no lease was taken, so that backups may be deleted, and their images merged, all the
//! while. Blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::backup_path;
use super::facts::InstanceFacts;
use super::read::is_as_it_was;
use super::select::instances_of;
use super::telling::Telling;
use crate::failure::Failure;
use crate::model::id::BackupId;
use crate::model::validation::{Finding, FindingCode, Severity};
use crate::mover::share::Dir;

/// Takes back what was said of backups that are not as they were when that was said, or are based on such a one.
pub(in crate::mover) fn take_back(
    root: &Dir,
    facts: &InstanceFacts,
    mut found: Vec<Finding>,
    telling: &Telling,
) -> Result<Vec<Finding>, Failure> {
    let bad = found.iter().filter(|finding| finding.severity > Severity::Note);
    let suspects: BTreeSet<BackupId> = bad.filter_map(|finding| finding.backup_id).collect();
    let Some(instances) = instances_of(root) else { return Ok(found) };
    let mut looked: BTreeMap<BackupId, bool> = BTreeMap::new();
    let mut changed = BTreeSet::new();
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
    found.extend(changed.into_iter().map(|id| {
        let text = "it, or a backup that it is based on, was deleted, merged or replaced meanwhile";
        let path = backup_path(facts.instance, id);
        Finding::new(FindingCode::Superseded, &path, text).of_instance(facts.instance).of_backup(id)
    }));
    Ok(found)
}
