//! The volumes that a restore in place makes, and where each of them is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;

/// One volume that a restore makes of a backup's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredVolume {
    /// The backup's disk, which names its image `<disk>.qcow2` and its block hashes `<disk>.blocks`.
    pub disk: DiskTarget,
    /// The size the guest sees, bytes, as the manifest has it.
    pub virtual_bytes: u64,
    /// Hash over the block hashes, hex, as the manifest has it.
    pub content_root: String,
    /// Format of the new volume.
    pub format: ImageFormat,
    /// Where it comes to be.
    pub place: VolumePlace,
}

/// Where a volume is, and under which names the new and the old one are while they are exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumePlace {
    /// A file.
    File {
        /// The file whose place the new one takes, and whose owner, mode and label it gets.
        volume: PathBuf,
        /// Where the new one is made: beside `volume`, under a name that is this attempt's alone.
        fresh: PathBuf,
        /// Where the old one goes: beside it too, under a name that is this attempt's alone.
        previous: PathBuf,
    },
}

impl VolumePlace {
    /// The volume, as the instance's definition names it.
    pub fn volume(&self) -> &Path {
        match self {
            VolumePlace::File { volume, .. } => volume,
        }
    }

    /// The new volume until it takes its place; none where there is never a second one.
    pub fn fresh(&self) -> Option<&Path> {
        match self {
            VolumePlace::File { fresh, .. } => Some(fresh),
        }
    }

    /// The old volume once its place is taken; none where it is written over.
    pub fn previous(&self) -> Option<&Path> {
        match self {
            VolumePlace::File { previous, .. } => Some(previous),
        }
    }
}
