//! What is asked about a restore that is only told of.

use serde::{Deserialize, Serialize};

use super::{NewContent, NewFiles, RestoredVolume};
use crate::model::id::{BackupId, DiskTarget, InstanceId};

/// A restore that is only told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToWeigh {
    /// The instance whose backup it is.
    pub instance: InstanceId,
    /// The backup.
    pub backup: BackupId,
    /// What would be made.
    pub to_make: ToMake,
}

/// What it would make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMake {
    /// Files where nothing is.
    New(NewFiles),
    /// Volumes in the places of others.
    InPlace {
        /// The volumes.
        volumes: Vec<RestoredVolume>,
        /// The old ones would stay.
        keep_previous: bool,
    },
}

/// How much a restore would write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighed {
    /// Bytes that the backup stores of each disk as data, with what it is based on, at most.
    pub data_bytes: Vec<u64>,
    /// Why it would be refused now though it need not be later, in a sentence each.
    pub warnings: Vec<String>,
}

impl ToMake {
    /// The backup's disks that it is made of, in their order.
    pub fn disks(&self) -> Vec<&DiskTarget> {
        match self {
            ToMake::New(new) => new.files.iter().filter_map(|file| disk_of(&file.content)).collect(),
            ToMake::InPlace { volumes, .. } => volumes.iter().map(|volume| &volume.disk).collect(),
        }
    }
}

fn disk_of(content: &NewContent) -> Option<&DiskTarget> {
    match content {
        NewContent::Disk { disk, .. } => Some(disk),
        NewContent::Record { .. } => None,
    }
}
