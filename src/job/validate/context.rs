//! What the steps of one validation hand to each other.

use tokio::sync::watch;

use super::plan::ValidatePlan;
use crate::failure::{Code, Failure};
use crate::job::common::{Common, JobContext};
use crate::job::settings::JobSettings;
use crate::job::{Attempt, Doors, JobProgress};
use crate::model::id::InstanceId;
use crate::model::validation::Validation;
use crate::saga::Outcome;

/// The steps' common state.
pub(super) struct Context {
    /// What it has in common with every other job.
    pub common: Common,
    /// What was found; after a crash from the records.
    pub validation: Option<Validation>,
    /// Instances with something that may be dead.
    pub left_overs: Vec<InstanceId>,
}

impl Context {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        plan: ValidatePlan,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        let common = Common::new(doors, settings, attempt, plan.wants(), progress);
        Self { common, validation: None, left_overs: Vec::new() }
    }

    /// What was found, in a step that comes after that.
    pub fn found(&mut self) -> Result<&mut Validation, Failure> {
        self.validation
            .as_mut()
            .ok_or_else(|| Failure::new(Code::Internal, "what was found was to be told before it was looked for"))
    }

    /// Adds what the steps could only warn of.
    pub fn finish(self, mut outcome: Outcome) -> Outcome {
        outcome.warnings.extend(self.common.late_warnings);
        outcome
    }
}

impl JobContext for Context {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}
