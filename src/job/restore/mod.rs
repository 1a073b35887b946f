//! Putting the volumes of a stopped instance back to what they were at one of its backups; what a backup holds comes to be somewhere else
//! in [`elsewhere`].
//!
//! It promises: until every new volume is whole, proven and durable the old ones are not touched; then all of them are replaced, or
//! none is; the instance cannot be started with some of each; the old volumes are there until the new ones have taken their places, and
//! longer if the job wants so. That holds for files and for logical volumes of LVM. A bare block device has no second one: only where the
//! job asks for that it is [written over](overwrite), once the backup was read and found good, and of that nothing is taken back. The instance's definition stays as it is, and its firmware's variables as well.
//!
//! It deliberately never guesses which disk is which (see [`mapping`]), and touches no volume itself, which is its mover's to do: a
//! volume may lie on a share as well, and not answer.
//!
//! ```text
//!   gather ──► plan ──► mover ─► repository ─► lease ─► choose ─► stays stopped
//!                                                                     │
//!      done ◄── remove previous ◄── forget checkpoints ◄── exchange ◄── [overwrite] ◄── compare ◄── restore
//!
//!   a dry run:      mover ─► repository, only to look ─► tell ─► report
//! ```

mod checkpoints;
mod context;
pub mod elsewhere;
pub mod look;
pub mod mapping;
mod names;
mod overwrite;
mod place;
pub mod plan;
mod result;
mod steps;
mod tell;
#[cfg(test)]
mod tests;
mod would;

pub use elsewhere::ElsewherePlan;
pub use plan::RestorePlan;
pub use result::{DryRun, Named, RestoreResult, RestoreValue, Volume};

use self::checkpoints::ForgetCheckpoints;
use self::context::Context;
use self::overwrite::Overwrite;
use self::steps::{Choose, Compare, Exchange, RemovePrevious, Restore, StaysStopped};
use self::tell::Tell;
use super::settings::JobSettings;
use super::steps::{Lease, MoverProcess, OpenRepository, OpenToLook, Report};
use super::{Attempt, Doors, Hooks};
use crate::failure::Failure;
use crate::model::job::RestoreSpec;
use crate::saga::step::{Step, commit, make, within};
use crate::saga::{self, Outcome, Record, Stop};

/// Looks at the instance and decides what can be decided before the backup is looked at. Changes nothing.
pub async fn prepare(doors: &Doors, attempt: &Attempt, spec: &RestoreSpec) -> Result<RestorePlan, Failure> {
    let instance = doors.hypervisor.find(attempt.job.its_instance()?).await?;
    plan::plan(attempt, spec, &instance)
}

/// Does it. A completed outcome's value is a [`RestoreValue`].
pub async fn run(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: RestorePlan,
    hooks: Hooks<'_>,
    stop: &Stop,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    let outcome = saga::run(&steps, &mut context, hooks.log, stop).await;
    context.finish(outcome)
}

/// Ends the attempt that a crash cut off, from its plan and records alone: unwinds it or, once the exchange may have begun, brings that
/// to its end.
pub async fn unwind(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: RestorePlan,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    context.choice = Record::done_value(records, Choose::NAME);
    context.copied = Record::done_value(records, Restore::NAME).unwrap_or_default();
    context.common.warnings = Record::done_value(records, Compare::NAME).unwrap_or_default();
    context.overwriting = records.iter().any(Overwrite::is_begun);
    context.told = Record::done_value(records, Tell::NAME);
    context.exchange_asked = records.iter().any(|record| matches!(record, Record::Committing { .. }));
    let outcome = saga::recover(&steps, &mut context, records, hooks.log).await;
    context.finish(outcome)
}

/// The recipe.
fn recipe(plan: &RestorePlan, attempt: &Attempt) -> Vec<Step<Context>> {
    if plan.dry_run {
        return vec![within(MoverProcess, vec![within(OpenToLook, vec![make(Tell), commit(Report)])])];
    }
    let deadline = attempt.job.deadline;
    let mut replace = vec![make(Restore { deadline }), make(Compare { deadline })];
    if plan.overwrite {
        replace.push(make(Overwrite { deadline }));
    }
    replace.push(commit(Exchange));
    let mut under_the_lease = vec![make(Choose), within(StaysStopped, replace)];
    under_the_lease.push(make(ForgetCheckpoints));
    if !plan.keep_previous {
        under_the_lease.push(make(RemovePrevious));
    }
    vec![within(MoverProcess, vec![within(OpenRepository, vec![within(Lease, under_the_lease)])])]
}
