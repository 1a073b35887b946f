//! The end of an attempt: what it came to, the settlement that follows from it, and the events that tell of it, all in one
//! transaction of the journal.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::attempt::persist;
use super::report::origin;
use super::run::Run;
use super::settle::{Ending, Settlement, settle};
use super::shared::Shared;
use super::status::KnownLeftOver;
use super::summary::backup_summary;
use crate::failure::{Code, Failure};
use crate::journal::{Counted, Draft, Settlement as Written, StoredMessage};
use crate::message::event::{
    BackupSummary, Cancelled, Completed, Failed, FailureReport, LeftOver, Retrying, RunDetail,
};
use crate::model::job::RunKey;
use crate::saga::{End, Outcome};

/// What an attempt came to.
#[derive(Clone, Debug)]
pub struct Told {
    ending: Ending,
    duration: Duration,
    warnings: Vec<String>,
    left_overs: Vec<LeftOver>,
    backup: Option<BackupSummary>,
}

impl Told {
    /// An ending with nothing more to say.
    pub fn of(ending: Ending) -> Self {
        Self { ending, duration: Duration::ZERO, warnings: Vec::new(), left_overs: Vec::new(), backup: None }
    }

    /// With one more thing that could not be removed.
    #[must_use]
    pub fn with_left_over(mut self, left_over: LeftOver) -> Self {
        self.left_overs.push(left_over);
        self
    }

    /// What the outcome of unwinding a cut-off attempt means for the run.
    pub fn from_unwinding(outcome: Outcome, duration: Duration) -> Self {
        let told = Self::from_outcome(outcome, duration);
        match &told.ending {
            Ending::Failed(failure) if failure.code == Code::Interrupted => {
                Self { ending: Ending::Interrupted, ..told }
            }
            _ => told,
        }
    }

    /// What the work's outcome means for the run.
    pub fn from_outcome(outcome: Outcome, duration: Duration) -> Self {
        let mut told = Self { duration, ..Self::of(Ending::Completed) };
        told.warnings = outcome.warnings.iter().map(|failure| format!("{failure:#}")).collect();
        told.left_overs = outcome
            .left_over
            .iter()
            .map(|left| LeftOver { what: left.step.clone(), reason: format!("{:#}", left.failure), job_id: None })
            .collect();
        match outcome.end {
            End::Completed { value } => match backup_summary(&value) {
                Ok((backup, warnings)) => {
                    told.backup = backup;
                    told.warnings.splice(0..0, warnings);
                }
                Err(failure) => told.ending = Ending::Failed(failure),
            },
            End::Stopped { failure } if failure.code == Code::HostDraining => told.ending = Ending::Drained,
            End::Failed { failure } | End::Stopped { failure } => told.ending = Ending::Failed(failure),
        }
        told
    }
}

/// Settles attempt `number` of the run, 0 for a run that ends without one. Answers the run again if another attempt follows.
pub async fn conclude(shared: &Shared, mut run: Run, number: u32, told: Told) -> Option<Run> {
    let key = run.job.key;
    for report in &told.left_overs {
        let report = LeftOver { job_id: Some(key.job_id), ..report.clone() };
        shared.status.left_over(KnownLeftOver { report, process: None });
    }
    let settlement = settle(told.ending.clone(), run.past, &run.job.retry, draw());
    log(&run, number, &told, &settlement);
    let now = Timestamp::now();
    let ended = |outcome: &str| Written::Ended { outcome: json!(outcome), at: now };
    match settlement {
        Settlement::Complete => {
            let rows = || vec![run.voice.event(RunDetail::Completed(completed(&told)))];
            settled(key, || shared.journal.settle(key, number, ended("completed"), rows())).await;
            None
        }
        Settlement::Cancel => {
            let detail = Cancelled { requested_by: None, reason: None, left_overs: told.left_overs.clone() };
            let rows = || vec![run.voice.event(RunDetail::Cancelled(detail.clone()))];
            settled(key, || shared.journal.settle(key, number, ended("cancelled"), rows())).await;
            None
        }
        Settlement::DeadLetter(failure) => {
            // A message that can't be read leaves the run without a letter, not without its end.
            let message = persist("read a job's message", || shared.journal.message(key)).await.unwrap_or_default();
            let rows = || failed(shared, &run, number, &told, &failure, message.as_ref());
            settled(key, || shared.journal.settle(key, number, ended(failure.code.as_str()), rows())).await;
            None
        }
        Settlement::Retry { pause, charged, failure } => {
            let next_attempt_at = now.checked_add(pause).unwrap_or(now);
            let counted = if charged { Counted::Failure } else { Counted::Nothing };
            let not_before = (!pause.is_zero()).then_some(next_attempt_at);
            let rows = || {
                let failure = FailureReport::from(&failure);
                vec![run.voice.event(RunDetail::Retrying(Retrying { failure, next_attempt_at }))]
            };
            let written = || Written::Waiting { not_before, counted };
            if !settled(key, || shared.journal.settle(key, number, written(), rows())).await {
                return None;
            }
            run.attempts = number;
            run.not_before = not_before;
            run.past.charged += u32::from(charged);
            Some(run)
        }
    }
}

/// Ends a run that was cancelled before its first attempt, for the reason that its tombstone gives.
pub async fn cancel(shared: &Shared, run: &Run, reason: &Value) {
    let text = |name: &str| reason.get(name).and_then(Value::as_str).map(str::to_owned);
    let detail = Cancelled { requested_by: text("requested_by"), reason: text("reason"), left_overs: Vec::new() };
    let rows = || vec![run.voice.event(RunDetail::Cancelled(detail.clone()))];
    let ended = || Written::Ended { outcome: json!("cancelled"), at: Timestamp::now() };
    settled(run.job.key, || shared.journal.settle(run.job.key, run.attempts, ended(), rows())).await;
}

/// Settles, and says whether the journal took it. It refuses only what does not fit the run's state there, which is then the truth:
/// the next start goes on from it.
async fn settled<F: Future<Output = Result<(), Failure>>>(key: RunKey, settle: impl FnMut() -> F) -> bool {
    match persist("settle an attempt", settle).await {
        Ok(()) => true,
        Err(failure) => {
            tracing::error!(run = %key, failure = format!("{failure:#}"), "the journal refused a settlement");
            false
        }
    }
}

fn completed(told: &Told) -> Completed {
    Completed {
        duration_ms: u64::try_from(told.duration.as_millis()).unwrap_or(u64::MAX),
        warnings: told.warnings.clone(),
        left_overs: told.left_overs.clone(),
        backup: told.backup.clone(),
    }
}

/// The final event and the dead letter: two rows of one transaction.
fn failed(
    shared: &Shared,
    run: &Run,
    attempts: u32,
    told: &Told,
    failure: &Failure,
    message: Option<&StoredMessage>,
) -> Vec<Draft> {
    let detail = Failed { failure: FailureReport::from(failure), attempts, left_overs: told.left_overs.clone() };
    let mut rows = vec![run.voice.event(RunDetail::Failed(detail))];
    if let Some(message) = message {
        rows.push(run.voice.letter(attempts, failure, origin(&shared.settings.host, run.urgent), message));
    }
    rows
}

fn log(run: &Run, attempt: u32, told: &Told, settlement: &Settlement) {
    let (job, run_number) = (run.job.key.job_id, run.job.key.run);
    let duration_ms = told.duration.as_millis();
    match settlement {
        Settlement::Complete => {
            tracing::info!(job.id = %job, run = run_number, attempt, duration_ms, warnings = ?told.warnings, "job completed");
        }
        Settlement::Cancel => tracing::info!(job.id = %job, run = run_number, attempt, "job cancelled"),
        Settlement::Retry { pause, failure, .. } => {
            let (failure, pause_ms) = (format!("{failure:#}"), pause.as_millis());
            tracing::warn!(job.id = %job, run = run_number, attempt, failure, pause_ms, "attempt ended, another follows");
        }
        Settlement::DeadLetter(failure) => {
            let (failure, step) = (format!("{failure:#}"), failure.step.as_deref());
            tracing::error!(job.id = %job, run = run_number, attempt, step, failure, "job failed");
        }
    }
}

/// A number from 0 to 1, from the random bits of a uuid.
fn draw() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1);
    bits as f64 / (1_u64 << 53) as f64
}
