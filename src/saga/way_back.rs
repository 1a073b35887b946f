//! Unwinding: what makes a saga turn round, and how what was begun is taken back.

use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::engine::Passage;
use super::line::Op;
use super::record::{CommitState, Fall, Record, Shape};
use super::step::Named;
use super::stop::Stop;
use crate::failure::{Code, Failure};

/// Tries of an undo or release before what it should take back is a left-over.
pub const WAY_BACK_TRIES_MAX: u32 = 3;
/// Pause between them.
pub const WAY_BACK_PAUSE: Duration = Duration::from_secs(2);

/// The failure of a try that passed its deadline.
pub(super) fn passed(step: &dyn Named, deadline: Duration) -> Failure {
    let name = step.name();
    Failure::new(step.deadline_code(), format!("step `{name}` did not end within {deadline:?}")).in_step(name)
}

type Lost = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// The held things that say so when they are lost.
#[derive(Default)]
pub(super) struct Watched(Vec<(&'static str, Lost)>);

impl Watched {
    pub(super) fn add(&mut self, step: &'static str, lost: oneshot::Receiver<Failure>) {
        let lost = async move {
            match lost.await {
                Ok(failure) => failure.in_step(step),
                Err(_) => std::future::pending().await,
            }
        };
        self.0.push((step, Box::pin(lost)));
    }

    pub(super) fn remove(&mut self, step: &str) {
        self.0.retain(|(watched, _)| *watched != step);
    }

    /// Waits for a reason to turn round.
    pub(super) async fn interrupted(&mut self, stop: &Stop) -> Fall {
        let lost = async {
            if self.0.is_empty() {
                return std::future::pending().await;
            }
            futures_util::future::select_all(self.0.iter_mut().map(|(_, lost)| lost)).await.0
        };
        tokio::select! {
            biased;
            failure = lost => Fall::Failed(failure),
            failure = stop.asked() => Fall::Stopped(failure),
        }
    }

    /// Whether there is one already.
    pub(super) fn interrupted_now(&mut self, stop: &Stop) -> Option<Fall> {
        self.interrupted(stop).now_or_never()
    }
}

impl<C: Send> Passage<'_, C> {
    /// Takes back what is open, in reverse. While it is not known whether the commit happened, only held things: what was made may
    /// be what was committed.
    pub(super) async fn unwind(&mut self) {
        let undo = *self.progress.commit() == CommitState::NotYet;
        let open: Vec<_> = self.progress.open().iter().rev().map(|open| (open.step.clone(), open.shape)).collect();
        for (step, shape) in open {
            if undo || shape == Shape::Hold {
                // A failure stands in the records as a left-over.
                let _ = self.leave(&step).await;
            }
        }
    }

    /// Undoes or releases one open step, and says so before and after.
    pub(super) async fn leave(&mut self, name: &str) -> Result<(), Failure> {
        let Some(open) = self.progress.open_step(name).cloned() else { return Ok(()) };
        let step = open.step;
        let (leaving, left) = match open.shape {
            Shape::Make => (Record::Undoing { step: step.clone() }, Record::Undone { step: step.clone() }),
            Shape::Hold => (Record::Releasing { step: step.clone() }, Record::Released { step: step.clone() }),
        };
        self.note_after(leaving).await;
        let result = self.take_back(&step, open.value.as_ref()).await;
        let record = match (&result, open.shape) {
            (Ok(()), _) => left,
            (Err(failure), Shape::Make) => Record::UndoFailed { step, failure: failure.clone() },
            (Err(failure), Shape::Hold) => Record::ReleaseFailed { step, failure: failure.clone() },
        };
        self.note_after(record).await;
        result
    }

    async fn take_back(&mut self, name: &str, value: Option<&serde_json::Value>) -> Result<(), Failure> {
        let found = self.ops.iter().copied().find(|op| op.named().name() == name && !matches!(op, Op::Commit(_)));
        let Some(op) = found else {
            return Err(Failure::new(Code::Internal, format!("the plan has no step `{name}` to take back")));
        };
        let (step, deadline) = (op.named(), op.named().way_back_deadline());
        let mut tries = 1;
        loop {
            let once = async {
                match op {
                    Op::Make(step) => step.undo(self.context, value).await,
                    Op::Acquire(step) | Op::Release(step) => step.release(self.context, value).await,
                    Op::Commit(_) => Ok(()),
                }
            };
            let failure = match timeout(deadline, once).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure.in_step(name),
                Err(_) => passed(step, deadline),
            };
            if tries >= WAY_BACK_TRIES_MAX {
                return Err(failure);
            }
            tries += 1;
            sleep(WAY_BACK_PAUSE).await;
        }
    }
}
