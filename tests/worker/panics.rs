//! Work that panics when it is told to, and what the worker makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use longshore::failure::{Failure, RbdRemains};
use longshore::job::{Attempt, JobProgress};
use longshore::message::event::RunDetail;
use longshore::saga::{Outcome, Record, Stop};
use longshore::worker::jobs::Jobs;
use longshore::worker::work::{AttemptRecord, Work};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::fleet::{Fleet, SHARE};

/// Told by the test when to panic.
#[derive(Clone, Default)]
pub struct Panics {
    attempt: Arc<Notify>,
    unwinding: Arc<AtomicBool>,
}

impl Panics {
    pub fn around(&self, jobs: Jobs) -> PanickyWork {
        PanickyWork { jobs, panics: self.clone() }
    }

    /// One attempt panics where it is.
    pub fn attempt_panics(&self) {
        self.attempt.notify_one();
    }

    /// From now on every unwinding panics, or no more.
    fn unwinding_panics(&self, panics: bool) {
        self.unwinding.store(panics, Ordering::SeqCst);
    }
}

pub struct PanickyWork {
    jobs: Jobs,
    panics: Panics,
}

#[async_trait]
impl Work for PanickyWork {
    async fn run(
        &self,
        attempt: &Attempt,
        record: &dyn AttemptRecord,
        progress: watch::Sender<JobProgress>,
        stop: &Stop,
    ) -> Outcome {
        tokio::select! {
            outcome = self.jobs.run(attempt, record, progress, stop) => outcome,
            () = self.panics.attempt.notified() => panic!("the test says so"),
        }
    }

    async fn unwind(
        &self,
        attempt: &Attempt,
        plan: Option<Value>,
        records: &[Record],
        record: &dyn AttemptRecord,
    ) -> Outcome {
        assert!(!self.panics.unwinding.load(Ordering::SeqCst), "the test says so");
        self.jobs.unwind(attempt, plan, records, record).await
    }

    async fn look_at_images(&self, images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
        self.jobs.look_at_images(images).await
    }
}

#[tokio::test]
async fn an_attempt_that_panics_is_unwound_at_once_and_followed_by_another() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.panics.attempt_panics();
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert_eq!(retrying.failure.code, "interrupted");
    fleet.movers.unhang("copy");
    fleet.completed(key).await;
    let story = [(0, "accepted"), (1, "started"), (1, "retrying"), (2, "started"), (2, "completed")];
    assert_eq!(fleet.events.story(key), story);
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    // The instance is free again.
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_run_whose_attempts_panic_again_and_again_is_given_up() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    for attempt in 1..=longshore::worker::settle::INTERRUPTIONS_MAX {
        fleet.told(key, attempt, "started").await;
        fleet.until_copying("web").await;
        fleet.panics.attempt_panics();
        if attempt < longshore::worker::settle::INTERRUPTIONS_MAX {
            fleet.told(key, attempt, "retrying").await;
        }
    }
    assert_eq!(fleet.failed(key).await.code, "crash_loop");
    fleet.finish().await;
}

#[tokio::test]
async fn an_unwinding_that_panics_too_ends_the_run_with_a_left_over_and_not_the_worker() {
    let fleet = Fleet::with(&["web", "db"]).await;
    // Before there is anything that the unwinding could leave behind.
    fleet.movers.hang("open");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until("the mover", |fleet| fleet.movers.running().first().cloned()).await;
    fleet.panics.unwinding_panics(true);
    fleet.panics.attempt_panics();
    let RunDetail::Failed(failed) = fleet.end_of(key).await else { panic!() };
    assert_eq!((failed.failure.code.as_str(), failed.attempts), ("crash_loop", 1));
    assert_eq!(failed.left_overs.len(), 1, "{failed:?}");
    fleet.panics.unwinding_panics(false);
    fleet.movers.unhang("open");
    for instance in ["web", "db"] {
        let next = fleet.publish(&fleet.job(instance)).await;
        fleet.completed(next).await;
    }
    fleet.finish().await;
}
