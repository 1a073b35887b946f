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
use super::settle::{Ending, INTERRUPTIONS_MAX};
use super::shared::Shared;
use super::work::AttemptRecord;
use crate::failure::{Code, Failure};
use crate::job::{Attempt, JobProgress};
use crate::journal::{AttemptLog, Journal};
use crate::message::event::{LeftOver, RunDetail, RunningJob, Started};
use crate::model::id::BackupId;
use crate::model::job::RunKey;
use crate::saga::{End, Outcome, Record, SagaLog, Stop, Stopper};

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
    let number = match number {
        Ok(number) => number,
        Err(failure) => {
            // The journal knows better where the run stands; the next start goes on from there.
            tracing::error!(run = %key, failure = format!("{failure:#}"), "the journal refused an attempt");
            return None;
        }
    };
    let outcome = match kept.and_then(|kept| backup_id(&kept)) {
        Ok(backup_id) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, "attempt started");
            follow(&shared, &run, &attempt, &stopper, &stop).await
        }
        Err(failure) => Outcome { end: End::Failed { failure }, warnings: Vec::new(), left_over: Vec::new() },
    };
    conclude(&shared, run, number, Told::from_outcome(outcome, begun.elapsed())).await
}

/// Ends an attempt that an earlier worker left open. It is counted before it is unwound, and not unwound any more when that has
/// been tried too often: an unwinding that the worker doesn't survive would otherwise go on for ever.
pub async fn recover(shared: Arc<Shared>, mut run: Run) -> Option<Run> {
    let (key, number) = (run.job.key, run.attempts);
    let begun = Instant::now();
    let cut_off = persist("count a cut-off attempt", || shared.journal.cut_off(key, number)).await;
    run.past.interruptions = cut_off.unwrap_or(INTERRUPTIONS_MAX);
    if run.past.interruptions > INTERRUPTIONS_MAX {
        let reason = "the worker ended each time it tried to take it back".to_owned();
        let left_over = LeftOver { what: format!("what attempt {number} held"), reason, job_id: None };
        return conclude(&shared, run, number, Told::of(Ending::Interrupted).with_left_over(left_over)).await;
    }
    shared.status.enter(key, running_job(&run, number));
    let told = match look(&shared, key, number).await {
        Ok(None) => Told::of(Ending::Interrupted),
        Ok(Some((backup_id, plan, records))) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            let record = JournalRecord::new(&shared.journal, key, number);
            let count = records.len();
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, records = count, "unwinding a cut-off attempt");
            let outcome = shared.work.unwind(&attempt, plan, &records, &record).await;
            Told::from_unwinding(outcome, begun.elapsed())
        }
        Err(failure) => Told::of(Ending::Failed(failure)),
    };
    shared.status.leave(key);
    conclude(&shared, run, number, told).await
}

/// What a cut-off attempt left in the journal; none if the crash came before its backup id, when nothing had begun.
async fn look(
    shared: &Shared,
    key: RunKey,
    number: u32,
) -> Result<Option<(BackupId, Option<Value>, Vec<Record>)>, Failure> {
    let records = persist("read records", || shared.journal.records_of(key, number)).await?;
    let mut kept = persist("read the plan", || shared.journal.kept(key)).await?;
    let Some(kept_id) = kept.get(BACKUP_ID) else { return Ok(None) };
    let backup_id = backup_id(kept_id)?;
    Ok(Some((backup_id, kept.remove(&plan_name(number)), records)))
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

fn backup_id(kept: &Value) -> Result<BackupId, Failure> {
    let other = || Failure::new(Code::Internal, "the journal kept something else under the backup id's name");
    serde_json::from_value(kept.clone()).map_err(|error| other().because(&error))
}

fn plan_name(attempt: u32) -> String {
    format!("plan of attempt {attempt}")
}

/// Tries until the journal can be written and read; see [`JOURNAL_PAUSE`]. What it refuses for another reason is refused for good.
pub(super) async fn persist<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    loop {
        match attempt().await {
            Err(failure) if failure.code == Code::JournalFailed => {
                tracing::error!(failure = format!("{failure:#}"), "cannot {what}; trying again");
            }
            result => return result,
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
