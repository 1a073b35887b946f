//! Looking whether a repository and the backups in it are whole.
//!
//! It promises that a repository with damage is a completed job whose findings name it, and that only one that could not be looked at is
//! a failed one; that nothing on the share is changed but what attempts which were cut off have left, and that only where the job says
//! so, under the lease of its instance; and that it can be stopped at any time. It takes no lease for looking, so that backups go on
//! meanwhile.
//!
//! ```text
//!   plan ──► mover ─► repository, to be looked at ─► validate ─► sweep, if asked for ─► report
//! ```

mod context;
pub mod plan;
mod result;
mod steps;
#[cfg(test)]
mod tests;

pub use plan::ValidatePlan;
pub use result::ValidateResult;

use self::context::Context;
use self::steps::{Sweep, Validate};
use super::settings::JobSettings;
use super::steps::{MoverProcess, OpenToLook, Report};
use super::{Attempt, Doors, Hooks};
use crate::model::job::ValidateSpec;
use crate::saga::step::{Step, commit, make, within};
use crate::saga::{self, Outcome, Record, Stop};

/// Decides what will be done. There is nothing on the host to be looked at for it.
pub fn prepare(attempt: &Attempt, spec: &ValidateSpec) -> ValidatePlan {
    plan::plan(attempt, spec)
}

/// Does it. A completed outcome's value is a [`ValidateResult`].
pub async fn run(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: ValidatePlan,
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
    plan: ValidatePlan,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    context.validation =
        Record::done_value(records, Sweep::NAME).or_else(|| Record::done_value(records, Validate::NAME));
    let outcome = saga::recover(&steps, &mut context, records, hooks.log).await;
    context.finish(outcome)
}

/// The recipe.
fn recipe(plan: &ValidatePlan, attempt: &Attempt) -> Vec<Step<Context>> {
    let deadline = attempt.job.deadline;
    let mut looking = vec![make(Validate { deadline })];
    if plan.sweep {
        looking.push(make(Sweep { deadline }));
    }
    looking.push(commit(Report));
    vec![within(MoverProcess, vec![within(OpenToLook, looking)])]
}
