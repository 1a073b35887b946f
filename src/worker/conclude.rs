//! The end of an attempt: what it came to, the settlement that follows from it, and the events that tell of it, all in one
//! transaction of the journal.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::attempt::persist;
use super::circuit::hold;
use super::left_over::{KnownLeftOver, keep, made_good};
use super::report::origin;
use super::run::Run;
use super::settle::{Ending, Settlement, settle};
use super::shared::Shared;
use super::summary::{Shown, shown};
use super::supersede::{subject, superseded};
use crate::failure::{Code, Failure};
use crate::journal::{Counted, LettersAtEnd, Settlement as Written, StoredMessage};
use crate::message::event::{Cancelled, Completed, Failed, FailureReport, LeftOver, Progress, Retrying, RunDetail};
use crate::model::job::{JobKind, RunKey};
use crate::saga::{self, End, Outcome};

/// Warning of an attempt that is not charged.
const HELD_BACK: &str = "the repository fails job after job on this host, so that its jobs wait until one succeeds; this attempt is not charged";

/// What an attempt came to.
#[derive(Clone, Debug)]
pub struct Told {
    ending: Ending,
    duration: Duration,
    warnings: Vec<String>,
    left: Vec<saga::LeftOver>,
    /// Why nothing is known of what the attempt held.
    given_up: Option<String>,
    shown: Shown,
    progress: Option<Progress>,
}

impl Told {
    /// An ending with nothing more to say.
    pub fn of(ending: Ending) -> Self {
        Self {
            ending,
            duration: Duration::ZERO,
            warnings: Vec::new(),
            left: Vec::new(),
            given_up: None,
            shown: Shown::default(),
            progress: None,
        }
    }

    /// With whatever the attempt held left as it is, for this reason.
    #[must_use]
    pub fn giving_up(mut self, reason: &str) -> Self {
        self.given_up = Some(reason.to_owned());
        self
    }

    /// With the last progress, which goes out together with the ending, so that nothing comes in its way.
    #[must_use]
    pub fn after(mut self, progress: Option<Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// What the outcome of unwinding a cut-off attempt means for the run, which is not gone on with if it was `cancelled`.
    pub fn from_unwinding(kind: JobKind, outcome: Outcome, duration: Duration, cancelled: bool) -> Self {
        let told = Self::from_outcome(kind, outcome, duration);
        let ending = match told.ending {
            // Nobody may miss that somebody has to look at the volumes.
            Ending::Failed(failure) if failure.code == Code::RestoreUnfinished => Ending::Failed(failure),
            Ending::Failed(_) | Ending::Drained if cancelled => Ending::Cancelled,
            Ending::Failed(failure) if failure.code == Code::Interrupted => Ending::Interrupted,
            ending => ending,
        };
        Self { ending, ..told }
    }

    /// What the work's outcome means for the run.
    pub fn from_outcome(kind: JobKind, outcome: Outcome, duration: Duration) -> Self {
        let mut told = Self { duration, ..Self::of(Ending::Completed) };
        told.warnings = outcome.warnings.iter().map(|failure| format!("{failure:#}")).collect();
        told.left = outcome.left_over;
        match outcome.end {
            End::Completed { value } => match shown(kind, &value) {
                Ok(mut shown) => {
                    told.warnings.splice(0..0, shown.warnings.drain(..));
                    told.shown = shown;
                }
                Err(failure) => told.ending = Ending::Failed(failure),
            },
            End::Stopped { failure } if failure.code == Code::HostDraining => told.ending = Ending::Drained,
            End::Stopped { failure } if failure.code == Code::Cancelled => told.ending = Ending::Cancelled,
            End::Failed { failure } | End::Stopped { failure } => told.ending = Ending::Failed(failure),
        }
        told
    }

    /// The same where a drain keeps nothing of what it stops.
    #[must_use]
    pub fn evicted_if(mut self, evicts: bool) -> Self {
        if evicts && self.ending == Ending::Drained {
            self.ending = Ending::Evicted;
        }
        self
    }

    /// What the run's attempt has left.
    fn left_overs(&self, run: &Run, attempt: u32) -> Vec<KnownLeftOver> {
        let of_steps = self.left.iter().map(|left| KnownLeftOver::of_step(run, attempt, left));
        let unknown = self.given_up.iter().map(|reason| KnownLeftOver::of_attempt(run, attempt, reason));
        of_steps.chain(unknown).collect()
    }
}

/// Settles attempt `number` of the run, 0 for a run that ends without one. Answers the run again if another attempt follows.
pub async fn conclude(shared: &Shared, mut run: Run, number: u32, mut told: Told) -> Option<Run> {
    let key = run.job.key;
    let known = told.left_overs(&run, number);
    keep(shared, &known).await;
    let left_overs: Vec<_> = known.iter().map(|left| left.report.clone()).collect();
    let held = held_back(shared, &run, &told.ending);
    let uncharged = number.saturating_sub(run.past.charged);
    let settlement = hold(settle(told.ending.clone(), run.past, &run.job.retry, draw()), held, uncharged);
    run.held = held.is_some() && matches!(settlement, Settlement::Retry { charged: false, .. });
    if run.held {
        told.warnings.push(HELD_BACK.to_owned());
    }
    log(&run, number, &told, &left_overs, &settlement);
    let now = Timestamp::now();
    let ended = |outcome: &str| Written::Ended { outcome: json!(outcome), at: now };
    let rows = |last: RunDetail| {
        let progress = told.progress.iter().map(|progress| RunDetail::Progress(progress.clone()));
        progress.chain([last]).map(|detail| run.voice.event(detail)).collect::<Vec<_>>()
    };
    match settlement {
        Settlement::Complete => {
            let began_at = now.checked_sub(told.duration).unwrap_or(now);
            let began_at = run.voice.started_at(number).map_or(began_at, |started| started.min(began_at));
            let superseded = match told.shown.is_as_it_should_be() {
                true => superseded(shared, &run.job, began_at).await,
                false => Vec::new(),
            };
            let rows = || {
                let end = rows(RunDetail::Completed(completed(&told, &left_overs)));
                end.into_iter().chain(superseded.iter().map(|letter| run.voice.mark(*letter))).collect()
            };
            let letters =
                || LettersAtEnd { written: None, superseded: superseded.iter().map(|letter| letter.key).collect() };
            if settled(key, || shared.journal.settle_with(key, number, ended("completed"), rows(), letters())).await {
                made_good(shared, &run, &known).await;
            }
            None
        }
        Settlement::Cancel => {
            let reason = match run.cancelled.clone() {
                Some(reason) => Some(reason),
                // It came while the attempt ran.
                None => persist("read a cancellation", || shared.journal.cancellation(key)).await.unwrap_or_default(),
            };
            let rows = || rows(RunDetail::Cancelled(cancelled(reason.as_ref(), &left_overs)));
            settled(key, || shared.journal.settle(key, number, ended("cancelled"), rows())).await;
            None
        }
        Settlement::DeadLetter(failure) => {
            let message = original(shared, key).await;
            let rows = || {
                let mut rows = rows(RunDetail::Failed(failed(&failure, number, &told, &left_overs)));
                rows.push(run.voice.letter(number, &failure, origin(&shared.settings.host, run.urgent), &message));
                rows
            };
            let letters = || LettersAtEnd { written: subject(&run.job), superseded: Vec::new() };
            let outcome = failure.code.as_str();
            settled(key, || shared.journal.settle_with(key, number, ended(outcome), rows(), letters())).await;
            None
        }
        Settlement::Retry { pause, charged, failure } => {
            let next_attempt_at = now.checked_add(pause).unwrap_or(now);
            let counted = match (charged, run.held) {
                (true, _) => Counted::Failure,
                (false, true) => Counted::Held,
                (false, false) => Counted::Nothing,
            };
            let not_before = (!pause.is_zero()).then_some(next_attempt_at);
            let rows = || {
                rows(RunDetail::Retrying(Retrying {
                    failure: FailureReport::from(&failure),
                    next_attempt_at,
                    warnings: told.warnings.clone(),
                    left_overs: left_overs.clone(),
                }))
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

/// Notes what the ending says of the repository. Answers for how long the run is held back for its sake.
fn held_back(shared: &Shared, run: &Run, ending: &Ending) -> Option<Duration> {
    if run.job.kind() == JobKind::RepoValidate {
        return None;
    }
    let (repository, now) = (run.job.repository.id, Timestamp::now());
    let was_told = shared.circuits.borrow().is_told(repository);
    let mut held = None;
    shared.circuits.send_modify(|circuits| held = circuits.ended(repository, run.job.key, ending, now));
    match (was_told, shared.circuits.borrow().is_told(repository)) {
        (false, true) => tracing::error!(%repository, "the repository fails job after job; one at a time tries it now"),
        (true, false) => tracing::info!(%repository, "the repository works again"),
        _ => {}
    }
    // Who wants one attempt has one, and nothing is begun after the moment before which it was to begin.
    let in_time = |pause: &Duration| {
        run.job.start_before.is_none_or(|moment| now.checked_add(*pause).is_ok_and(|next| next < moment))
    };
    held.filter(|_| run.may_be_held() && run.job.retry.attempts > 1).filter(in_time)
}

/// Ends a run that was cancelled before its first attempt, for the reason that its tombstone gives.
pub async fn cancel(shared: &Shared, run: Run, reason: Value) {
    let number = run.attempts;
    conclude(shared, Run { cancelled: Some(reason), ..run }, number, Told::of(Ending::Cancelled)).await;
}

/// The message of a run, for its letter. One that can't be read leaves the letter without its original, not the run without
/// its end.
pub async fn original(shared: &Shared, key: RunKey) -> StoredMessage {
    match persist("read a job's message", || shared.journal.message(key)).await {
        Ok(message) => message.unwrap_or_default(),
        Err(failure) => {
            tracing::error!(run = %key, failure = format!("{failure:#}"), "cannot read the message of a run");
            StoredMessage::default()
        }
    }
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

fn completed(told: &Told, left_overs: &[LeftOver]) -> Completed {
    Completed {
        duration_ms: u64::try_from(told.duration.as_millis()).unwrap_or(u64::MAX),
        warnings: told.warnings.clone(),
        left_overs: left_overs.to_vec(),
        backup: told.shown.backup.clone(),
        restore: told.shown.restore.clone(),
        restore_plan: told.shown.restore_plan.clone(),
        validate: told.shown.validate.clone(),
        delete: told.shown.delete.clone(),
    }
}

fn failed(failure: &Failure, attempts: u32, told: &Told, left_overs: &[LeftOver]) -> Failed {
    Failed {
        failure: FailureReport::from(failure),
        attempts,
        warnings: told.warnings.clone(),
        left_overs: left_overs.to_vec(),
    }
}

fn cancelled(reason: Option<&Value>, left_overs: &[LeftOver]) -> Cancelled {
    let text = |name: &str| reason?.get(name).and_then(Value::as_str).map(str::to_owned);
    Cancelled { requested_by: text("requested_by"), reason: text("reason"), left_overs: left_overs.to_vec() }
}

fn log(run: &Run, attempt: u32, told: &Told, left_overs: &[LeftOver], settlement: &Settlement) {
    let (job, run_number) = (run.job.key.job_id, run.job.key.run);
    let duration_ms = told.duration.as_millis();
    match settlement {
        Settlement::Complete => tracing::info!(job.id = %job, run = run_number, attempt, duration_ms, "job completed"),
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
    for warning in &told.warnings {
        tracing::warn!(job.id = %job, run = run_number, attempt, warning, "something was not as it should be");
    }
    for LeftOver { what, reason, .. } in left_overs {
        tracing::warn!(job.id = %job, run = run_number, attempt, what, reason, "something could not be removed yet");
    }
}

/// A number from 0 to 1, from the random bits of a uuid.
fn draw() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1);
    bits as f64 / (1_u64 << 53) as f64
}
