//! Deleting a backup of an instance from its repository.
//!
//! It promises: every backup that is listed can be restored, before, after, and wherever the deletion is cut off; a pinned one stays; and
//! nothing goes while somebody else holds the instance's lease. What its one child needs of a backup is merged into that child first, and
//! proven against the hashes of the child's own making.
//!
//! It deliberately asks nobody whether the instance still exists: backups outlive their instances. And it does not say that what an
//! earlier run has deleted was deleted by it: a backup that is not there is `backup_not_found`. Only where an earlier attempt of the same
//! run may have done it, of which nobody has heard, it is done, with a warning.
//!
//! ```text
//!   plan ──► mover ─► repository ─► lease ─► choose ─► merge ─► delete ─► remove deleted
//!               └─► repository, only to look ─► choose ─► report      (a dry run)
//! ```

mod context;
pub mod plan;
mod result;
mod steps;
#[cfg(test)]
mod tests;

pub use plan::DeletePlan;
pub use result::DeleteResult;

use self::context::Context;
use self::steps::{Choose, Delete, Merge, RemoveDeleted};
use super::settings::JobSettings;
use super::steps::{Lease, MoverProcess, OpenRepository, OpenToLook, Report};
use super::{Attempt, Doors, Hooks};
use crate::failure::Failure;
use crate::model::id::InstanceRef;
use crate::model::job::DeleteSpec;
use crate::saga::step::{Step, commit, make, within};
use crate::saga::{self, Outcome, Record, Stop};

/// Finds out which instance is meant. Changes nothing.
pub async fn prepare(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    spec: &DeleteSpec,
) -> Result<DeletePlan, Failure> {
    let instance = match attempt.job.its_instance()? {
        InstanceRef::Id(id) => *id,
        name @ InstanceRef::Name(_) => doors.hypervisor.find(name).await?.id,
    };
    Ok(plan::plan(settings, attempt, spec, instance))
}

/// Does it. A completed outcome's value is a [`DeleteResult`].
pub async fn run(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: DeletePlan,
    hooks: Hooks<'_>,
    stop: &Stop,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    let outcome = saga::run(&steps, &mut context, hooks.log, stop).await;
    context.finish(outcome)
}

/// Ends the attempt that a crash cut off, from its plan and records alone.
pub async fn unwind(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: DeletePlan,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    context.chosen = Record::done_value(records, Choose::NAME);
    context.merged = Record::done_value(records, Merge::NAME);
    let outcome = saga::recover(&steps, &mut context, records, hooks.log).await;
    context.finish(outcome)
}

/// The recipe.
fn recipe(plan: &DeletePlan, attempt: &Attempt) -> Vec<Step<Context>> {
    let deadline = attempt.job.deadline;
    // Where there is no room left one asks before one deletes.
    if plan.dry_run {
        return vec![within(MoverProcess, vec![within(OpenToLook, vec![make(Choose), commit(Report)])])];
    }
    let under_the_lease = vec![make(Choose), make(Merge { deadline }), commit(Delete), make(RemoveDeleted)];
    vec![within(MoverProcess, vec![within(OpenRepository, vec![within(Lease, under_the_lease)])])]
}
