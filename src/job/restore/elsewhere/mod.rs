//! Making of a backup what was not there: an instance of its own, or a volume, which may become a disk of an instance.
//!
//! It promises: no file that is there is overwritten, and no instance that is there is defined over; until every new file is whole, proven
//! and durable, none of the new names is there; then all of it comes to be, or nothing does, or the run ends as `restore_unfinished` and
//! names the files.
//!
//! Two records divide what may be taken back from what may not. Until it is written down that libvirt is about to be asked, nobody can have
//! been given the files, and a later worker takes the names back. From then on they may be somebody's, on this host or, where an instance was taken on to
//! another one, on that: names are taken back only where libvirt, in this very attempt, has refused and has left no call unanswered. Whatever
//! is not proven so is left as it is. A volume alone is nobody's, and its name is the commit.
//!
//! That a new instance starts comes after that: one that does not is there all the same, and the job says so.
//!
//! ```text
//!   gather ──► plan ──► mover ─► repository ─► lease ─► choose ─► make ─► compare ─► look again ─► names ─► place ─► start
//!
//!   a dry run:      mover ─► repository, only to look ─► tell ─► report
//! ```

pub mod choose;
mod context;
mod names;
mod place;
pub mod plan;
mod steps;
mod tell;
#[cfg(test)]
mod tests;

pub use plan::ElsewherePlan;

use std::path::PathBuf;

use self::context::Context;
use self::names::{GiveNames, LookAgain};
use self::place::{Place, Start};
use self::steps::{Choose, MakeFiles};
use self::tell::Tell;
use super::steps::Compare;
use crate::failure::Failure;
use crate::job::settings::JobSettings;
use crate::job::steps::{Lease, MoverProcess, OpenRepository, OpenToLook, Report};
use crate::job::{Attempt, Doors, Hooks};
use crate::model::destination::{Attach, Destination, NewVolumeSpec};
use crate::model::id::InstanceRef;
use crate::model::job::RestoreNewSpec;
use crate::saga::step::{Step, commit, make, within};
use crate::saga::{self, Outcome, Record, Stop};

/// Looks at who takes part and decides what can be decided before the backup is looked at: whether new files may be below `roots` and where
/// they go. Changes nothing.
pub async fn prepare(
    doors: &Doors,
    roots: &[PathBuf],
    attempt: &Attempt,
    spec: &RestoreNewSpec,
) -> Result<ElsewherePlan, Failure> {
    // An instance of which there are backups need not be there any more.
    let instance = match attempt.job.its_instance()? {
        InstanceRef::Id(id) => *id,
        name @ InstanceRef::Name(_) => doors.hypervisor.find(name).await.map_err(hint_at_uuid)?.id,
    };
    let takes_it = match &spec.to {
        Destination::Volume(NewVolumeSpec { attach: Some(Attach { instance, .. }), .. }) => {
            Some(doors.hypervisor.find(instance).await?)
        }
        _ => None,
    };
    plan::plan(attempt, spec, roots, instance, takes_it.as_ref())
}

fn hint_at_uuid(failure: Failure) -> Failure {
    failure.caused_by("the backups of an instance that is no longer here are found by its uuid")
}

/// Does it. A completed outcome's value is a [`RestoreValue`](super::RestoreValue).
pub async fn run(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: ElsewherePlan,
    hooks: Hooks<'_>,
    stop: &Stop,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    let outcome = saga::run(&steps, &mut context, hooks.log, stop).await;
    context.finish(outcome)
}

/// Ends the attempt that a crash cut off, from its plan and records alone: unwinds it or, once libvirt may have been asked, finds out what
/// came of that.
pub async fn unwind(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: ElsewherePlan,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Outcome {
    let steps = recipe(&plan, attempt);
    let mut context = Context::new(doors, settings, attempt, plan, hooks.progress);
    context.choice = Record::done_value(records, Choose::NAME);
    context.made = Record::done_value(records, MakeFiles::NAME).unwrap_or_default();
    context.told = Record::done_value(records, Tell::NAME);
    context.place_begun = true;
    context.is_found_out = true;
    let outcome = saga::recover(&steps, &mut context, records, hooks.log).await;
    context.finish(outcome)
}

/// The recipe.
fn recipe(plan: &ElsewherePlan, attempt: &Attempt) -> Vec<Step<Context>> {
    if plan.dry_run {
        return vec![within(MoverProcess, vec![within(OpenToLook, vec![make(Tell), commit(Report)])])];
    }
    let deadline = attempt.job.deadline;
    let mut under_the_lease =
        vec![make(Choose), make(MakeFiles { deadline }), make(Compare { deadline }), make(LookAgain)];
    if plan.becomes_somebodys() {
        under_the_lease.push(make(GiveNames));
    }
    under_the_lease.push(commit(Place));
    if plan.starts() {
        under_the_lease.push(make(Start));
    }
    vec![within(MoverProcess, vec![within(OpenRepository, vec![within(Lease, under_the_lease)])])]
}
