//! What is looked at once more, since it changed while it was looked at, and what is told in the end.
//!
//! A disk above a damaged one is not examined. Where the damage turns out to be a deletion that was under way, nothing is known of it, nor
//! of a backup that changed itself. Never does a disk count as whole because nobody could open it.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::InstanceFacts;
use super::superseded::superseded;
use super::{links, must_be_there};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget};
use crate::model::validation::{Finding, FindingCode, Severity};
use crate::mover::protocol::WantedValidation;
use crate::mover::share::{Dir, INSTANCES};

/// Disks of backups of which nothing is known, each with the backup of its chain that was the reason.
pub(in crate::mover) type Hidden = BTreeMap<(BackupId, DiskTarget), BackupId>;

/// What a look at the disks of an instance came to.
#[derive(Debug)]
pub(in crate::mover) struct Looked {
    /// What was found, and still holds.
    pub found: Vec<Finding>,
    /// What could not be examined as it was, because a backup has changed meanwhile.
    pub hidden: Hidden,
}

/// Adds what a second look found of what was `hidden` at the first one. Of what is gone by then, and of what was hidden again, it is told that
/// nothing is known.
pub(in crate::mover) fn add_news(found: &mut Vec<Finding>, again: Looked, hidden: &Hidden, now: &InstanceFacts) {
    let backups = |hidden: &Hidden| hidden.keys().map(|(backup, _)| *backup).collect::<BTreeSet<_>>();
    let (first, second) = (backups(hidden), backups(&again.hidden));
    let is_seen = |id: &BackupId| !second.contains(id) && now.backups.contains_key(id);
    let is_past = |finding: &Finding| {
        let of = finding.backup_id.filter(|id| first.contains(id) && is_seen(id));
        finding.code == FindingCode::Superseded && of.is_some()
    };
    found.retain(|finding| !is_past(finding));
    let of = |finding: &Finding| (finding.code, finding.path.clone(), finding.offset);
    let known: BTreeSet<_> = found.iter().map(of).collect();
    let is_news = |finding: &Finding| match finding.backup_id {
        Some(id) => first.contains(&id),
        None => finding.severity == Severity::Error,
    };
    found.extend(again.found.into_iter().filter(|finding| is_news(finding) && !known.contains(&of(finding))));
    let is_superseded = |finding: &&Finding| finding.code == FindingCode::Superseded;
    let told: BTreeSet<_> = found.iter().filter(is_superseded).filter_map(|finding| finding.backup_id).collect();
    let unseen = first.iter().copied().filter(|id| !is_seen(id) && !told.contains(id));
    found.extend(unseen.map(|id| superseded(now.instance, id)));
}

/// With who can't be restored for the sake of what was found; and where one backup alone was asked for, what is of it and of its chain.
pub(in crate::mover) fn to_be_told(
    facts: &InstanceFacts,
    mut found: Vec<Finding>,
    wanted: &WantedValidation,
) -> Vec<Finding> {
    found.extend(links::heirs(facts, &links::damaged(&found)));
    if let Some(only) = wanted.backup {
        let line = facts.line(only);
        // Where not all of the directory was looked at, the backup may be in the rest of it.
        let is_of_all = |finding: &Finding| finding.backup_id.is_none() && finding.code == FindingCode::TooMany;
        found.retain(|finding| finding.backup_id.is_some_and(|id| line.contains(&id)) || is_of_all(finding));
    }
    found
}

/// `backup_not_found`: the one backup that was asked for was not there any more when it was looked at, or is not now. Blocks.
pub(in crate::mover) fn must_be_found(
    root: &Dir,
    facts: &InstanceFacts,
    only: BackupId,
    found: &[Finding],
) -> Result<(), Failure> {
    let is_known = facts.backups.contains_key(&only) || facts.cut_short;
    let is_of_it = |finding: &Finding| finding.backup_id == Some(only) && finding.code == FindingCode::Superseded;
    if is_known && !found.iter().any(is_of_it) {
        return Ok(());
    }
    let instance = root.open_dir(INSTANCES).and_then(|instances| instances.open_dir(facts.instance.to_string()));
    let is_gone = match instance.and_then(|dir| dir.stat(only.to_string())) {
        Ok(there) => there.is_none(),
        Err(error) => error.is_missing(),
    };
    must_be_there(root)?;
    if is_gone { Err(not_there(only)) } else { Ok(()) }
}

/// The one backup that was asked for is gone.
pub(in crate::mover) fn not_there(only: BackupId) -> Failure {
    Failure::new(Code::BackupNotFound, format!("backup `{only}` was deleted before it was looked at to its end"))
}
