//! The steps of a validation. None of them has a way back: the first changes nothing, and what the second removes belongs to nobody.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::Instant;

use super::context::Context;
use super::result::ValidateResult;
use crate::failure::{Code, Failure};
use crate::job::JobProgress;
use crate::job::steps::{Reports, lease_holder, unexpected};
use crate::model::id::InstanceId;
use crate::model::job::{ValidateSpec, Work};
use crate::model::validation::{Finding, FindingCode, Severity, Validation};
use crate::mover::protocol::{Reply, Request, WantedValidation};
use crate::saga::step::{Make, Named};

/// Findings that are told: what an event has room for.
pub(super) const FINDINGS_TOLD_MAX: usize = 100;

/// Longest time for the left-overs of one instance: the lease of a dead holder is watched for two minutes, at worst for six, and images
/// take their time to be removed.
const SWEEP_SECONDS_MAX: u64 = 900;

/// The part of the job's deadline after which a sweep waits for nothing more, so that what was found is told in time.
const SWEEP_PART_OF_DEADLINE: f64 = 0.9;

/// Instances whose left-overs could not be removed, after which no more are tried.
const TROUBLES_MAX: u32 = 10;

/// Looks at the repository.
pub(super) struct Validate {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Validate {
    /// The step's name, under which what was found stands in the records.
    pub const NAME: &'static str = "validate";
}

impl Named for Validate {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Validate {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let Work::RepoValidate(ValidateSpec { level, instances, max_bytes_per_second, .. }) = &context.common.job.work
        else {
            return Err(Failure::new(Code::Internal, "a job that is no validation was taken for one"));
        };
        let wanted = WantedValidation {
            level: *level,
            instances: instances.clone(),
            backup: None,
            max_bytes_per_second: *max_bytes_per_second,
            findings_max: FINDINGS_TOLD_MAX,
        };
        match context.common.ask_moving(self, Request::Validate { wanted: Box::new(wanted) }).await? {
            Reply::Validated { validation, left_overs } => {
                context.left_overs = left_overs;
                let value = written(&validation);
                context.validation = Some(*validation);
                value
            }
            other => Err(unexpected("validate", &other)),
        }
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

fn written(validation: &Validation) -> Result<Value, Failure> {
    serde_json::to_value(validation)
        .map_err(|error| Failure::new(Code::Internal, "cannot write down what was found").because(&error))
}

/// Removes what attempts that were cut off have left, instance by instance.
pub(super) struct Sweep {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Sweep {
    /// The step's name, under which what was found stands in the records once that is done.
    pub const NAME: &'static str = "sweep";
}

impl Named for Sweep {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Sweep {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let instances = std::mem::take(&mut context.left_overs);
        let total = u64::try_from(instances.len()).unwrap_or(u64::MAX);
        let until = Instant::now() + self.deadline.mul_f64(SWEEP_PART_OF_DEADLINE);
        let mut troubles = 0;
        for (done, instance) in (0..).zip(instances) {
            let progress = JobProgress { step: self.name(), done_bytes: done, total_bytes: total, data_bytes: 0 };
            context.common.progress.send_replace(progress);
            let Err(trouble) = sweep(context, instance, until).await else { continue };
            if trouble.code == Code::Interrupted {
                return Err(trouble);
            }
            // What was found is worth more than what could not be removed.
            troubles += 1;
            let goes_on = is_of_one_instance(trouble.code) && troubles < TROUBLES_MAX;
            context.common.late_warnings.push(trouble.in_step(Self::NAME));
            if !goes_on {
                break;
            }
        }
        written(context.found()?)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

async fn sweep(context: &mut Context, instance: InstanceId, until: Instant) -> Result<(), Failure> {
    let limit = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(SWEEP_SECONDS_MAX));
    if limit.is_zero() {
        let text = format!("no time is left for what lies about of instance `{instance}` and of those after it");
        return Err(Failure::new(Code::DeadlineExceeded, text));
    }
    let request = Request::Sweep { instance, holder: lease_holder(&context.common) };
    let path = |name: &str| format!("instances/{instance}/{name}");
    match context.common.session.ask(request, limit).await {
        Ok(Reply::Swept { removed }) => {
            for name in removed {
                let text = "it was left by an attempt that was cut off";
                let gone = Finding::new(FindingCode::LeftOverRemoved, &path(&name), text).of_instance(instance);
                context.found()?.replace(gone, Severity::Warning, FINDINGS_TOLD_MAX);
            }
            Ok(())
        }
        Ok(other) => Err(unexpected("sweep", &other)),
        Err(held) if held.code == Code::LeaseHeld => {
            let at_work = Finding::new(FindingCode::StagingInUse, &format!("instances/{instance}"), &held.text);
            context.found()?.add(vec![at_work.of_instance(instance)], FINDINGS_TOLD_MAX);
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// Trouble that says nothing of the other instances. Any other one ends the sweep, but not the job.
fn is_of_one_instance(code: Code) -> bool {
    matches!(code, Code::RepositoryUnsafe | Code::LeaseLost)
}

impl Reports for Context {
    fn result(&mut self) -> Result<Value, Failure> {
        ValidateResult::value_of(self)
    }
}
