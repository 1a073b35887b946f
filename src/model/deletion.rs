//! What becomes of the backups of one instance when one of them is deleted: pure.
//!
//! It promises that after a plan is carried out in its order, and wherever that is cut off, every backup that is left has all that it is
//! based on, by its manifest and by its images alike. A point in the middle goes only where its one child takes over what it held; a pinned
//! backup never goes; where several depend on what is to go, they are named instead; and where it can't be seen what one depends on, nothing
//! goes that it might be.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::id::BackupId;
use crate::failure::{Code, Failure};

/// Backups that a refusal names; of more, their number is told.
const NAMED_MAX: usize = 10;

/// How far a deletion may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeleteMode {
    /// The backup alone. What its one child needs of it is merged into that child first.
    #[default]
    Only,
    /// The backup and everything that depends on it.
    Chain,
    /// The backup alone, and only where nothing depends on it.
    LeafOnly,
}

/// A backup among those of its instance, as far as a deletion cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among those of its instance; none where its manifest can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// What its manifest says that it is based on: at most one. Nothing where that can't be read.
    pub based_on: BTreeSet<BackupId>,
    /// What the headers of its images name. After a merge that was cut off that is another one than its manifest says.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images_on: BTreeSet<BackupId>,
    /// Why it can't be seen what it needs, or one of its images does; none where all can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclear: Option<Failure>,
    /// Length of its images and records, bytes.
    pub bytes: u64,
    /// It has a pin.
    pub pinned: bool,
}

impl Member {
    /// Its manifest can be read.
    fn is_whole(&self) -> bool {
        self.number.is_some()
    }

    /// It can't be restored without that one, whoever of the two that say so is right.
    fn needs(&self, backup: BackupId) -> bool {
        self.based_on.contains(&backup) || self.images_on.contains(&backup)
    }
}

/// One backup that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeletedBackup {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among those of its instance; absent where its manifest could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Length of its images and records, bytes.
    pub bytes: u64,
}

/// A child that takes over what a backup held for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MergedBackup {
    /// The child, which stays.
    pub backup_id: BackupId,
    /// The backup that it was based on, which goes.
    pub from: BackupId,
    /// What it is based on from then on; absent where it stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onto: Option<BackupId>,
}

/// What will be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionPlan {
    /// The backup that was named.
    pub backup_id: BackupId,
    /// How far the deletion may go.
    pub mode: DeleteMode,
    /// What is merged first, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<MergedBackup>,
    /// What goes and can't be restored any more, in that order: nothing before what depends on it.
    pub deleted: Vec<DeletedBackup>,
    /// Bytes that become free; with a merge at most so many, as the child may grow.
    pub freed_bytes: u64,
}

/// Decides what becomes of which of `members`, which are all the backups of the instance.
///
/// `backup_not_found`: there is no such backup. `backup_damaged`: what has to be merged can't be read. Otherwise as [`may_go`].
pub fn plan(members: &[Member], backup: BackupId, mode: DeleteMode) -> Result<DeletionPlan, Failure> {
    let Some(wanted) = members.iter().find(|member| member.backup_id == backup) else {
        return Err(Failure::new(Code::BackupNotFound, format!("the instance has no backup `{backup}`")));
    };
    let children = children_of(members, backup);
    let merged = match (mode, children.as_slice()) {
        (DeleteMode::Chain, _) | (_, []) => None,
        // One whose images alone need it has taken over from another already, which is to be seen to its end first.
        (DeleteMode::Only, [child]) if !child.is_whole() || child.based_on.contains(&backup) => {
            Some(merge(wanted, child)?)
        }
        (DeleteMode::Only | DeleteMode::LeafOnly, _) => return Err(has_children(backup, &children)),
    };
    let mut going = Vec::new();
    match mode {
        DeleteMode::Chain => collect(members, wanted, &mut BTreeSet::new(), &mut going),
        DeleteMode::Only | DeleteMode::LeafOnly => going.push(wanted),
    }
    let ids: Vec<_> = going.iter().map(|member| member.backup_id).collect();
    may_go(members, merged.map(|merged| (merged.backup_id, merged.from)), &ids)?;
    let deleted: Vec<_> = going
        .into_iter()
        .map(|member| DeletedBackup { backup_id: member.backup_id, number: member.number, bytes: member.bytes })
        .collect();
    let freed_bytes = deleted.iter().fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
    Ok(DeletionPlan { backup_id: backup, mode, merged, deleted, freed_bytes })
}

/// Whether these may go, in that order, out of `members`, which are all the backups of the instance. Those that are not there any more
/// may. `merged` is a child that takes over first what the other one holds for it.
///
/// `backup_pinned`: one of them has a pin. `backup_has_children`: others that stay are based on one of them, by their manifests or by
/// their images. `backup_damaged`, or the code of what went wrong: it can't be seen whether one that stays is.
pub fn may_go(members: &[Member], merged: Option<(BackupId, BackupId)>, backups: &[BackupId]) -> Result<(), Failure> {
    let going: BTreeSet<_> = backups.iter().copied().collect();
    let is_going = |member: &&Member| going.contains(&member.backup_id);
    let pinned: Vec<_> = members.iter().filter(is_going).filter(|member| member.pinned).collect();
    if !pinned.is_empty() {
        return Err(Failure::new(Code::BackupPinned, format!("nothing is deleted: {} pinned", shown(&pinned))));
    }
    let mut gone = BTreeSet::new();
    for member in members.iter().filter(is_going) {
        must_be_clear(members, &going, member.backup_id)?;
    }
    for backup in backups {
        let stays = |child: &&Member| !gone.contains(&child.backup_id) && merged != Some((child.backup_id, *backup));
        let children: Vec<_> = children_of(members, *backup).into_iter().filter(stays).collect();
        if !children.is_empty() {
            return Err(has_children(*backup, &children));
        }
        gone.insert(*backup);
    }
    Ok(())
}

/// Those that can't be restored without that backup.
fn children_of(members: &[Member], backup: BackupId) -> Vec<&Member> {
    members.iter().filter(|member| member.backup_id != backup && member.needs(backup)).collect()
}

/// One that stays, of which it can't be seen whether it needs that backup: an image whose header says nothing may have been left on any
/// backup that its manifest leads to, and one without a manifest on any at all.
fn must_be_clear(members: &[Member], going: &BTreeSet<BackupId>, backup: BackupId) -> Result<(), Failure> {
    let stays = members.iter().filter(|member| !going.contains(&member.backup_id));
    for (member, why) in stays.filter_map(|member| Some((member, member.unclear.as_ref()?))) {
        if !member.is_whole() || is_below(members, backup, member) {
            let text = format!(
                "backup `{backup}` is not deleted: it cannot be seen whether backup `{}` is based on it, which would have to be \
                 deleted first",
                member.backup_id
            );
            return Err(Failure::new(why.code, text).because_of(why));
        }
    }
    Ok(())
}

/// The manifests lead from that member down to that backup.
fn is_below(members: &[Member], backup: BackupId, member: &Member) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), member.based_on.clone());
    while let Some(below) = next.pop_first() {
        if below == backup {
            return true;
        }
        if seen.insert(below) {
            next.extend(members.iter().filter(|one| one.backup_id == below).flat_map(|one| &one.based_on));
        }
    }
    false
}

/// The refusal to delete a backup on which these depend.
fn has_children(backup: BackupId, children: &[&Member]) -> Failure {
    let mut text = format!("backup `{backup}` is not deleted: {} based on it", shown(children));
    if let Some(child) = children.iter().find(|child| child.is_whole() && !child.based_on.contains(&backup)) {
        text.push_str(&match child.based_on.first() {
            Some(from) => format!(
                "; merging backup `{from}` into `{}` was cut off, so delete `{from}` again first, which finishes that",
                child.backup_id
            ),
            None => format!("; the manifest of `{}` does not say so, but its images do", child.backup_id),
        });
    }
    Failure::new(Code::BackupHasChildren, text)
}

fn merge(wanted: &Member, child: &Member) -> Result<MergedBackup, Failure> {
    for member in [wanted, child] {
        let why = match &member.unclear {
            Some(why) => why.clone(),
            None if !member.is_whole() => Failure::new(Code::BackupDamaged, "its manifest cannot be read"),
            None => continue,
        };
        let text = format!(
            "backup `{}` cannot be merged into `{}`, because of `{}`",
            wanted.backup_id, child.backup_id, member.backup_id
        );
        return Err(Failure::new(why.code, text).because_of(&why));
    }
    Ok(MergedBackup { backup_id: child.backup_id, from: wanted.backup_id, onto: wanted.based_on.first().copied() })
}

/// Everything that depends on `member`, and then itself. Each once: what is on a share may be based on itself.
fn collect<'m>(members: &'m [Member], member: &'m Member, seen: &mut BTreeSet<BackupId>, going: &mut Vec<&'m Member>) {
    // By hand and not by calling itself: a chain that somebody planted may be longer than a stack is deep.
    let mut under_way = vec![(member, false)];
    while let Some((member, is_last)) = under_way.pop() {
        if is_last {
            going.push(member);
        } else if seen.insert(member.backup_id) {
            under_way.push((member, true));
            under_way.extend(children_of(members, member.backup_id).into_iter().map(|child| (child, false)));
        }
    }
}

fn shown(members: &[&Member]) -> String {
    let names: Vec<_> = members.iter().take(NAMED_MAX).map(|member| format!("`{}`", member.backup_id)).collect();
    let more = members.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more} {}", names.join(", "), if members.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests;
