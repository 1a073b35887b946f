//! What the host's configuration says about backups, and the limits that no configuration changes.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::id::{HostId, InstallationId};
use crate::model::job::Transfer;

/// The host's part of every backup.
#[derive(Clone, Debug)]
pub struct JobSettings {
    /// The host; its id begins the name of everything that a job leaves on it.
    pub host: HostId,
    /// The worker's installation.
    pub installation: InstallationId,
    /// Directory for the directories of pull exports' sockets, absolute, on a local file system; QEMU's user can pass it. Short,
    /// since a socket's path has at most 107 bytes.
    pub run_dir: PathBuf,
    /// Directory for the scratch of pull backups, absolute, on a local disk; QEMU's user can pass it.
    pub scratch_dir: PathBuf,
    /// Bytes that the scratch of one job may take; none means the free room less a tenth.
    pub scratch_limit_bytes: Option<u64>,
    /// A copy that moves no byte for this long has failed.
    pub stall_limit: Duration,
    /// Longest time that a guest may stay frozen before its guard thaws it, and that a freeze call may take.
    pub freeze_limit: Duration,
    /// A repository may be on the device of its parent directory.
    pub same_device_ok: bool,
    /// A job that leaves it to the host is pushed, and not pulled.
    pub auto_push: bool,
    /// Directories below which a restore may make volumes that were not there, absolute.
    pub volume_roots: Vec<PathBuf>,
}

impl JobSettings {
    /// Whether QEMU is to write a running instance's images to the share itself.
    pub fn pushes(&self, asked: Transfer) -> bool {
        match asked {
            Transfer::Push => true,
            Transfer::Pull => false,
            Transfer::Auto => self.auto_push,
        }
    }
}

/// Longest path of a unix socket, bytes: `sun_path` has 108 with its closing zero (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Scratch smaller than this, or than all disks together where those are smaller, is not worth beginning with, bytes.
pub const SCRATCH_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Part of the free room of the scratch's file system that is left to others: one of so many.
pub const SCRATCH_RESERVE_DIVISOR: u64 = 10;

/// Room wanted in the repository over what the disks hold, for image metadata and records, bytes.
pub const REPOSITORY_MARGIN_BYTES: u64 = 64 * 1024 * 1024;
