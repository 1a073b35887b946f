//! Runs a saga forward, and ends one that a crash cut off.

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::line::{Op, lay_out};
use super::log::SagaLog;
use super::outcome::{End, LeftOver, Outcome};
use super::record::{CommitState, Fall, Progress, Record, Shape, Stage};
use super::step::{Commit, Held, Hold, Named, Step};
use super::stop::Stop;
use super::way_back::{self, Watched};
use crate::failure::{Class, Code, Failure};

/// Tries of a commit that passes its deadline, until it counts as not to be found out.
pub const COMMIT_TRIES_MAX: u32 = 3;
/// Pause between them.
pub const COMMIT_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs the steps. Ends with everything done, or with everything taken back that could be.
///
/// A stop drops the effect that is running and unwinds; from the commit on it is not listened to. Dropping the returned future
/// is a crash: whoever does it has to call [`recover`].
pub async fn run<C: Send>(steps: &[Step<C>], context: &mut C, log: &dyn SagaLog, stop: &Stop) -> Outcome {
    let ops = match lay_out(steps) {
        Ok(ops) => ops,
        Err(failure) => return Outcome::refused(failure),
    };
    let mut passage = Passage::new(ops, context, log, Progress::default());
    match passage.forward(stop).await {
        Ok(()) => passage.outcome(None),
        Err(fall) => passage.fall_back(fall).await,
    }
}

/// Ends the execution that left these records: unwinds it as [`Code::Interrupted`], or for the reason it was unwinding already,
/// unless its commit happened: then it goes forward. Whether it happened is asked of the commit itself, which observes.
///
/// `steps` have to be made from the same plan. Records that can't be (see [`Progress::fold`]) touch nothing.
pub async fn recover<C: Send>(steps: &[Step<C>], context: &mut C, records: &[Record], log: &dyn SagaLog) -> Outcome {
    let ops = match lay_out(steps) {
        Ok(ops) => ops,
        Err(failure) => return Outcome::refused(failure),
    };
    let progress = match Progress::fold(records) {
        Ok(progress) => progress,
        Err(illegal) => {
            let failure = Failure::new(Code::Internal, "the records of the interrupted attempt cannot be followed");
            return Outcome::refused(failure.because(&illegal));
        }
    };
    let mut passage = Passage::new(ops, context, log, progress);
    let ended =
        match passage.progress.commit() {
            CommitState::Committed(_) => passage.finish().await,
            CommitState::Begun | CommitState::Unknown => passage.find_out().await,
            CommitState::NotYet => Err(passage.progress.fall().cloned().unwrap_or_else(|| {
                Fall::Failed(Failure::new(Code::Interrupted, "the worker ended while the job ran"))
            })),
        };
    match ended {
        Ok(()) => passage.outcome(None),
        Err(fall) => passage.fall_back(fall).await,
    }
}

/// One execution under way.
pub(super) struct Passage<'a, C: Send> {
    pub(super) ops: Vec<Op<'a, C>>,
    pub(super) context: &'a mut C,
    log: &'a dyn SagaLog,
    /// False once a record of the way back could not be written: what the log holds stays a legal prefix.
    log_works: bool,
    pub(super) progress: Progress,
    log_failures: Vec<Failure>,
    watched: Watched,
}

impl<'a, C: Send> Passage<'a, C> {
    fn new(ops: Vec<Op<'a, C>>, context: &'a mut C, log: &'a dyn SagaLog, progress: Progress) -> Self {
        let (log_works, log_failures, watched) = (true, Vec::new(), Watched::default());
        Self { ops, context, log, log_works, progress, log_failures, watched }
    }

    async fn forward(&mut self, stop: &Stop) -> Result<(), Fall> {
        for op in self.ops.clone() {
            match op {
                Op::Make(step) => self.enter(op, step, Shape::Make, stop).await?,
                Op::Acquire(step) => self.enter(op, step, Shape::Hold, stop).await?,
                Op::Release(step) => self.release(step).await.map_err(Fall::Failed)?,
                Op::Commit(step) => {
                    if let Some(fall) = self.watched.interrupted_now(stop) {
                        return Err(fall);
                    }
                    self.note(Record::Committing { step: step.name().to_owned() }).await.map_err(Fall::Failed)?;
                    self.commit(step).await?;
                    return self.finish().await;
                }
            }
        }
        Ok(())
    }

    async fn enter(&mut self, op: Op<'a, C>, step: &dyn Named, shape: Shape, stop: &Stop) -> Result<(), Fall> {
        if let Some(fall) = self.watched.interrupted_now(stop) {
            return Err(fall);
        }
        let name = step.name();
        self.note(Record::Began { step: name.to_owned(), shape }).await.map_err(Fall::Failed)?;
        let held = tokio::select! {
            biased;
            fall = self.watched.interrupted(stop) => Err(fall),
            held = effect(op, self.context) => held.map_err(Fall::Failed),
        };
        let Held { value, lost } = held?;
        if let Some(lost) = lost {
            self.watched.add(name, lost);
        }
        self.note(Record::Done { step: name.to_owned(), value }).await.map_err(Fall::Failed)
    }

    async fn release(&mut self, step: &dyn Hold<C>) -> Result<(), Failure> {
        self.watched.remove(step.name());
        self.leave(step.name()).await
    }

    async fn commit(&mut self, step: &dyn Commit<C>) -> Result<(), Fall> {
        let value = commit_effect(step, self.context).await?;
        // Its effect happened, so a record that can't be written changes nothing but the log.
        self.note_after(Record::Committed { value }).await;
        Ok(())
    }

    async fn find_out(&mut self) -> Result<(), Fall> {
        let commit = self.ops.iter().find_map(|op| if let Op::Commit(step) = op { Some(*step) } else { None });
        match commit {
            Some(step) => self.commit(step).await?,
            None => {
                return Err(Fall::Unknown(Failure::new(Code::Internal, "the plan has no commit, but one was begun")));
            }
        }
        self.finish().await
    }

    /// What stands after the commit. Nothing stops it.
    async fn finish(&mut self) -> Result<(), Fall> {
        let rest: Vec<_> = self.ops.iter().copied().skip_while(|op| !matches!(op, Op::Commit(_))).skip(1).collect();
        for op in rest {
            match op {
                Op::Make(step) => self.make_after_commit(op, step).await,
                Op::Release(step) if self.progress.open_step(step.name()).is_some() => {
                    // A failure stands in the records as a warning.
                    let _ = self.release(step).await;
                }
                Op::Release(_) | Op::Acquire(_) | Op::Commit(_) => {}
            }
        }
        Ok(())
    }

    async fn make_after_commit(&mut self, op: Op<'a, C>, step: &dyn Named) {
        let name = step.name();
        match self.progress.open_step(name).map(|open| &open.stage) {
            Some(Stage::Done | Stage::LeftOver(_)) => return,
            Some(_) => {}
            None => self.note_after(Record::Began { step: name.to_owned(), shape: Shape::Make }).await,
        }
        let record = match effect(op, self.context).await {
            Ok(held) => Record::Done { step: name.to_owned(), value: held.value },
            Err(failure) if failure.remains.is_some() => Record::LeftOver { step: name.to_owned(), failure },
            Err(failure) => Record::Warned { failure },
        };
        self.note_after(record).await;
    }

    async fn fall_back(mut self, fall: Fall) -> Outcome {
        if self.progress.fall() != Some(&fall) {
            let record = match fall.clone() {
                Fall::Failed(failure) => Record::Failed { failure },
                Fall::Stopped(failure) => Record::Stopped { failure },
                Fall::Unknown(failure) => Record::CommitUnknown { failure },
            };
            self.note_after(record).await;
        }
        self.unwind().await;
        self.outcome(Some(fall))
    }

    fn outcome(self, fall: Option<Fall>) -> Outcome {
        let left_over = self.progress.open().iter().filter_map(|open| {
            let failure = match (&open.stage, &fall) {
                (Stage::LeftOver(failure), _) => failure.clone(),
                (_, Some(Fall::Unknown(failure))) => failure.clone(),
                _ => return None,
            };
            Some(LeftOver { step: open.step.clone(), failure })
        });
        let left_over = left_over.collect();
        let warnings = self.progress.warnings().iter().cloned().chain(self.log_failures).collect();
        let end = match (fall, self.progress.commit()) {
            (Some(Fall::Failed(failure) | Fall::Unknown(failure)), _) => End::Failed { failure },
            (Some(Fall::Stopped(failure)), _) => End::Stopped { failure },
            (None, CommitState::Committed(value)) => End::Completed { value: value.clone() },
            (None, _) => End::Completed { value: Value::Null },
        };
        Outcome { end, warnings, left_over }
    }

    /// Writes a record that has to be durable before the saga goes on.
    async fn note(&mut self, record: Record) -> Result<(), Failure> {
        let written = self.log.record(record.clone()).await;
        // An effect that happened counts, whether or not that could be written down; one that was only announced did not happen.
        let counts = written.is_ok() || matches!(record, Record::Done { .. });
        if counts && !self.progress.apply(&record) {
            return Err(Failure::new(Code::Internal, format!("the saga cannot go on with `{record:?}`")));
        }
        written
    }

    /// Writes a record of what happens in any case.
    pub(super) async fn note_after(&mut self, record: Record) {
        if self.log_works
            && let Err(failure) = self.log.record(record.clone()).await
        {
            self.log_works = false;
            self.log_failures.push(failure);
        }
        if !self.progress.apply(&record) {
            let text = format!("the saga cannot go on with `{record:?}`");
            self.log_failures.push(Failure::new(Code::Internal, text));
        }
    }
}

/// The effect of a make or an acquire, tried as often as its step says.
async fn effect<C: Send>(op: Op<'_, C>, context: &mut C) -> Result<Held, Failure> {
    let step = op.named();
    let retry = step.retry();
    let mut tries = 1;
    loop {
        let once = async {
            match op {
                Op::Make(step) => step.make(context).await.map(|value| Held { value, lost: None }),
                Op::Acquire(step) => step.acquire(context).await,
                Op::Release(_) | Op::Commit(_) => Err(Failure::new(Code::Internal, "this step has no such effect")),
            }
        };
        let failure = match timeout(step.deadline(), once).await {
            Ok(Ok(held)) => return Ok(held),
            Ok(Err(failure)) => failure,
            Err(_) => way_back::passed(step, step.deadline()),
        };
        if tries >= retry.tries || failure.class() != Class::Transient {
            return Err(failure.in_step(step.name()));
        }
        tries += 1;
        sleep(retry.pause).await;
    }
}

/// The commit, until it is known whether it happened, or never will be.
async fn commit_effect<C: Send>(step: &dyn Commit<C>, context: &mut C) -> Result<Value, Fall> {
    let retry = step.retry();
    let mut tries = 1;
    loop {
        match timeout(step.deadline(), step.commit(context)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) if step.is_not_known(&failure) => return Err(Fall::Unknown(failure.in_step(step.name()))),
            Ok(Err(failure)) if tries < retry.tries && failure.class() == Class::Transient => sleep(retry.pause).await,
            Ok(Err(failure)) => return Err(Fall::Failed(failure.in_step(step.name()))),
            Err(_) if tries < retry.tries.max(COMMIT_TRIES_MAX) => sleep(COMMIT_PAUSE).await,
            Err(_) => return Err(Fall::Unknown(way_back::passed(step, step.deadline()))),
        }
        tries += 1;
    }
}
