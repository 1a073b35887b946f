//! Steps around steps: ones that fail, ones that do everything twice.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::saga::step::{Commit, Held, Hold, Make, Named, Step, StepRetry};

/// When a broken step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaks {
    /// Without having done anything.
    Before,
    /// After all was done.
    After,
}

/// The steps, of which the named one fails.
pub(super) fn broken<C: Send + 'static>(steps: Vec<Step<C>>, name: &str, breaks: Breaks) -> Vec<Step<C>> {
    let this = |step: &dyn Named| step.name() == name;
    let wrap = |step| match step {
        Step::Make(step) if this(step.as_ref()) => Step::Make(Box::new(Broken { step, breaks })),
        Step::Commit(step) if this(step.as_ref()) => Step::Commit(Box::new(Broken { step, breaks })),
        Step::Within(hold, inner) if this(hold.as_ref()) => {
            Step::Within(Box::new(Broken { step: hold, breaks }), inner)
        }
        Step::Within(hold, inner) => Step::Within(hold, broken(inner, name, breaks)),
        other => other,
    };
    steps.into_iter().map(wrap).collect()
}

/// The steps, of which each does everything twice that it may have to.
pub(super) fn doubled<C: Send + 'static>(steps: Vec<Step<C>>) -> Vec<Step<C>> {
    doubled_from(steps, &mut false)
}

fn doubled_from<C: Send + 'static>(steps: Vec<Step<C>>, committed: &mut bool) -> Vec<Step<C>> {
    let mut doubled = Vec::new();
    for step in steps {
        doubled.push(match step {
            Step::Make(step) => {
                let twice = *committed || step.retry().tries > 1;
                Step::Make(Box::new(Doubled { step, twice }))
            }
            Step::Within(step, inner) => {
                let twice = step.retry().tries > 1;
                Step::Within(Box::new(Doubled { step, twice }), doubled_from(inner, committed))
            }
            Step::Commit(step) => {
                *committed = true;
                Step::Commit(Box::new(Doubled { step, twice: true }))
            }
        });
    }
    doubled
}

struct Broken<S: ?Sized> {
    breaks: Breaks,
    step: Box<S>,
}

struct Doubled<S: ?Sized> {
    /// Whether its effect may have to run twice.
    twice: bool,
    step: Box<S>,
}

macro_rules! named_as_inside {
    ($($wrapper:ident),*) => {$(
        impl<S: Named + ?Sized> Named for $wrapper<S> {
            fn name(&self) -> &'static str {
                self.step.name()
            }
            fn deadline(&self) -> Duration {
                self.step.deadline()
            }
            fn retry(&self) -> StepRetry {
                self.step.retry()
            }
            fn way_back_deadline(&self) -> Duration {
                self.step.way_back_deadline()
            }
            fn deadline_code(&self) -> Code {
                self.step.deadline_code()
            }
        }
    )*};
}

named_as_inside!(Broken, Doubled);

fn breakage() -> Failure {
    Failure::new(Code::Interrupted, "the harness broke this step")
}

#[async_trait]
impl<C: Send + 'static> Make<C> for Broken<dyn Make<C>> {
    async fn make(&self, context: &mut C) -> Result<Value, Failure> {
        if self.breaks == Breaks::After {
            self.step.make(context).await?;
        }
        Err(breakage())
    }
    async fn undo(&self, context: &mut C, made: Option<&Value>) -> Result<(), Failure> {
        self.step.undo(context, made).await
    }
}

#[async_trait]
impl<C: Send + 'static> Hold<C> for Broken<dyn Hold<C>> {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        if self.breaks == Breaks::After {
            self.step.acquire(context).await?;
        }
        Err(breakage())
    }
    async fn release(&self, context: &mut C, held: Option<&Value>) -> Result<(), Failure> {
        self.step.release(context, held).await
    }
}

#[async_trait]
impl<C: Send + 'static> Commit<C> for Broken<dyn Commit<C>> {
    async fn commit(&self, _: &mut C) -> Result<Value, Failure> {
        Err(breakage())
    }
}

#[async_trait]
impl<C: Send + 'static> Make<C> for Doubled<dyn Make<C>> {
    async fn make(&self, context: &mut C) -> Result<Value, Failure> {
        if self.twice {
            self.step.make(context).await?;
        }
        self.step.make(context).await
    }
    async fn undo(&self, context: &mut C, made: Option<&Value>) -> Result<(), Failure> {
        self.step.undo(context, made).await?;
        self.step.undo(context, made).await
    }
}

#[async_trait]
impl<C: Send + 'static> Hold<C> for Doubled<dyn Hold<C>> {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        if self.twice {
            self.step.acquire(context).await?;
        }
        self.step.acquire(context).await
    }
    async fn release(&self, context: &mut C, held: Option<&Value>) -> Result<(), Failure> {
        self.step.release(context, held).await?;
        self.step.release(context, held).await
    }
}

#[async_trait]
impl<C: Send + 'static> Commit<C> for Doubled<dyn Commit<C>> {
    async fn commit(&self, context: &mut C) -> Result<Value, Failure> {
        self.step.commit(context).await?;
        self.step.commit(context).await
    }
}
