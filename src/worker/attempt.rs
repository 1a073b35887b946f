//! One attempt of one run, from its first record to its settlement. The only caller of [`Work`](super::work::Work).
//!
//! The order is the whole argument for "no job is lost and none is done twice":
//!
//! 1. the attempt is in the journal, with its `started` event;
//! 2. each effect is announced there before it happens;
//! 3. the settlement, the final event and the dead letter are one transaction;
//! 4. only then does the worker forget the run.
//!
//! A crash after 1 or 2 is unwound at the next start, by [`recover`]; after 3 there is nothing left to do but to send the outbox.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::conclude::{Told, conclude};
use super::pace::Pace;
use super::run::Run;
use super::settle::Ending;
use super::shared::Shared;
use super::work::AttemptRecord;
use crate::failure::{Code, Failure};
use crate::job::{Attempt, JobProgress};
use crate::journal::{AttemptLog, Journal};
use crate::message::event::{RunDetail, RunningJob, Started};
use crate::model::id::BackupId;
use crate::model::job::RunKey;
use crate::saga::{Outcome, Record, SagaLog, Stop, Stopper};

/// Pause before something that could not be written down or read is tried again. Progress that is not in the journal did not
/// happen, so until the journal works there is nothing else to do; the worker's end bounds it.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);
/// Name under which the journal keeps the backup id of a run.
const BACKUP_ID: &str = "backup_id";

/// Runs the next attempt of `run`. Answers the run again if another attempt follows.
pub async fn attempt(shared: Arc<Shared>, run: Run, stopper: Stopper, stop: Stop) -> Option<Run> {
    if let Some(failure) = too_late(&run) {
        return conclude(&shared, run, 0, Told::of(Ending::Failed(failure))).await;
    }
    let key = run.job.key;
    let begun = Instant::now();
    let rows = || vec![run.voice.event(RunDetail::Started(Started {}))];
    let drawn = json!(BackupId::draw());
    // Asked for together, so that one commit of the journal takes both.
    let (number, kept) = tokio::join!(
        persist("start an attempt", || shared.journal.start_attempt(key, rows())),
        persist("keep the backup id", || shared.journal.keep(key, BACKUP_ID, drawn.clone())),
    );
    let outcome = match backup_id(Some(&kept)) {
        Some(backup_id) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, "attempt started");
            follow(&shared, &run, &attempt, &stopper, &stop).await
        }
        None => refused(Failure::new(Code::Internal, "the journal kept something else under the backup id's name")),
    };
    conclude(&shared, run, number, Told::from_outcome(outcome, begun.elapsed())).await
}

/// Ends an attempt that an earlier worker left open.
pub async fn recover(shared: Arc<Shared>, run: Run) -> Option<Run> {
    let (key, number) = (run.job.key, run.attempts);
    let begun = Instant::now();
    let records = persist("read records", || shared.journal.records_of(key, number)).await;
    let mut kept = persist("read the plan", || shared.journal.kept(key)).await;
    let plan = kept.remove(&plan_name(number));
    // Without an id the crash came between the attempt's record and the id: nothing has begun.
    let told = match backup_id(kept.get(BACKUP_ID)) {
        None => Told::of(Ending::Interrupted),
        Some(backup_id) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            let record = JournalRecord::new(&shared.journal, key, number);
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, records = records.len(), "unwinding an attempt that was cut short");
            let outcome = shared.work.unwind(&attempt, plan, &records, &record).await;
            Told::from_outcome(outcome, begun.elapsed())
        }
    };
    conclude(&shared, run, number, told).await
}

/// Runs the work while its progress is told and its deadline watched.
async fn follow(shared: &Shared, run: &Run, attempt: &Attempt, stopper: &Stopper, stop: &Stop) -> Outcome {
    let key = run.job.key;
    shared.status.enter(key, running_job(run, attempt.attempt));
    let (sender, mut seen) = watch::channel(JobProgress::default());
    let record = JournalRecord::new(&shared.journal, key, attempt.attempt);
    let mut work = shared.work.run(attempt, &record, sender, stop);
    let mut pace = Pace::default();
    let mut deadline = Some(Instant::now() + run.job.deadline);
    let outcome = loop {
        let due = deadline;
        tokio::select! {
            biased;
            outcome = &mut work => break outcome,
            Ok(()) = seen.changed() => tell(shared, run, attempt.attempt, &mut pace, &seen.borrow_and_update(), false),
            () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {
                deadline = None;
                let limit = run.job.deadline.as_secs();
                stopper.stop(Failure::new(Code::DeadlineExceeded, format!("the attempt took longer than its {limit} s")));
            }
        }
    };
    drop(work);
    tell(shared, run, attempt.attempt, &mut pace, &seen.borrow(), true);
    shared.status.leave(key);
    outcome
}

fn tell(shared: &Shared, run: &Run, attempt: u32, pace: &mut Pace, now: &JobProgress, last: bool) {
    if now.step.is_empty() {
        return;
    }
    let key = run.job.key;
    shared.status.progress(key, now.step, now.done_bytes, now.total_bytes);
    let whole = now.total_bytes > 0 && now.done_bytes >= now.total_bytes;
    if let Some(event) = pace.note(std::time::Instant::now(), now.step, now.done_bytes, now.total_bytes, last || whole)
    {
        shared.journal.progress(key, attempt, run.voice.event(RunDetail::Progress(event)));
    }
}

fn running_job(run: &Run, attempt: u32) -> RunningJob {
    RunningJob {
        job_id: run.job.key.job_id,
        run: run.job.key.run,
        attempt,
        kind: run.job.kind(),
        instance: run.job.instance.clone(),
        step: None,
        done_bytes: 0,
        total_bytes: 0,
    }
}

/// A job that may not be started any more. Only its first attempt counts as its start.
fn too_late(run: &Run) -> Option<Failure> {
    let moment = run.job.start_before.filter(|moment| run.attempts == 0 && *moment < jiff::Timestamp::now())?;
    Some(Failure::new(Code::StartBeforePassed, format!("the job was to be started before {moment}")))
}

fn backup_id(kept: Option<&Value>) -> Option<BackupId> {
    kept.and_then(|value| serde_json::from_value(value.clone()).ok())
}

fn refused(failure: Failure) -> Outcome {
    Outcome { end: crate::saga::End::Failed { failure }, warnings: Vec::new(), left_over: Vec::new() }
}

fn plan_name(attempt: u32) -> String {
    format!("plan of attempt {attempt}")
}

/// Tries until it works; see [`JOURNAL_PAUSE`].
pub(super) async fn persist<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, Failure>>,
{
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(failure) => tracing::error!(failure = format!("{failure:#}"), "cannot {what}; trying again"),
        }
        sleep(JOURNAL_PAUSE).await;
    }
}

/// The journal as one attempt sees it.
struct JournalRecord {
    log: AttemptLog,
    journal: Journal,
    key: RunKey,
    attempt: u32,
}

impl JournalRecord {
    fn new(journal: &Journal, key: RunKey, attempt: u32) -> Self {
        Self { log: journal.saga_log(key, attempt), journal: journal.clone(), key, attempt }
    }
}

#[async_trait]
impl SagaLog for JournalRecord {
    async fn record(&self, record: Record) -> Result<(), Failure> {
        self.log.record(record).await
    }
}

#[async_trait]
impl AttemptRecord for JournalRecord {
    async fn keep_plan(&self, plan: Value) -> Result<(), Failure> {
        self.journal.keep(self.key, &plan_name(self.attempt), plan).await.map(drop)
    }

    fn log(&self) -> &dyn SagaLog {
        &self.log
    }
}
