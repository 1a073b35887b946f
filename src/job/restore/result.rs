//! What comes of a restore.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::ImageFormat;
use crate::model::restoration::PlannedRestore;

/// The volumes that were made, and what they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreResult {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among those of its instance.
    pub number: u64,
    /// The moment that it shows.
    pub taken_at: Timestamp,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The instance that was made.
    pub new_instance: Option<Named>,
    /// The instance that the volume was attached to.
    pub attached_to: Option<Named>,
    /// What is unusual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
}

/// One volume that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The backup's disk.
    pub disk: DiskTarget,
    /// The disk that it is of its instance; the backup's where it has none.
    pub target: DiskTarget,
    /// The file.
    pub volume: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Where the old one is, if it was to be kept.
    pub previous: Option<PathBuf>,
    /// Size that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Bytes written as data.
    pub data_bytes: u64,
    /// Hash over the block hashes, hex.
    pub content_root: String,
}

impl RestoreResult {
    /// Of a restore whose volumes have taken their places.
    pub(super) fn of(context: &Context) -> Result<Self, Failure> {
        let (choice, copied) = (context.choice()?, &context.copied);
        let pairs = choice.targets.iter().zip(&choice.volumes);
        let volumes = pairs.map(|(target, volume)| Volume {
            disk: volume.disk.clone(),
            target: target.clone(),
            volume: volume.place.volume().to_owned(),
            format: volume.format,
            previous: volume.place.previous().filter(|_| context.plan.keep_previous).map(Path::to_owned),
            virtual_bytes: volume.virtual_bytes,
            data_bytes: copied.disks.iter().find(|disk| disk.target == volume.disk).map_or(0, |disk| disk.data_bytes),
            content_root: volume.content_root.clone(),
        });
        Ok(Self {
            backup_id: context.plan.backup_id,
            number: choice.number,
            taken_at: choice.taken_at,
            volumes: volumes.collect(),
            new_instance: None,
            attached_to: None,
            warnings: [&choice.warnings, &copied.warnings, &context.common.warnings]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        })
    }

    /// As the commit's value.
    pub(super) fn to_value(&self) -> Result<Value, Failure> {
        serde_json::to_value(self).map_err(|error| {
            Failure::new(Code::Internal, "cannot write down the result of the restore").because(&error)
        })
    }
}

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRun {
    /// That.
    pub would: PlannedRestore,
    /// What is unusual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl DryRun {
    /// As the commit's value.
    pub(super) fn to_value(&self) -> Result<Value, Failure> {
        serde_json::to_value(self).map_err(|error| {
            Failure::new(Code::Internal, "cannot write down what the restore would do").because(&error)
        })
    }
}

/// The value of a completed saga.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum RestoreValue {
    /// Of a dry run.
    DryRun(DryRun),
    /// Of a restore.
    Restored(RestoreResult),
}

impl RestoreValue {
    /// Reads it.
    pub fn from_value(value: &Value) -> Result<Self, Failure> {
        Self::deserialize(value)
            .map_err(|error| Failure::new(Code::Internal, "cannot read the result of the restore").because(&error))
    }
}
