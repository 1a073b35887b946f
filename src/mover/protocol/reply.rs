//! What a mover answers when what was asked for has gone well.

use serde::{Deserialize, Serialize};

use super::{BlockDevice, CopiedDisk, SealedFile, Weighed};
use crate::failure::Failure;
use crate::model::deletion::Member;
use crate::model::id::{DiskTarget, InstanceId};
use crate::model::manifest::Manifest;
use crate::model::validation::Validation;

/// A good answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The repository is mounted and right.
    Opened {
        /// Free bytes.
        free_bytes: u64,
        /// What is unusual about it though not wrong.
        warnings: Vec<String>,
    },
    /// The lease is ours.
    Leased {
        /// The fencing number.
        number: u64,
    },
    /// The disks are copied.
    Copied {
        /// Each of them.
        disks: Vec<CopiedDisk>,
        /// What did not work though the images are good.
        warnings: Vec<String>,
    },
    /// The images are where QEMU can write them.
    Exposed {
        /// Disks that can't stand on what they were to be based on, and why; QEMU has to write all of them.
        unusable: Vec<(DiskTarget, String)>,
    },
    /// The staging directory is whole and on stable storage.
    Sealed {
        /// Every file in it.
        files: Vec<SealedFile>,
    },
    /// The backup is published.
    Published {
        /// Its place among the backups of its instance.
        number: u64,
        /// What did not work though the backup is good.
        warnings: Vec<String>,
    },
    /// The backup was to be published, or the volumes to be exchanged or named, and it can't be seen now what came of it.
    NotKnown {
        /// What is in the way of seeing it.
        failure: Failure,
    },
    /// That backup is published.
    Found {
        /// As it is on the share.
        manifest: Box<Manifest>,
    },
    /// A file of that backup.
    Record {
        /// What it holds.
        #[serde(with = "serde_bytes")]
        content: Vec<u8>,
    },
    /// What the block devices are.
    Devices {
        /// Each of them, in the order in which they were named.
        devices: Vec<BlockDevice>,
    },
    /// Nothing is there yet.
    Places {
        /// The inode of each new file's directory.
        directories: Vec<u64>,
    },
    /// A restore would write so much.
    Weighed(Weighed),
    /// The new files are made.
    MadeNew {
        /// Each disk.
        disks: Vec<CopiedDisk>,
        /// The inode of each file.
        inodes: Vec<u64>,
    },
    /// The latest backup of the instance.
    Latest {
        /// Its manifest, after those of the backups below it, as far as they are there. Empty where there is none.
        backups: Vec<Manifest>,
        /// How many backups of the instance can't be read.
        unreadable: u64,
    },
    /// What of the backups of the instance is based on what.
    Chains {
        /// All of them, in no order.
        members: Vec<Member>,
    },
    /// The images are made and proven.
    Merged {
        /// What they take, bytes, and those that have taken their places already.
        bytes: u64,
        /// What the child's images take now, bytes.
        replaced_bytes: u64,
    },
    /// The repository is unmounted.
    Closed {
        /// What did not work though nothing is left mounted for others.
        warnings: Vec<String>,
    },
    /// The repository was looked at.
    Validated {
        /// What was found.
        validation: Box<Validation>,
        /// Instances with something that attempts left which were cut off.
        left_overs: Vec<InstanceId>,
    },
    /// What attempts that were cut off had left of an instance is gone.
    Swept {
        /// Names of the directories that were removed.
        removed: Vec<String>,
    },
    /// Those of the images that are there.
    Images {
        /// Pool, namespace and image of each, in the order in which they were named.
        there: Vec<String>,
    },
    /// Nothing to add but that.
    DoneBut {
        /// What did not work though all else is good.
        warnings: Vec<String>,
    },
    /// Nothing to add.
    Done,
}
