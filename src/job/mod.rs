//! The work: for each kind of job facts, a plan and the steps that carry it out.
//!
//! It promises that an attempt ends in one outcome with everything that it held on the host given back or named as a
//! left-over, whatever happens in between; and that an attempt that a crash cut short can be unwound from its plan and
//! its records alone. It deliberately knows no queue and no journal: who records the steps, hears the progress and decides
//! about another attempt is the caller. This file has the only match on a job's kind.
//!
//! ```text
//!   prepare ──► plan, journalled by the caller ──► run ──► outcome
//!                          └──── crash ──► unwind ──► outcome
//! ```

pub mod backup;
mod common;
pub mod delete;
mod images;
mod keys;
mod names;
pub mod restore;
mod session;
pub mod settings;
mod steps;
pub mod validate;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use crate::failure::{Code, Failure};
use crate::host::guard::Guards;
use crate::host::hypervisor::Hypervisor;
use crate::host::mover::Movers;
use crate::model::id::BackupId;
use crate::model::job::{Job, Work};
use crate::saga::{Outcome, Record, SagaLog, Stop};

pub use images::look_at_images;
pub use settings::JobSettings;

/// The doors to the host that jobs use.
#[derive(Clone)]
pub struct Doors {
    /// libvirt.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Starts guards.
    pub guards: Arc<dyn Guards>,
    /// Starts movers.
    pub movers: Arc<dyn Movers>,
}

/// One execution of a job.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The job and run.
    pub job: Job,
    /// Attempt within the run, from 1.
    pub attempt: u32,
    /// Drawn once per run and journalled by the caller, so that two attempts of a run can never both be published.
    pub backup_id: BackupId,
}

/// How far a step that moves bytes is. Which step is under way otherwise, the records say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// The step's name; empty before the first one that moves bytes.
    pub step: &'static str,
    /// Bytes of disks looked at so far, zeros included.
    pub done_bytes: u64,
    /// Bytes of disks in all.
    pub total_bytes: u64,
    /// Bytes written as data so far.
    pub data_bytes: u64,
}

/// Who is told while a job runs.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// Gets each record before its effect.
    pub log: &'a dyn SagaLog,
    /// Gets the progress of the steps that move bytes.
    pub progress: &'a watch::Sender<JobProgress>,
}

/// An attempt that has been planned, and has changed nothing yet.
pub enum Prepared {
    /// A backup.
    Backup(Box<backup::PreparedBackup>),
    /// A restore in place.
    Restore(Box<restore::RestorePlan>),
    /// A restore to elsewhere.
    RestoreElsewhere(Box<restore::ElsewherePlan>),
    /// A validation.
    RepoValidate(Box<validate::ValidatePlan>),
    /// A deletion.
    Delete(Box<delete::DeletePlan>),
}

/// Gathers the facts and makes the plan. Changes nothing, so dropping the future is a clean stop.
pub async fn prepare(doors: &Doors, settings: &JobSettings, attempt: &Attempt) -> Result<Prepared, Failure> {
    match &attempt.job.work {
        Work::Backup(spec) => {
            let prepared = backup::PreparedBackup::new(doors, settings, attempt, spec).await?;
            Ok(Prepared::Backup(Box::new(prepared)))
        }
        Work::Restore(spec) => Ok(Prepared::Restore(Box::new(restore::prepare(doors, attempt, spec).await?))),
        Work::RestoreNew(spec) => {
            let plan = restore::elsewhere::prepare(doors, &settings.volume_roots, attempt, spec).await?;
            Ok(Prepared::RestoreElsewhere(Box::new(plan)))
        }
        Work::RepoValidate(spec) => Ok(Prepared::RepoValidate(Box::new(validate::prepare(attempt, spec)))),
        Work::Delete(spec) => {
            let plan = delete::prepare(doors, settings, attempt, spec).await?;
            Ok(Prepared::Delete(Box::new(plan)))
        }
    }
}

impl Prepared {
    /// The plan, to be journalled before [`Prepared::run`] and handed to [`unwind`] after a crash.
    pub fn plan(&self) -> Result<Value, Failure> {
        let plan = match self {
            Prepared::Backup(backup) => serde_json::to_value(backup.plan()),
            Prepared::Restore(plan) => serde_json::to_value(plan),
            Prepared::RestoreElsewhere(plan) => serde_json::to_value(plan),
            Prepared::RepoValidate(plan) => serde_json::to_value(plan),
            Prepared::Delete(plan) => serde_json::to_value(plan),
        };
        plan.map_err(|error| Failure::new(Code::Internal, "cannot write down the plan of the job").because(&error))
    }

    /// Carries the plan out. `stop` is listened to until the commit. Dropping the future is a crash: [`unwind`] has to follow.
    pub async fn run(
        self,
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        hooks: Hooks<'_>,
        stop: &Stop,
    ) -> Outcome {
        match self {
            Prepared::Backup(backup) => backup.run(doors, settings, attempt, hooks, stop).await,
            Prepared::Restore(plan) => restore::run(doors, settings, attempt, *plan, hooks, stop).await,
            Prepared::RestoreElsewhere(plan) => {
                restore::elsewhere::run(doors, settings, attempt, *plan, hooks, stop).await
            }
            Prepared::RepoValidate(plan) => validate::run(doors, settings, attempt, *plan, hooks, stop).await,
            Prepared::Delete(plan) => delete::run(doors, settings, attempt, *plan, hooks, stop).await,
        }
    }
}

/// Ends an attempt that a crash cut off, given the plan and the records that it left. An error means that the plan can't be read,
/// and nothing was touched.
pub async fn unwind(
    doors: &Doors,
    settings: &JobSettings,
    attempt: &Attempt,
    plan: &Value,
    records: &[Record],
    hooks: Hooks<'_>,
) -> Result<Outcome, Failure> {
    match &attempt.job.work {
        Work::Backup(_) => {
            let plan = read_plan(plan)?;
            Ok(backup::unwind(doors, settings, attempt, plan, records, hooks).await)
        }
        Work::RestoreNew(_) => {
            let plan = read_plan(plan)?;
            Ok(restore::elsewhere::unwind(doors, settings, attempt, plan, records, hooks).await)
        }
        Work::Restore(_) => {
            let plan = read_plan(plan)?;
            Ok(restore::unwind(doors, settings, attempt, plan, records, hooks).await)
        }
        Work::RepoValidate(_) => {
            let plan = read_plan(plan)?;
            Ok(validate::unwind(doors, settings, attempt, plan, records, hooks).await)
        }
        Work::Delete(_) => {
            let plan = read_plan(plan)?;
            Ok(delete::unwind(doors, settings, attempt, plan, records, hooks).await)
        }
    }
}

/// Reads a journalled plan.
fn read_plan<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value)
        .map_err(|error| Failure::new(Code::Internal, "cannot read the journalled plan of the job").because(&error))
}
