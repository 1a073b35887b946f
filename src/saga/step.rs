//! The three shapes of step. A step owns its way back: what undoes it stands beside what does it.
//!
//! Before each effect the engine journals that the step begins; after it, that it is done together with the small
//! [`Value`] that the step returned. A step that was begun may have happened, half happened or never happened: undo and release
//! accept all three, and may run twice.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::way_back::{WAY_BACK_PAUSE, WAY_BACK_TRIES_MAX};
use crate::failure::{Code, Failure};

/// How often a step is tried again on the spot, for transient failures that pass within seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRetry {
    /// Tries in all; 1 means no second one.
    pub tries: u32,
    /// Pause between tries.
    pub pause: Duration,
}

impl StepRetry {
    /// No second try.
    pub const NEVER: StepRetry = StepRetry { tries: 1, pause: Duration::ZERO };
    /// As often as an undo is, for what removes something after the commit.
    pub const REMOVAL: StepRetry = StepRetry { tries: WAY_BACK_TRIES_MAX, pause: WAY_BACK_PAUSE };
}

/// What every step says of itself.
pub trait Named: Send + Sync {
    /// Stable snake_case name, unique within its saga; it stands in events and in the journal.
    fn name(&self) -> &'static str;
    /// Longest time one try of its effect may take.
    fn deadline(&self) -> Duration;
    /// Tries on the spot.
    fn retry(&self) -> StepRetry {
        StepRetry::NEVER
    }
    /// Longest time one try of its undo or release may take.
    fn way_back_deadline(&self) -> Duration {
        WAY_BACK_DEADLINE
    }
    /// What it means when a try passes its deadline. A step that knows what it waits for says so, for instance
    /// [`Code::MountTimedOut`].
    fn deadline_code(&self) -> Code {
        Code::Stalled
    }
}

/// Longest time one try of an undo or release may take, unless its step says otherwise.
pub const WAY_BACK_DEADLINE: Duration = Duration::from_secs(120);

/// A lasting thing: made once, undone only when the saga fails before its commit.
#[async_trait]
pub trait Make<C: Send>: Named {
    /// Makes it. The value is journalled and handed to `undo` after a crash.
    async fn make(&self, context: &mut C) -> Result<Value, Failure>;
    /// Removes it, whether it is there, half there or not there. `made` is what `make` returned, if that is known.
    async fn undo(&self, context: &mut C, made: Option<&Value>) -> Result<(), Failure>;
}

/// What an acquired thing gives back.
pub struct Held {
    /// Journalled, and handed to `release` after a crash.
    pub value: Value,
    /// Resolves when the thing is lost, which cancels what is inside. The sender dropped means it can no longer be lost.
    pub lost: Option<tokio::sync::oneshot::Receiver<Failure>>,
}

/// A held thing: always released, whatever became of what is inside.
#[async_trait]
pub trait Hold<C: Send>: Named {
    /// Takes it.
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure>;
    /// Gives it back, whether it was taken, half taken or never taken. `held` is the value of `acquire`, if that is known.
    /// What was made inside is still there; undoing it later has to do without the held thing.
    async fn release(&self, context: &mut C, held: Option<&Value>) -> Result<(), Failure>;
}

/// The one point after which the saga only goes forward.
#[async_trait]
pub trait Commit<C: Send>: Named {
    /// Does it, or, when it has happened already, finds that out. An error means that it did not happen.
    async fn commit(&self, context: &mut C) -> Result<Value, Failure>;

    /// The error that says that it is not known whether it happened, as a passed deadline does: then nothing that was made is undone.
    fn is_not_known(&self, _failure: &Failure) -> bool {
        false
    }
}

/// A step of a saga over the context `C`.
pub enum Step<C: Send> {
    /// Makes a lasting thing.
    Make(Box<dyn Make<C>>),
    /// Holds something while the inner steps run.
    Within(Box<dyn Hold<C>>, Vec<Step<C>>),
    /// The commit.
    Commit(Box<dyn Commit<C>>),
}

/// Shorthand for [`Step::Make`].
pub fn make<C: Send>(step: impl Make<C> + 'static) -> Step<C> {
    Step::Make(Box::new(step))
}

/// Shorthand for [`Step::Within`].
pub fn within<C: Send>(hold: impl Hold<C> + 'static, inner: Vec<Step<C>>) -> Step<C> {
    Step::Within(Box::new(hold), inner)
}

/// Shorthand for [`Step::Commit`].
pub fn commit<C: Send>(step: impl Commit<C> + 'static) -> Step<C> {
    Step::Commit(Box::new(step))
}
