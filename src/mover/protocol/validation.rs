//! What is asked of a validation.

use serde::{Deserialize, Serialize};

use crate::model::id::{BackupId, InstanceId};
use crate::model::validation::ValidationLevel;

/// What is looked at in a repository, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedValidation {
    /// How far.
    pub level: ValidationLevel,
    /// Whose backups; empty means all.
    pub instances: Vec<InstanceId>,
    /// Only this backup of them, with what it is based on.
    pub backup: Option<BackupId>,
    /// Bytes of disks that are read within a second, at most.
    pub max_bytes_per_second: Option<u64>,
    /// Findings that are told, at most; all are counted.
    pub findings_max: usize,
}
