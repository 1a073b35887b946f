//! What can be decided before the repository is looked at: whose backup it is, and under which names. Journalled before the first step;
//! what goes and what is merged is journalled by the step that looks.

use serde::{Deserialize, Serialize};

use crate::job::Attempt;
use crate::job::common::Wants;
use crate::job::names::mover_name;
use crate::job::settings::JobSettings;
use crate::model::deletion::DeleteMode;
use crate::model::id::{BackupId, InstanceId};
use crate::model::job::{DeleteSpec, RunKey};

/// What will be done, and under which names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePlan {
    /// The backup.
    pub backup_id: BackupId,
    /// The instance that it is of.
    pub instance_id: InstanceId,
    /// How far the deletion may go.
    pub mode: DeleteMode,
    /// Nothing is deleted.
    pub dry_run: bool,
    /// An earlier attempt of the run may have deleted it, so that it is no failure when it is not there.
    #[serde(default)]
    pub may_be_gone: bool,
    /// Name of the mover.
    pub mover_name: String,
    /// Part of the names of merged images, which no other attempt of this or any other job has.
    pub suffix: String,
}

impl DeletePlan {
    /// What it wants of the mover and the repository. How much room a merge takes is looked at by who makes it.
    pub(in crate::job) fn wants(&self) -> Wants {
        Wants { mover_name: self.mover_name.clone(), instance: Some(self.instance_id), need_bytes: 0, writer: None }
    }
}

/// Makes the plan.
pub(super) fn plan(
    settings: &JobSettings,
    attempt: &Attempt,
    spec: &DeleteSpec,
    instance_id: InstanceId,
) -> DeletePlan {
    let DeleteSpec { backup_id, mode, dry_run } = *spec;
    let RunKey { job_id, run } = attempt.job.key;
    let suffix = format!("{}.{job_id}.{run}.{}", settings.installation, attempt.attempt);
    let may_be_gone = attempt.attempt > 1 && !dry_run;
    DeletePlan { backup_id, instance_id, mode, dry_run, may_be_gone, mover_name: mover_name(attempt), suffix }
}
