//! The backup of one instance, all of its disks at one moment, onto a repository.
//!
//! It promises: the guest never waits for the repository, unless the job wants QEMU itself to write there, and is thawed on every way out; nothing is published that was not
//! proven as far as the job asks; what is published can be restored without us; the record says no more than is known. It
//! deliberately never touches the share itself, which is its mover's to do, and makes no decision after the plan but the ones that
//! the freeze policy leaves open.
//!
//! ```text
//!   gather ──► plan ──► mover ─► repository ─► lease ─► basis ─► staging, records
//!                                                          │
//!        pull:    source (guard, scratch) ─► moment (freeze, begin, thaw) ─► copy ─► compare ─┐
//!        push:    source (guard, images) ──► moment (freeze, begin, thaw) ─► push ──► inspect ┤
//!        stopped: source (stays stopped) ──────────────────► copy ─► compare ─► unchanged ────┤
//!                                                                                             ▼
//!                                                                   publish ◄── seal ◄── source released
//! ```

mod basis;
mod context;
mod directory;
pub mod facts;
pub mod freeze;
mod late;
pub mod plan;
mod release;
mod result;
mod scratch;
mod stall;
mod steps;
#[cfg(test)]
mod tests;
pub mod tracking;

use self::plan::SourcePlan;
pub use plan::{BackupPlan, is_abandoned};
pub use release::release_tracking;
pub use result::BackupResult;
pub use scratch::sweep_scratch;

use self::context::Context;
use self::steps::{
    ChooseBasis, Compare, Copy, ForgetCheckpoints, Inspect, Moment, Publish, PullSource, Push, PushSource, Records,
    Seal, SourcesUnchanged, Staging, StoppedSource, Track, Tracked,
};
use super::settings::JobSettings;
use super::steps::{Lease, MoverProcess, OpenRepository};
use super::{Attempt, Doors, Hooks};
use crate::failure::Failure;
use crate::model::job::BackupSpec;
use crate::model::manifest::Proof;
use crate::saga::step::{Step, commit, make, within};
use crate::saga::{self, Outcome, Record, Stop};

/// A backup that has been planned, and has changed nothing yet.
pub struct PreparedBackup {
    plan: BackupPlan,
    facts: facts::Facts,
}

impl PreparedBackup {
    /// Looks at the instance and decides what to do.
    pub async fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        spec: &BackupSpec,
    ) -> Result<Self, Failure> {
        let facts =
            facts::gather(doors.hypervisor.as_ref(), settings, attempt.job.its_instance()?, spec.transfer).await?;
        let plan = plan::plan(attempt, spec, settings, &facts)?;
        Ok(Self { plan, facts })
    }

    /// What will be done. To be journalled before [`PreparedBackup::run`].
    pub fn plan(&self) -> &BackupPlan {
        &self.plan
    }

    /// Does it. A completed outcome's value is a [`BackupResult`].
    pub async fn run(
        self,
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        hooks: Hooks<'_>,
        stop: &Stop,
    ) -> Outcome {
        let steps = recipe(&self.plan, settings, attempt);
        let mut context = Context::new(doors, settings, attempt, self.plan, hooks.progress);
        context.facts = Some(self.facts);
        let outcome = saga::run(&steps, &mut context, hooks.log, stop).await;
        context.finish(outcome)
    }
}

/// Ends the attempt that a crash cut off, from its plan and records alone: unwinds it, or finds out that its backup was
/// published.
pub async fn unwind(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: BackupPlan,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Outcome {
    let steps = recipe(&plan, settings, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    context.manifest = Record::done_value(records, Seal::NAME);
    context.old_checkpoints = Record::done_value::<Tracked>(records, Track::NAME).unwrap_or_default().old;
    context.begin_asked =
        records.iter().any(|record| matches!(record, Record::Began { step, .. } if step == Moment::NAME));
    let outcome = saga::recover(&steps, &mut context, records, hooks.log).await;
    context.finish(outcome)
}

/// The recipe.
fn recipe(plan: &BackupPlan, settings: &JobSettings, attempt: &Attempt) -> Vec<Step<Context>> {
    let deadline = attempt.job.deadline;
    let compare = (plan.verification == Proof::Compared).then(|| make(Compare { deadline }));
    let moment = || make(Moment { freeze_limit: settings.freeze_limit });
    let mut under_the_lease = vec![make(ChooseBasis), make(Staging), make(Records)];
    let tracks = plan.checkpoint.is_some();
    under_the_lease.extend(tracks.then(|| make(Track)));
    match &plan.source {
        SourcePlan::Pull(_) => {
            let mut inner = vec![moment(), make(Copy { deadline })];
            inner.extend(compare);
            under_the_lease.push(within(PullSource, inner));
        }
        SourcePlan::Push(_) => {
            under_the_lease.push(within(PushSource, vec![moment(), make(Push { deadline })]));
            under_the_lease.push(make(Inspect { deadline }));
        }
        SourcePlan::Stopped => {
            let mut inner = vec![make(Copy { deadline })];
            inner.extend(compare);
            inner.push(make(SourcesUnchanged { deadline }));
            under_the_lease.push(within(StoppedSource, inner));
        }
    }
    under_the_lease.extend([make(Seal { deadline }), commit(Publish)]);
    under_the_lease.extend(tracks.then(|| make(ForgetCheckpoints)));
    vec![within(MoverProcess, vec![within(OpenRepository, vec![within(Lease, under_the_lease)])])]
}
