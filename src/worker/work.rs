//! What the worker asks of the work itself: run an attempt, or unwind one that a crash cut short.
//!
//! The real one is [`crate::job`]; the other one does nothing, for measuring what the worker costs.

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;

use crate::failure::{Failure, RbdRemains};
use crate::job::{Attempt, JobProgress};
use crate::saga::{Outcome, Record, SagaLog, Stop};

/// Where an attempt leaves what must survive a crash: its records and its plan.
#[async_trait]
pub trait AttemptRecord: SagaLog {
    /// Keeps the plan. It is durable when this returns, before the first step.
    async fn keep_plan(&self, plan: Value) -> Result<(), Failure>;
}

/// Does jobs.
#[async_trait]
pub trait Work: Send + Sync {
    /// Runs one attempt to its end, with everything given back or named.
    async fn run(
        &self,
        attempt: &Attempt,
        record: &dyn AttemptRecord,
        progress: watch::Sender<JobProgress>,
        stop: &Stop,
    ) -> Outcome;

    /// Unwinds an attempt that a crash cut short, or brings it to its end if its commit happened. Without a plan it had not
    /// begun anything.
    async fn unwind(
        &self,
        attempt: &Attempt,
        plan: Option<Value>,
        records: &[Record],
        record: &dyn AttemptRecord,
    ) -> Outcome;

    /// Which images are still there of those that an attempt has left on a cluster, where the worker itself does not look. Nothing is changed. An
    /// error says nothing of them; what it leaves is there because of the look.
    async fn look_at_images(&self, images: &[RbdRemains]) -> Result<Vec<String>, Failure>;
}
