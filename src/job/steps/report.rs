//! The end of a job that changes nothing: all was found out before it, so that it could be stopped, and whoever comes after a crash has
//! nothing to ask.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::failure::Failure;
use crate::saga::step::{Commit, Named};

/// Longest time for it: it does nothing.
const REPORT_SECONDS_MAX: u64 = 60;

/// The context of such a job.
pub(in crate::job) trait Reports: Send {
    /// What was found out, as the job's result.
    fn result(&mut self) -> Result<Value, Failure>;
}

/// What was found out is the job's result.
pub(in crate::job) struct Report;

impl Named for Report {
    fn name(&self) -> &'static str {
        "report"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(REPORT_SECONDS_MAX)
    }
}

#[async_trait]
impl<C: Reports> Commit<C> for Report {
    async fn commit(&self, context: &mut C) -> Result<Value, Failure> {
        context.result()
    }
}
