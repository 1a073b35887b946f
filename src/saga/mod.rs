//! Steps with their way back, and the engine that runs, journals and unwinds them. Knows nothing of instances,
//! shares or messages, nor of where its records are kept: it is given a [`log::SagaLog`].
//!
//! It promises:
//! - each record is durable before the effect that it announces, so that whoever reads the log after a crash knows
//!   everything that may have happened;
//! - before the commit, a failure, a stop or a lost hold takes back everything begun, in reverse, including the step that
//!   failed; after it, the saga only goes forward, and what goes wrong then is a warning, or a
//!   left-over where something is still there because of it;
//! - while it is not known whether the commit happened, nothing that was made is undone;
//! - held things are released on every way out;
//! - it ends: every try has a deadline, every retry a bound. What could not be taken back is named in the outcome.
//!
//! It deliberately doesn't resume a crashed saga in the middle: [`engine::recover`] unwinds it, or, from the commit on, ends it.
//! Both use the code of the ordinary way.
//!
//! ```text
//!            began / done                    committing        committed
//!   forward ─────────────► … ─────────────► commit begun ───► forward only ───► completed (with warnings)
//!      │ failed, stopped, lost                 │   │ not known
//!      ▼                                       │   └───► releases only ───► failed, left-overs
//!   unwinding ◄────────────────────────────────┘ did not happen
//!      │ undoing / undone, releasing / released, in reverse
//!      ▼
//!   failed or stopped, with left-overs
//! ```

pub mod engine;
pub mod harness;
mod line;
pub mod log;
pub mod outcome;
pub mod record;
pub mod step;
pub mod stop;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;
mod way_back;

pub use engine::{recover, run};
pub use log::SagaLog;
pub use outcome::{End, LeftOver, Outcome};
pub use record::Record;
pub use stop::{Stop, Stopper};
