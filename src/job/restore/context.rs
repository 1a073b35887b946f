//! What the steps of one restore hand to each other.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::overwrite;
use super::plan::RestorePlan;
use super::result::DryRun;
use crate::failure::{Code, Failure};
use crate::job::common::{Common, JobContext};
use crate::job::settings::JobSettings;
use crate::job::{Attempt, Doors, JobProgress};
use crate::model::id::DiskTarget;
use crate::mover::protocol::{CopiedDisk, RestoredVolume};
use crate::saga::{End, Outcome};

/// What was decided once the backup was seen. It stands in the records, so that a later worker can take it back or bring it to its
/// end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Choice {
    /// The backup's place among those of its instance.
    pub number: u64,
    /// The moment that it shows.
    pub taken_at: Timestamp,
    /// The instance's disk of each of `volumes`.
    pub targets: Vec<DiskTarget>,
    /// What is asked of the mover.
    pub volumes: Vec<RestoredVolume>,
    /// What is unusual.
    pub warnings: Vec<String>,
}

/// What the new volumes hold, and what is unusual about them. It stands in the records, so that a later worker can tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    /// Each of them.
    pub disks: Vec<CopiedDisk>,
    /// In a sentence each.
    pub warnings: Vec<String>,
}

/// The steps' common state.
pub(super) struct Context {
    /// What it has in common with every other job.
    pub common: Common,
    /// The plan.
    pub plan: Arc<RestorePlan>,
    /// What was decided; after a crash from the records.
    pub choice: Option<Choice>,
    /// What the new volumes hold; after a crash from the records.
    pub copied: Copied,
    /// Block devices are written over, or were; after a crash, may have been.
    pub overwriting: bool,
    /// What a dry run says; after a crash from the records.
    pub told: Option<DryRun>,
    /// The volumes' exchange was asked for; after a crash, may have been.
    pub exchange_asked: bool,
    /// The task that watches over the instance.
    pub watch: Option<AbortOnDropHandle<()>>,
}

impl Context {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        plan: RestorePlan,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        Self {
            common: Common::new(doors, settings, attempt, plan.wants(), progress),
            plan: Arc::new(plan),
            choice: None,
            copied: Copied::default(),
            overwriting: false,
            told: None,
            exchange_asked: false,
            watch: None,
        }
    }

    /// What was decided, in a step that comes after that.
    pub fn choice(&self) -> Result<&Choice, Failure> {
        self.choice
            .as_ref()
            .ok_or_else(|| Failure::new(Code::Internal, "a volume was to be restored before it was decided which"))
    }

    /// Adds what the steps could only warn of, and where to look when nobody knows what became of the volumes.
    pub fn finish(self, mut outcome: Outcome) -> Outcome {
        if let (true, Some(choice)) = (self.overwriting, &self.choice) {
            outcome = overwrite::end(outcome, &choice.volumes);
        }
        if let (End::Failed { failure }, Some(choice)) = (&outcome.end, &self.choice)
            && failure.code == Code::RestoreUnfinished
        {
            outcome.warnings.extend(choice.volumes.iter().map(whereabouts));
        }
        outcome.warnings.extend(self.common.late_warnings);
        outcome
    }
}

fn whereabouts(volume: &RestoredVolume) -> Failure {
    let place = volume.place.volume().display();
    let text = match (volume.place.fresh(), volume.place.previous()) {
        (Some(fresh), Some(previous)) => {
            let [fresh, previous] = [fresh, previous].map(|path| path.display());
            format!(
                "the old volume is `{previous}` if that is there, else `{place}`; the new one is `{fresh}` if that is there"
            )
        }
        _ => {
            format!("`{place}` was to be written over, and may hold a part of the backup and a part of what was there")
        }
    };
    Failure::new(Code::RestoreUnfinished, text)
}

impl JobContext for Context {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}
