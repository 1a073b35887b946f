//! What the steps of one deletion hand to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::plan::DeletePlan;
use crate::failure::{Code, Failure};
use crate::job::common::{Common, JobContext};
use crate::job::settings::JobSettings;
use crate::job::{Attempt, Doors, JobProgress};
use crate::model::deletion::DeletionPlan;
use crate::saga::Outcome;

/// What was merged. It stands in the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Merged {
    /// What the merged images take, bytes.
    pub bytes: u64,
    /// What those take whose places they take, bytes.
    pub replaced_bytes: u64,
}

/// The steps' common state.
pub(super) struct Context {
    /// What it has in common with every other job.
    pub common: Common,
    /// The plan.
    pub plan: Arc<DeletePlan>,
    /// What goes and what is merged; after a crash from the records.
    pub chosen: Option<DeletionPlan>,
    /// What was merged; after a crash from the records.
    pub merged: Option<Merged>,
}

impl Context {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        plan: DeletePlan,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        let common = Common::new(doors, settings, attempt, plan.wants(), progress);
        Self { common, plan: Arc::new(plan), chosen: None, merged: None }
    }

    /// What was decided, in a step that comes after that.
    pub fn chosen(&self) -> Result<&DeletionPlan, Failure> {
        self.chosen
            .as_ref()
            .ok_or_else(|| Failure::new(Code::Internal, "a backup was to be deleted before it was decided which"))
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
