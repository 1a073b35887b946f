//! What will be done, and under which names. Journalled before the first step.

use serde::{Deserialize, Serialize};

use crate::job::Attempt;
use crate::job::common::Wants;
use crate::job::names::mover_name;
use crate::model::job::{RunKey, ValidateSpec};

/// The plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidatePlan {
    /// Job and run.
    pub key: RunKey,
    /// Attempt within the run.
    pub attempt: u32,
    /// What attempts that were cut off have left is removed.
    pub sweep: bool,
    /// Name of the mover.
    pub mover_name: String,
}

impl ValidatePlan {
    /// What it wants of the mover and the repository: neither room nor a lease that is held all along.
    pub(in crate::job) fn wants(&self) -> Wants {
        Wants { mover_name: self.mover_name.clone(), instance: None, need_bytes: 0, writer: None }
    }
}

/// Makes the plan.
pub fn plan(attempt: &Attempt, spec: &ValidateSpec) -> ValidatePlan {
    ValidatePlan { key: attempt.job.key, attempt: attempt.attempt, sweep: spec.sweep, mover_name: mover_name(attempt) }
}
