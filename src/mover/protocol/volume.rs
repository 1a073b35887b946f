//! The volumes that a restore in place makes, and where each of them is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DeviceNumbers;
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;
use crate::model::network::{NetworkAccess, SecretRef};

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
    /// A logical volume of LVM. All three are in one volume group.
    Logical {
        /// The device, as the definition names it: a name that the new one has once it is in its place.
        volume: PathBuf,
        /// The volume group.
        group: String,
        /// The volume's name there.
        name: String,
        /// What the old one is known by, whatever has its name by now; none in a plan of before that was told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
        /// The new one's device: `/dev/<group>/` and a name that is this attempt's alone.
        fresh: PathBuf,
        /// The old one's device, likewise.
        previous: PathBuf,
    },
    /// A block device that is written over, for want of a second one.
    Device {
        /// The device, as the definition names it.
        volume: PathBuf,
        /// What it was when the restore was planned.
        numbers: DeviceNumbers,
    },
    /// An RBD image. All three are in one pool, and one namespace of it.
    Rbd {
        /// The way to its cluster.
        access: Box<NetworkAccess>,
        /// Pool and image, or pool, namespace and image.
        volume: PathBuf,
        /// The new one, likewise, under a name that is this attempt's alone.
        fresh: PathBuf,
        /// The old one, likewise.
        previous: PathBuf,
    },
}

impl VolumePlace {
    /// The volume, as the instance's definition names it.
    pub fn volume(&self) -> &Path {
        match self {
            VolumePlace::File { volume, .. }
            | VolumePlace::Logical { volume, .. }
            | VolumePlace::Rbd { volume, .. }
            | VolumePlace::Device { volume, .. } => volume,
        }
    }

    /// The new volume until it takes its place; none where there is never a second one.
    pub fn fresh(&self) -> Option<&Path> {
        match self {
            VolumePlace::File { fresh, .. } | VolumePlace::Logical { fresh, .. } | VolumePlace::Rbd { fresh, .. } => {
                Some(fresh)
            }
            VolumePlace::Device { .. } => None,
        }
    }

    /// The old volume once its place is taken; none where it is written over.
    pub fn previous(&self) -> Option<&Path> {
        match self {
            VolumePlace::File { previous, .. }
            | VolumePlace::Logical { previous, .. }
            | VolumePlace::Rbd { previous, .. } => Some(previous),
            VolumePlace::Device { .. } => None,
        }
    }

    /// The secret without which nothing is done to it.
    pub fn secret(&self) -> Option<&SecretRef> {
        match self {
            VolumePlace::Rbd { access, .. } => access.secret.as_ref(),
            VolumePlace::File { .. } | VolumePlace::Logical { .. } | VolumePlace::Device { .. } => None,
        }
    }

    /// What is written to one of them may be seen in the other.
    pub fn overlaps(&self, other: &VolumePlace) -> bool {
        let same = match (self, other) {
            (
                VolumePlace::Logical { group, name, .. },
                VolumePlace::Logical { group: other_group, name: other_name, .. },
            ) => (group, name) == (other_group, other_name),
            (VolumePlace::Device { numbers, .. }, VolumePlace::Device { numbers: other, .. }) => {
                numbers.overlaps(other)
            }
            _ => false,
        };
        same || self.volume() == other.volume()
    }
}
