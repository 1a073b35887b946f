//! What is asked about a restore that is only told of.

use serde::{Deserialize, Serialize};

use super::NewFiles;
use crate::model::id::{BackupId, DiskTarget, InstanceId};

/// What a restore would make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToWeigh {
    /// The instance whose backup it is.
    pub instance: InstanceId,
    /// The backup.
    pub backup: BackupId,
    /// Disks of it.
    pub disks: Vec<DiskTarget>,
    /// The files that would be made of them, in their order, where there are none yet.
    pub new: Option<NewFiles>,
}
