//! The door to the hypervisor: the dozen things a worker asks of libvirt, in our words and with typed failures.
//!
//! Every call has a deadline of its own; one that does not return in time fails as `hypervisor_timed_out` and its thread
//! is left behind, counted in [`Hypervisor::stuck_calls`], until libvirt answers; until then its effect may still come.
//! What had not been sent to libvirt when its caller gave up is never sent. Events are hints: a caller asks for
//! the state after each and every few seconds besides. Nothing here decides anything about jobs.

mod additions;
pub mod definition;
pub mod fake;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod versions;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use self::additions::{Identity, NewDisk, NewInstance};
use crate::failure::Failure;
use crate::model::id::{DiskTarget, InstanceId, InstanceName, InstanceRef};
use crate::model::instance::{Instance, PowerState};
use crate::model::network::SecretRef;
use crate::model::owner::Owner;
use crate::mover::protocol::StorageKey;

/// A version as major, minor, release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Versions on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The libvirt daemon's.
    pub libvirt: Version,
    /// The QEMU it starts.
    pub qemu: Version,
}

/// An instance in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceSummary {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
    /// What it is doing.
    pub state: PowerState,
}

/// A file system in the guest, as the agent lists it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GuestFileSystem {
    /// Where it is mounted in the guest.
    pub mount_point: String,
    /// Its type in the guest's word, such as `ext4`.
    pub kind: String,
    /// The guest's name of its device, such as `vda1`.
    pub device: String,
    /// The domain's disks it lies on, as far as libvirt can map them.
    pub disks: Vec<DiskTarget>,
}

/// What the agent says of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GuestInfo {
    /// Operating system, hostname and so on, under libvirt's own parameter names (`os.id`, `hostname`).
    pub facts: std::collections::BTreeMap<String, String>,
    /// Mounted file systems.
    pub file_systems: Vec<GuestFileSystem>,
}

/// Whether the guest's file systems are frozen, as the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeStatus {
    /// Writes go through.
    Thawed,
    /// Writes wait.
    Frozen,
}

/// One disk of a pull backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullDisk {
    /// The domain's disk; it is also the name of its NBD export.
    pub target: DiskTarget,
    /// Where QEMU keeps what the guest overwrites meanwhile; a qcow2 file that libvirt makes and removes.
    pub scratch: PathBuf,
    /// The checkpoint since which the export tells what was written to, in the context [`dirty_context`].
    pub since: Option<String>,
}

/// The NBD context in which the export of a pull backup tells what of a disk was written to since its checkpoint: the name that QEMU
/// gives to the bitmap that libvirt makes of its checkpoints.
pub fn dirty_context(target: &DiskTarget) -> String {
    format!("qemu:dirty-bitmap:backup-{target}")
}

/// A checkpoint to make in the moment of a backup: from then on what is written to its disks is kept in mind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Its name, which the domain has not given yet.
    pub name: String,
    /// Those of the backup's disks that can keep it: their images are qcow2 of version 3.
    pub disks: Vec<DiskTarget>,
}

/// A pull backup to begin: all disks at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullBackup {
    /// Unix socket on which QEMU serves NBD; it is also how the job is known to be ours.
    pub socket: PathBuf,
    /// The disks.
    pub disks: Vec<PullDisk>,
    /// Checkpoint to make in the same moment.
    pub checkpoint: Option<NewCheckpoint>,
}

/// One disk of a push backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushDisk {
    /// The domain's disk.
    pub target: DiskTarget,
    /// A qcow2 file of the disk's virtual size that exists already.
    pub image: PathBuf,
    /// The checkpoint since which what was written to is written; none for all of the disk.
    pub since: Option<String>,
}

/// A push backup to begin: all disks at one moment, into files that exist already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushBackup {
    /// The disks.
    pub disks: Vec<PushDisk>,
    /// Checkpoint to make in the same moment.
    pub checkpoint: Option<NewCheckpoint>,
}

/// The libvirt job that a domain has now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DomainJob {
    /// A pull backup, known by its socket.
    Pull {
        /// The NBD socket.
        socket: PathBuf,
    },
    /// A push backup, known by its target files.
    Push {
        /// The target files.
        images: Vec<PathBuf>,
    },
    /// Anything else: a migration, a snapshot, a save.
    Other,
}

/// Figures of a running backup job, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainJobStats {
    /// Sum over all disks (push; libvirt has none for pull).
    pub total_bytes: u64,
    /// Done so far (push).
    pub processed_bytes: u64,
    /// In use by scratch files (pull).
    pub scratch_used_bytes: u64,
}

/// How a domain's latest backup job ended, as libvirt remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedJob {
    /// libvirt calls it a success, which says nothing of what a target file holds.
    pub success: bool,
    /// What libvirt says went wrong.
    pub message: Option<String>,
    /// Bytes that were to be written of all disks of a push, in clusters of 64 KiB; none where libvirt doesn't tell, as after a restart of
    /// its daemon or where nothing was to be written.
    pub total_bytes: Option<u64>,
    /// Bytes that were left to do; none where libvirt doesn't tell, as after a restart of its daemon.
    pub remaining_bytes: Option<u64>,
    /// The number of the connection that answered. It is another after a restart of libvirt's daemon.
    pub connection: u64,
}

/// What one disk has done for its guest so far. Only requests that are done are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteCounters {
    /// The domain's disk.
    pub target: DiskTarget,
    /// Writes.
    pub writes: u64,
    /// What they took together, nanoseconds.
    pub write_ns: u64,
    /// Flushes.
    pub flushes: u64,
    /// What they took together, nanoseconds.
    pub flush_ns: u64,
}

/// Most hints that wait for one watcher.
pub const WATCH_EVENTS_MAX: usize = 64;

/// A hint that something happened to a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// It started, stopped, paused or resumed: ask for its state.
    Lifecycle,
    /// A block job of a disk ended.
    BlockJob {
        /// The disk.
        target: DiskTarget,
        /// It ended well.
        completed: bool,
    },
    /// The connection to libvirt was lost and found again: ask for everything.
    Reconnected,
}

/// The door. Futures may be dropped: a call that was sent goes on all the same, one that was not is never sent.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Versions of libvirt and QEMU.
    async fn versions(&self) -> Result<Versions, Failure>;
    /// Who QEMU runs as: for this instance or, without one, for those that don't ask for another user. None where libvirt
    /// doesn't change the user, so that QEMU runs as libvirt itself does. Slow where libvirt has to look at the host for it; a running instance's own
    /// description is enough.
    async fn qemu_owner(&self, instance: Option<InstanceId>) -> Result<Option<Owner>, Failure>;
    /// The process id of the running instance's QEMU, which runs as `owner`, the answer of [`Hypervisor::qemu_owner`].
    /// `instance_state_unsupported`: there is none to be seen.
    async fn qemu_process(&self, instance: InstanceId, owner: Option<Owner>) -> Result<u32, Failure>;
    /// The memory that the host has in all, bytes.
    async fn memory_bytes(&self) -> Result<u64, Failure>;
    /// All instances of the host.
    async fn instances(&self) -> Result<Vec<InstanceSummary>, Failure>;
    /// One instance with its disks. `instance_not_here` when there is none, `instance_ambiguous` for a name that fits two.
    async fn find(&self, instance: &InstanceRef) -> Result<Instance, Failure>;
    /// The same for a listing: it holds up no other call, and leaves the sizes out where the instance's last survey has not
    /// come back.
    async fn survey(&self, instance: InstanceId) -> Result<Instance, Failure>;
    /// What the disks of a running instance have written so far. Asked often, so it does not wait for other calls: what can't be
    /// told at once is left out.
    async fn write_counters(&self, instance: InstanceId) -> Result<Vec<WriteCounters>, Failure>;
    /// What an instance is doing now.
    async fn state(&self, instance: InstanceId) -> Result<PowerState, Failure>;

    /// Asks the agent for a sign of life within `timeout`. `agent_missing`, `agent_silent`.
    async fn agent_ping(&self, instance: InstanceId, timeout: Duration) -> Result<(), Failure>;
    /// What the agent says of the guest within `timeout`.
    async fn guest_info(&self, instance: InstanceId, timeout: Duration) -> Result<GuestInfo, Failure>;
    /// Freezes all file systems; answers how many. After an error the guest may freeze later all the same.
    async fn freeze(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure>;
    /// Thaws all file systems; answers how many. Thawing a thawed guest is no error.
    async fn thaw(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure>;
    /// Whether the guest is frozen.
    async fn freeze_status(&self, instance: InstanceId, timeout: Duration) -> Result<FreezeStatus, Failure>;

    /// Begins a pull backup; when this returns the moment is taken. `instance_busy` when another job holds the domain;
    /// `hypervisor_failed` where libvirt refuses, such as for a checkpoint that is not whole, and then nothing has begun.
    async fn begin_pull(&self, instance: InstanceId, backup: &PullBackup) -> Result<(), Failure>;
    /// Begins a push backup into existing files; likewise.
    async fn begin_push(&self, instance: InstanceId, backup: &PushBackup) -> Result<(), Failure>;
    /// The libvirt job the domain has, if any.
    async fn domain_job(&self, instance: InstanceId) -> Result<Option<DomainJob>, Failure>;
    /// Figures of the running backup job; none when there is no job.
    async fn domain_job_stats(&self, instance: InstanceId) -> Result<Option<DomainJobStats>, Failure>;
    /// How the domain's latest backup job ended; none when libvirt remembers none. It remembers one, until the next.
    async fn ended_job(&self, instance: InstanceId) -> Result<Option<EndedJob>, Failure>;
    /// Lets libvirt forget how the latest job ended, so that what it remembers later is a later one's. Answers the number of the
    /// connection, as [`EndedJob::connection`].
    async fn forget_ended_job(&self, instance: InstanceId) -> Result<u64, Failure>;
    /// Asks for the end of the domain's job if it is `ours`, which for a pull backup is also its normal end. No job is no
    /// error; another job is `instance_busy` and left alone. It may return before the job is gone: that is so when
    /// [`Hypervisor::domain_job`] and [`Hypervisor::block_jobs`] say so.
    async fn abort_job(&self, instance: InstanceId, ours: &DomainJob) -> Result<(), Failure>;
    /// Lets a paused instance run again, whatever paused it. One that runs is no error.
    async fn resume(&self, instance: InstanceId) -> Result<(), Failure>;
    /// Disks that still have a block job.
    async fn block_jobs(&self, instance: InstanceId) -> Result<Vec<DiskTarget>, Failure>;

    /// Names of the domain's checkpoints.
    async fn checkpoints(&self, instance: InstanceId) -> Result<Vec<String>, Failure>;
    /// Makes a checkpoint known again that the domain had, of a moment in seconds since 1970: a definition made anew, or another host, has
    /// the bitmaps in the images and not their names. `hypervisor_failed` where there is no such bitmap.
    async fn redefine_checkpoint(
        &self,
        instance: InstanceId,
        checkpoint: &NewCheckpoint,
        made_at: i64,
    ) -> Result<(), Failure>;
    /// Deletes a checkpoint of a running instance with what bitmaps of it there are. None of that name is no error.
    /// `instance_state_unsupported`: it does not run, and only QEMU takes a bitmap out of an image in use.
    async fn delete_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure>;
    /// Deletes the name of a checkpoint whose bitmaps are gone. None of that name is no error.
    async fn forget_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure>;

    /// What the instances of the host have that no other may have as well. One that is undefined meanwhile is left out; one whose
    /// description cannot be read is `hypervisor_failed`, as nobody could say what it has.
    async fn identities(&self) -> Result<Vec<Identity>, Failure>;
    /// Defines an instance that is not there. Asked again, it finds by whom it was defined. `instance_exists`: another one has its name or
    /// uuid, and nothing was changed. `instance_busy`: another definition is under way. `restore_unfinished`: somebody defined over it. Any
    /// other error means that it is not there, but for a call that did not return in time.
    async fn define(&self, new: &NewInstance) -> Result<(), Failure>;
    /// Starts an instance that is shut off. One that runs is no error. `instance_state_unsupported`: it is neither.
    async fn start(&self, instance: InstanceId) -> Result<(), Failure>;
    /// Makes a file a disk of an instance: in its definition and, if it runs, in what it runs with. When this returns it has been seen there;
    /// asked again, it is seen. `disk_target_in_use`: another disk has its target or serial number. `restore_unfinished`: it came to be in
    /// one of the two. Any other error means that it is in neither, but for a call that did not return in time.
    async fn attach(&self, instance: InstanceId, disk: &NewDisk) -> Result<(), Failure>;

    /// Whether a file is that disk of an instance, in its definition and in what it runs with. Errors as of [`Hypervisor::attach`].
    async fn is_attached(&self, instance: InstanceId, disk: &NewDisk) -> Result<bool, Failure>;

    /// The key that the hypervisor keeps under that name, which goes to a mover and nowhere else. `credentials_unreadable`: it keeps none,
    /// or gives it to nobody.
    async fn secret(&self, secret: &SecretRef) -> Result<StorageKey, Failure>;

    /// Hints about one instance from now on; at most [`WATCH_EVENTS_MAX`] wait, further ones are dropped.
    async fn watch(&self, instance: InstanceId) -> Result<mpsc::Receiver<DomainEvent>, Failure>;
    /// Calls that nobody waits for any more and that have not returned yet: what, on what, since when. Their effect may
    /// still come.
    fn stuck_calls(&self) -> Vec<StuckCall>;
}

/// A call that has not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckCall {
    /// The door's word for the call.
    pub call: &'static str,
    /// The instance it is about, if any.
    pub instance: Option<InstanceId>,
    /// When it was made.
    pub since: jiff::Timestamp,
}
