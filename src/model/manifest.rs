//! The manifest of a backup: the file that makes a directory on the share a backup, and says what it is and how it was
//! proven. JSON, for people and programs that know nothing of Longshore; a reader skips fields that it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::{BackupId, DiskTarget, HostId, InstanceId, InstanceName, JobId, RepositoryId};
use super::instance::{DiskSource, PoolVolume, PowerState};
use super::job::Quiesce;

/// How the bytes really travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferUsed {
    /// From the running instance's pull export.
    Pull,
    /// QEMU wrote the running instance's disks to the share itself.
    Push,
    /// From the volumes of the stopped instance.
    Stopped,
}

/// How far a backup was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// What was stored was read back through the mount, past this host's cache, and compared with the source that stood still. What an
    /// image leaves to an earlier backup was compared when that was made; that it had not changed since is, where a bitmap found the
    /// changes, the bitmap's word.
    Compared,
    /// The images are whole, durable and were read to the last byte, but their source had moved on, so that nothing was compared: the
    /// best and the least of a push.
    Structure,
    /// Not read back. Promises nothing.
    Unverified,
}

/// What moment of the guest the backup shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Every freezable file system on a backed-up disk was frozen.
    FileSystem,
    /// Some file systems on backed-up disks were not frozen.
    Partial,
    /// As after a power cut, or not known to be better: nobody can say of an instance that is shut off how its guest ended.
    Crash,
}

/// The freeze: what was asked for and what was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuiesceRecord {
    /// The job's policy.
    pub requested: Quiesce,
    /// What was reached.
    pub consistency: Consistency,
    /// Mount points in the guest that were not frozen although they are on a backed-up disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_frozen: Vec<String>,
    /// From the freeze call to the thaw's answer, milliseconds; absent when nothing was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// Why less than asked for was reached, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a running guest noticed of its backup, besides the freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GuestRecord {
    /// From the call that begins the backup to its answer, milliseconds.
    pub begin_ms: u64,
    /// What a write or flush of the guest took in its slowest second, on the mean and on the slowest disk, milliseconds; from
    /// before the freeze to the end of the backup's job. Absent when the guest wrote nothing that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_write_ms: Option<u64>,
}

/// How it was found out what of a disk had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangesFoundBy {
    /// The whole disk was read and held against the hashes of the earlier backup.
    Hashes,
    /// A dirty bitmap said where to read.
    Bitmap,
}

/// The image that an incremental image leaves the rest to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasedOn {
    /// The backup of the same instance whose image of the same disk is the backing file.
    pub backup_id: BackupId,
    /// The content of the disk in that backup, hex: what the link holds on to, since a manifest may be written anew.
    pub content_root: String,
    /// How it was found out what had changed since.
    pub found_by: ChangesFoundBy,
}

/// One disk that is in the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDisk {
    /// The disk's target in the domain.
    pub target: DiskTarget,
    /// Its serial number, if the definition sets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Where its content was.
    pub source: DiskSource,
    /// The volume of a storage pool that the definition named in place of that, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_volume: Option<PoolVolume>,
    /// Image in this directory.
    pub file: String,
    /// Size that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Length of the image file, bytes.
    pub file_bytes: u64,
    /// Bytes of the disk that are stored as data; the rest reads as zeros.
    pub data_bytes: u64,
    /// File with the hash of each block of the whole disk, also where the image holds only some.
    pub blocks_file: String,
    /// Hash over the block hashes: the content of the whole disk, hex.
    pub content_root: String,
    /// For an image that holds only what had changed: what it is based on. Without it the image stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub based_on: Option<BasedOn>,
    /// Why everything was stored where less might have done, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_reason: Option<String>,
    /// The checkpoint of the hypervisor that was made in the moment of this backup: what the guest has written since is kept in mind
    /// under that name for the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// One disk that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SkippedDisk {
    /// The disk's target in the domain.
    pub target: DiskTarget,
    /// Why, in a sentence.
    pub reason: String,
}

/// A file beside the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordFile {
    /// File name in this directory.
    pub file: String,
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3 of its content, hex.
    pub blake3: String,
}

/// Versions of what made the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// The host.
    pub host: HostId,
    /// Longshore's version.
    pub longshore: String,
    /// libvirt's version.
    pub libvirt: String,
    /// QEMU's version.
    pub qemu: String,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this file; 1.
    pub format: u32,
    /// This backup.
    pub backup_id: BackupId,
    /// Its place among the backups of its instance; given under the lease, so it never goes back.
    pub number: u64,
    /// The repository it belongs to.
    pub repository_id: RepositoryId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The instance's name at that time.
    pub instance_name: InstanceName,
    /// What the instance was doing.
    pub instance_state: PowerState,
    /// The job, run and attempt that made it.
    pub job_id: JobId,
    /// Run of the job.
    pub run: u32,
    /// Attempt within the run.
    pub attempt: u32,
    /// How the bytes travelled.
    pub transfer: TransferUsed,
    /// The moment that the images show.
    pub taken_at: Timestamp,
    /// When it was ready to be published.
    pub finished_at: Timestamp,
    /// The freeze.
    pub quiesce: QuiesceRecord,
    /// What the guest noticed besides; absent where it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestRecord>,
    /// How it was proven.
    pub verification: Proof,
    /// The disks.
    pub disks: Vec<ManifestDisk>,
    /// Disks left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_disks: Vec<SkippedDisk>,
    /// Definition, firmware state, what the agent said.
    pub records: Vec<RecordFile>,
    /// What made it.
    pub made_by: MadeBy,
    /// The publisher's own words.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What was not as it should be, though the backup is good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Manifest {
    /// Format that this version writes.
    pub const FORMAT: u32 = 1;
    /// The file's name in the backup's directory.
    pub const FILE: &'static str = "manifest.json";

    /// The backup without which this one can't be restored; none for a full one. All images that are based on another are based on
    /// the same backup.
    pub fn parent(&self) -> Option<BackupId> {
        self.disks.iter().find_map(|disk| disk.based_on.as_ref()).map(|based_on| based_on.backup_id)
    }

    /// Length of its images and records, bytes.
    pub fn stored_bytes(&self) -> u64 {
        let images = self.disks.iter().map(|disk| disk.file_bytes);
        let records = self.records.iter().map(|record| record.bytes);
        images.chain(records).fold(0, u64::saturating_add)
    }
}

/// Most images in a chain, the one that stands alone among them. A longer one is neither made nor read: each takes the memory of its
/// tables, and each can be lost.
pub const CHAIN_IMAGES_MAX: usize = 20;
