//! What can be said of an instance by its names and manifests: read, judged, and held against what has changed meanwhile. Blocks.

use super::examine::merges;
use super::facts::InstanceFacts;
use super::read::{Depth, instance};
use super::select::{instances_of, unreadable};
use super::superseded::{Kept, take_back};
use super::telling::Telling;
use super::{judge, must_be_there};
use crate::failure::Failure;
use crate::model::id::{InstanceId, RepositoryId};
use crate::model::validation::{Finding, FindingCode};
use crate::mover::share::Dir;

/// An instance.
#[derive(Debug)]
pub(in crate::mover) enum Judged {
    /// What was read of it, and what that means.
    Known(InstanceFacts, Vec<Finding>),
    /// Its directory can't be read.
    Unreadable(Finding),
    /// It is not there any more.
    Gone,
}

/// An error: the share is gone, or nobody waits for it any more.
pub(in crate::mover) fn judge_instance(
    root: &Dir,
    repository: RepositoryId,
    id: InstanceId,
    now_seconds: i64,
    telling: &Telling,
) -> Result<Judged, Failure> {
    let instances = match instances_of(root)? {
        Ok(instances) => instances,
        Err(fault) => return Ok(Judged::Unreadable(unreadable(id, fault))),
    };
    let facts = match instance(root, &instances, id, Depth::Records, telling)? {
        Ok(facts) => facts,
        Err(fault) => {
            must_be_there(root)?;
            let is_gone = instances.stat(id.to_string()).is_ok_and(|stat| stat.is_none());
            return Ok(if is_gone { Judged::Gone } else { Judged::Unreadable(unreadable(id, fault)) });
        }
    };
    let found = merges(root, &facts, judge::judge(repository, &facts, now_seconds));
    let Kept { found, .. } = take_back(root, &facts, found, telling)?;
    Ok(Judged::Known(facts, found))
}

/// Whether what was found tells of something that nobody needs any more.
pub(in crate::mover) fn has_left_overs(found: &[Finding]) -> bool {
    use FindingCode::{DeletingLeftOver, FencedLeftOver, StagingLeftOver};
    found.iter().any(|finding| matches!(finding.code, StagingLeftOver | FencedLeftOver | DeletingLeftOver))
}
