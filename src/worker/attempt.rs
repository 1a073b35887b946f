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
use super::step_times::StepTimes;
use super::work::AttemptRecord;
use crate::failure::{Code, Failure};
use crate::job::{Attempt, JobProgress};
use crate::journal::Journal;
use crate::message::event::{Progress, RunDetail, RunningJob, Started};
use crate::model::id::BackupId;
use crate::model::job::RunKey;
use crate::saga::{End, Outcome, Record, SagaLog, Stop, Stopper};

/// Pause before something that could not be written down or read is tried again. Progress that is not in the journal did not
/// happen, so until the journal works there is nothing else to do; the worker's end bounds it.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);
/// Longest time that an attempt waits for a record to be written down before it is given up.
const RECORD_MAX: Duration = Duration::from_secs(60);
/// Name under which the journal keeps the backup id of a run.
const BACKUP_ID: &str = "backup_id";

/// Runs the next attempt of `run`. Answers the run again if another attempt follows.
pub async fn attempt(shared: Arc<Shared>, run: Run, stopper: Stopper, stop: Stop) -> Option<Run> {
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
    let (outcome, progress) = match kept.and_then(|kept| backup_id(&kept)) {
        Ok(backup_id) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, "attempt started");
            follow(&shared, &run, &attempt, &stopper, &stop).await
        }
        Err(failure) => (Outcome { end: End::Failed { failure }, warnings: Vec::new(), left_over: Vec::new() }, None),
    };
    let evicts = shared.evicts();
    let told = Told::from_outcome(run.job.kind(), outcome, begun.elapsed()).evicted_if(evicts).after(progress);
    conclude(&shared, run, number, told).await
}

/// Ends an attempt that an earlier worker left open. It is counted before it is unwound, and not unwound any more when that has
/// been tried too often: an unwinding that the worker doesn't survive would otherwise go on for ever.
pub async fn recover(shared: Arc<Shared>, mut run: Run) -> Option<Run> {
    let (key, number) = (run.job.key, run.attempts);
    let begun = Instant::now();
    let cut_off = persist("count a cut-off attempt", || shared.journal.cut_off(key, number)).await;
    run.past.interruptions = cut_off.unwrap_or(INTERRUPTIONS_MAX);
    if run.past.interruptions > INTERRUPTIONS_MAX {
        let told = Told::of(Ending::Interrupted).giving_up("the worker ended each time it tried to take it back");
        return conclude(&shared, run, number, told).await;
    }
    shared.status.enter(key, running_job(&run, number));
    let told = match look(&shared, key, number).await {
        Ok(None) if run.cancelled.is_some() => Told::of(Ending::Cancelled),
        Ok(None) => Told::of(Ending::Interrupted),
        Ok(Some((backup_id, plan, records))) => {
            let attempt = Attempt { job: (*run.job).clone(), attempt: number, backup_id };
            let stop = Stop::never();
            let record = JournalRecord::new(&shared, key, number, &stop, StepTimes::default());
            let count = records.len();
            tracing::info!(job.id = %key.job_id, run = key.run, attempt = number, records = count, "unwinding a cut-off attempt");
            let outcome = shared.work.unwind(&attempt, plan, &records, &record).await;
            record.tell_times();
            Told::from_unwinding(run.job.kind(), outcome, begun.elapsed(), run.cancelled.is_some())
        }
        Err(failure) => Told::of(Ending::Failed(failure)).giving_up("what it had written down cannot be read"),
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

/// Runs the work while its progress is told and its deadline watched. Answers the last progress beside the outcome.
async fn follow(
    shared: &Shared,
    run: &Run,
    attempt: &Attempt,
    stopper: &Stopper,
    stop: &Stop,
) -> (Outcome, Option<Progress>) {
    let key = run.job.key;
    shared.status.enter(key, running_job(run, attempt.attempt));
    let (sender, mut seen) = watch::channel(JobProgress::default());
    let record = JournalRecord::new(shared, key, attempt.attempt, stop, StepTimes::beginning_with("plan"));
    let mut work = shared.work.run(attempt, &record, sender, stop);
    let mut pace = Pace::default();
    let mut deadline = Some(Instant::now() + run.job.deadline);
    let outcome = loop {
        let due = deadline;
        tokio::select! {
            biased;
            outcome = &mut work => break outcome,
            Ok(()) = seen.changed() => {
                let (repository, bytes) = (run.job.repository.id, seen.borrow().data_bytes);
                if shared.circuits.send_if_modified(|circuits| circuits.moves(repository, key, bytes)) {
                    tracing::info!(%repository, "the repository moves bytes again; all of its jobs may try it");
                }
                if let Some(event) = note(shared, key, &mut pace, &seen.borrow_and_update(), false) {
                    shared.journal.progress(key, attempt.attempt, run.voice.event(RunDetail::Progress(event)));
                }
            }
            () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {
                deadline = None;
                let limit = run.job.deadline.as_secs();
                stopper.stop(Failure::new(Code::DeadlineExceeded, format!("the attempt took longer than its {limit} s")));
            }
        }
    };
    drop(work);
    record.tell_times();
    let last = note(shared, key, &mut pace, &seen.borrow(), true);
    shared.status.leave(key);
    (outcome, last)
}

/// Notes how far the attempt is; answers what is to be told of it.
fn note(shared: &Shared, key: RunKey, pace: &mut Pace, now: &JobProgress, last: bool) -> Option<Progress> {
    if now.step.is_empty() {
        return None;
    }
    shared.status.progress(key, now.step, now.done_bytes, now.total_bytes);
    pace.note(std::time::Instant::now(), now.step, now.done_bytes, now.total_bytes, last)
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

/// The journal as one attempt sees it. A journal that fails for a moment, as on a disk that is full for one, does not end the
/// attempt: it waits for as long as [`RECORD_MAX`], unless it is asked to stop.
struct JournalRecord<'a> {
    journal: &'a Journal,
    key: RunKey,
    attempt: u32,
    stop: &'a Stop,
    times: StepTimes,
}

impl<'a> JournalRecord<'a> {
    fn new(shared: &'a Shared, key: RunKey, attempt: u32, stop: &'a Stop, times: StepTimes) -> Self {
        Self { journal: &shared.journal, key, attempt, stop, times }
    }

    /// Logs how long the steps took.
    fn tell_times(&self) {
        if !self.times.is_empty() {
            let (RunKey { job_id, run }, attempt) = (self.key, self.attempt);
            tracing::info!(job.id = %job_id, run, attempt, steps_ms = self.times.to_string(), "steps took");
        }
    }

    async fn write<F>(&self, mut once: impl FnMut() -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let until = Instant::now() + RECORD_MAX;
        loop {
            let failure = match once().await {
                Err(failure) if failure.code == Code::JournalFailed && Instant::now() < until => failure,
                result => return result,
            };
            tracing::error!(run = %self.key, failure = format!("{failure:#}"), "cannot write down a step; trying again");
            tokio::select! {
                () = sleep(JOURNAL_PAUSE) => {}
                _ = self.stop.asked() => return Err(failure),
            }
        }
    }
}

#[async_trait]
impl SagaLog for JournalRecord<'_> {
    async fn record(&self, record: Record) -> Result<(), Failure> {
        self.times.before();
        let once = || self.journal.record(self.key, self.attempt, record.clone());
        // On the way back a guest may be frozen, or the disk be full of what is to be removed: the journal is not waited for.
        let written = if record.is_of_way_back() { once().await } else { self.write(once).await };
        self.times.after(&record);
        written
    }
}

#[async_trait]
impl AttemptRecord for JournalRecord<'_> {
    async fn keep_plan(&self, plan: Value) -> Result<(), Failure> {
        let name = plan_name(self.attempt);
        self.write(|| async { self.journal.keep(self.key, &name, plan.clone()).await.map(drop) }).await
    }
}
