//! What a restore makes where nothing is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;

/// Files that are made together, and get their names together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFiles {
    /// Directories below which they may be. They are the operator's, and may be reached by links; nothing below them is.
    pub roots: Vec<PathBuf>,
    /// The files.
    pub files: Vec<NewFile>,
    /// Paths at which nothing is either, where somebody else is to make a file: looked at, and no more.
    pub vacant: Vec<PathBuf>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// What it holds.
    pub content: NewContent,
    /// Its name, which nothing has.
    pub path: PathBuf,
    /// Where it is until then: beside it, under a name that is this attempt's alone.
    pub fresh: PathBuf,
    /// The inode of the directory that both are in, once somebody has looked: another directory in its place, such as that of a mount
    /// which is missing, says nothing about the files. Devices have other numbers after a boot.
    pub directory: Option<u64>,
    /// The inode of the new file, once it is made: a file of another one is somebody else's.
    pub made: Option<u64>,
}

/// What of a backup a new file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewContent {
    /// A disk.
    Disk {
        /// The backup's disk, which names its image `<disk>.qcow2` and its block hashes `<disk>.blocks`.
        disk: DiskTarget,
        /// The size the guest sees, bytes, as the manifest has it.
        virtual_bytes: u64,
        /// Hash over the block hashes, hex, as the manifest has it.
        content_root: String,
        /// Format of the new file.
        format: ImageFormat,
    },
    /// A file beside the images, as it is.
    Record {
        /// Its name, one of the manifest's records.
        file: String,
    },
}
