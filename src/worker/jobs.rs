//! The real work: [`crate::job`] behind the worker's door.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;

use super::work::{AttemptRecord, Work};
use crate::failure::{Code, Failure, RbdRemains};
use crate::job::{self, Attempt, Doors, Hooks, JobProgress, JobSettings};
use crate::saga::{End, Outcome, Record, Stop};

/// Does jobs through the host's doors.
pub struct Jobs {
    doors: Doors,
    settings: Arc<JobSettings>,
}

impl Jobs {
    /// With the doors and what the configuration says.
    pub fn new(doors: Doors, settings: JobSettings) -> Self {
        Self { doors, settings: Arc::new(settings) }
    }
}

#[async_trait]
impl Work for Jobs {
    async fn run(
        &self,
        attempt: &Attempt,
        record: &dyn AttemptRecord,
        progress: watch::Sender<JobProgress>,
        stop: &Stop,
    ) -> Outcome {
        let planned = async {
            let prepared = job::prepare(&self.doors, &self.settings, attempt).await?;
            record.keep_plan(prepared.plan()?).await?;
            Ok::<_, Failure>(prepared)
        };
        // Gathering facts changes nothing, so a stop may just drop it.
        let prepared = tokio::select! {
            planned = planned => match planned {
                Ok(prepared) => prepared,
                Err(failure) => return ended(End::Failed { failure: failure.in_step("plan") }),
            },
            failure = stop.asked() => return ended(End::Stopped { failure }),
        };
        let hooks = Hooks { log: record, progress: &progress };
        prepared.run(&self.doors, &self.settings, attempt, hooks, stop).await
    }

    async fn unwind(
        &self,
        attempt: &Attempt,
        plan: Option<Value>,
        records: &[Record],
        record: &dyn AttemptRecord,
    ) -> Outcome {
        let Some(plan) = plan else {
            // Nothing begins before the plan is kept.
            let failure = Failure::new(Code::Interrupted, "the worker ended before the attempt had a plan");
            return ended(End::Failed { failure });
        };
        let (progress, _nobody_looks) = watch::channel(JobProgress::default());
        let hooks = Hooks { log: record, progress: &progress };
        match job::unwind(&self.doors, &self.settings, attempt, &plan, records, hooks).await {
            Ok(outcome) => outcome,
            Err(failure) => ended(End::Failed { failure }),
        }
    }

    async fn look_at_images(&self, images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
        job::look_at_images(&self.doors, images).await
    }
}

fn ended(end: End) -> Outcome {
    Outcome { end, warnings: Vec::new(), left_over: Vec::new() }
}
