//! What a restore would do, as it is told where nothing is done.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use super::instance::ImageFormat;

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedRestore {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among the backups of its instance.
    pub number: u64,
    /// The moment of the guest that it shows.
    pub taken_at: Timestamp,
    /// The volumes that would be made.
    pub volumes: Vec<PlannedVolume>,
    /// Other files that would be made.
    #[serde(default)]
    pub files: Vec<String>,
    /// Bytes that would be written as data, at most.
    pub data_bytes: u64,
    /// The instance that would be made of the backup, if one would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_instance: Option<PlannedInstance>,
    /// The instance that the volume would be attached to, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_to: Option<PlannedInstance>,
}

/// One volume that a restore would make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedVolume {
    /// The backup's disk.
    pub disk: DiskTarget,
    /// The disk that it would be of its instance; the backup's where it has none.
    pub target: DiskTarget,
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// Size that the guest would see, bytes.
    pub virtual_bytes: u64,
    /// Bytes that would be written as data, at most; the rest would read as zeros. Of what is written over: all of it.
    pub data_bytes: u64,
    /// It would take the place of the volume that is there.
    pub replaces: bool,
    /// It would be written over the block device that is there, for which there is no way back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrites: bool,
}

/// An instance that would take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedInstance {
    /// Its uuid.
    pub id: InstanceId,
    /// That uuid was drawn for this plan, as the job names none: the restore draws another one, and so does every other plan. The MAC addresses
    /// follow from it, where they are not preserved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub id_is_drawn: bool,
    /// Its name.
    pub name: InstanceName,
    /// It is new, and would be started.
    pub start: bool,
}
