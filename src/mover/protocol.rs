//! What the worker and its mover say to each other: frames on the mover's stdin and stdout, each a big-endian `u32`
//! length and that many bytes of MessagePack with field names.
//!
//! The mover begins with [`FromMover::Started`]. From then on one request is under way at a time, and exactly one
//! [`FromMover::Answer`] with its id follows it; notices may come between. A worker that lost interest in a request just
//! sends the next: what can be broken off (copying, comparing, sealing, waiting for a lease) is broken off, the rest is finished,
//! its answer comes all the same, and then the next is begun. The end of stdin means that the worker is gone: the mover
//! exits at once, and its lease ages until somebody takes it over.

mod device;
pub mod frame;
mod key;
mod new_files;
mod reply;
mod validation;
mod volume;
mod weigh;
mod word;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, RbdRemains};
use crate::model::id::{BackupId, DiskTarget, HostId, InstallationId, InstanceId};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::model::manifest::{BasedOn, Manifest};
use crate::model::owner::Owner;
use crate::model::repository::Repository;

pub use device::{BlockDevice, DeviceNumbers, MAPPER_NAME_BYTES_MAX, mapper_name, sys};
pub use key::{NamedKey, StorageKey};
pub use new_files::{NewContent, NewFile, NewFiles};
pub use reply::Reply;
pub use validation::WantedValidation;
pub use volume::{RestoredVolume, VolumePlace};
pub use weigh::{ToMake, ToWeigh, Weighed};

/// Our own binary, also where it was replaced on the disk.
pub const OURSELVES: &str = "/proc/self/exe";

/// The hidden subcommand of our binary that is a mover. Its arguments: the directory of its own, then both places of
/// [`CredentialPlaces`].
pub const SUBCOMMAND: &str = "mover";

/// The word after [`SUBCOMMAND`] for a process that takes away what a mover has shown to the host: [`FORCE`] if need be, and the
/// place.
pub const UNMOUNT: &str = "unmount";

/// The word after [`UNMOUNT`] that fails every call on the share that is under way, and leaves it mounted.
pub const FORCE: &str = "force";

/// The word after [`SUBCOMMAND`] for the process by which a mover proves that another one can write to its files.
pub const PROBE: &str = "probe";

/// Where on the host a share's credentials come from.
#[derive(Clone, Debug)]
pub struct CredentialPlaces {
    /// The directory of the files that a job refers to.
    pub dir: PathBuf,
    /// The file with the key that opens sealed ones.
    pub host_key: PathBuf,
}

/// Longest frame either side accepts, bytes.
pub const FRAME_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Where the bytes of one disk come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByteSource {
    /// An NBD export on a unix socket that somebody else serves (QEMU's pull export).
    Export {
        /// The socket.
        socket: PathBuf,
        /// The export's name.
        name: String,
        /// The context that says what was written to since the disk's base; a server that has none is read whole.
        dirty: Option<String>,
    },
    /// A volume of a stopped instance, which the mover serves itself with `qemu-nbd -r`, opened so that the instance can start.
    Volume {
        /// The volume.
        source: DiskSource,
        /// The persistent bitmap in its image that says what was written to since; one that is not there or not whole is not believed, and
        /// the volume is read whole.
        bitmap: Option<String>,
    },
}

/// One disk to be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDisk {
    /// The domain's disk, which also names the files `<target>.qcow2` and `<target>.blocks`.
    pub target: DiskTarget,
    /// Where its bytes come from.
    pub source: ByteSource,
    /// The size the guest sees, bytes; none means as the source says. A source of another size fails.
    pub virtual_bytes: Option<u64>,
    /// Format of the volume, for a `Volume` source.
    pub format: Option<ImageFormat>,
    /// What the new image may leave to an earlier one; none for an image that is to stand alone.
    pub base: Option<BaseDisk>,
    /// What the disk held in the moment since which the source says what was written to: the base, or one that the base stands on; none where
    /// it is not to be believed.
    pub since: Option<BaseDisk>,
}

/// What a disk held in an earlier backup of the same instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDisk {
    /// The backup.
    pub backup: BackupId,
    /// The size the guest saw then, bytes, as the manifest has it.
    pub virtual_bytes: u64,
    /// Hash over the block hashes, hex, as the manifest has it.
    pub content_root: String,
}

/// One disk that QEMU will write into an image itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushTarget {
    /// The domain's disk, which also names the files `<target>.qcow2` and `<target>.blocks`.
    pub target: DiskTarget,
    /// The size the guest sees, bytes.
    pub virtual_bytes: u64,
    /// What the disk held in the moment since which QEMU will write what was written to; none where it will write all of it.
    pub base: Option<BaseDisk>,
}

/// A child that is to take over what a backup holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merger {
    /// The child.
    pub child: BackupId,
    /// The backup that it is based on.
    pub from: BackupId,
}

/// What the worker asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Mounts the repository in a place of the mover's own, proves that it is mounted and is the one that was meant, probes
    /// that it can be written, and looks whether `need_bytes` fit. Answer: [`Reply::Opened`].
    Open {
        /// The repository.
        repository: Repository,
        /// The address may be on the device of its parent directory.
        same_device_ok: bool,
        /// Free bytes without which the job has no sense.
        need_bytes: u64,
        /// Who else will write there. A share whose mount decides whom its files belong to is mounted as theirs.
        writer: Option<Owner>,
    },
    /// Mounts the repository likewise and proves that it is the one that was meant, but writes nothing yet: a repository that can't be
    /// written to, or whose directories are missing, is looked at as well. Answer: [`Reply::Done`].
    OpenToLook {
        /// The repository.
        repository: Repository,
        /// The address may be on the device of its parent directory.
        same_device_ok: bool,
    },
    /// Keeps these keys to the storage of volumes, in place of those it was given before. A volume whose source names a secret is neither read
    /// nor made without. Needs no repository. Answer: [`Reply::Done`].
    Keys {
        /// The keys.
        keys: Vec<NamedKey>,
    },
    /// Takes the instance's lease, or fails with `lease_held`. The lease of a holder that died is taken over, which takes
    /// 2 minutes and at worst 6; its staging directories are fenced and removed. Answer: [`Reply::Leased`].
    Lease {
        /// The instance.
        instance: InstanceId,
        /// Written into the lease for people.
        holder: LeaseHolder,
    },
    /// Makes the staging directory of a backup, under the lease. Answer: [`Reply::Done`].
    Stage {
        /// The instance.
        instance: InstanceId,
        /// The backup.
        backup: BackupId,
        /// Last part of the staging directory's name: installation and attempt.
        suffix: String,
    },
    /// Writes a small file into the staging directory. Answer: [`Reply::Done`].
    Record {
        /// Plain file name.
        file: String,
        /// Its content.
        #[serde(with = "serde_bytes")]
        content: Vec<u8>,
    },
    /// Copies all disks into the staging directory, hashing; [`Notice::Progress`] meanwhile. Of a disk with a base only the blocks are
    /// stored that are others now; where that can't be, all are. Answer: [`Reply::Copied`].
    Copy {
        /// The disks.
        disks: Vec<CopyDisk>,
    },
    /// Makes an empty image for each disk in the staging directory, shows that directory to the host at `place`, and proves that
    /// the process `writer` can write to the images there. What was shown is taken away by [`UNMOUNT`] and by nothing else.
    /// Answer: [`Reply::Exposed`].
    Expose {
        /// An empty directory of the host.
        place: PathBuf,
        /// The disks.
        disks: Vec<PushTarget>,
        /// Process id of the instance's QEMU.
        writer: u32,
    },
    /// For images that another process has written, and no longer has open: proves their structure, reads and hashes every byte;
    /// [`Notice::Progress`] meanwhile. Answer: [`Reply::Copied`].
    Inspect {
        /// Those of the disks with a base of which only what was written to since has been written; their images are put on top of their
        /// bases.
        changes_of: Vec<DiskTarget>,
        /// Bytes that were to be written of all disks, in whole clusters, whatever they hold. Needed with `changes_of`: what was lost of an
        /// image leaves no other trace.
        written_bytes: Option<u64>,
    },
    /// Reads every image back past the cache and compares it with its source, which must still stand; after a `Restore`, every new
    /// volume with the hashes that were taken when the backup was made, and gives it what is to be set last. Answer: [`Reply::Done`] or
    /// [`Reply::DoneBut`].
    Compare,
    /// For volumes of a stopped instance: the sources are unchanged since the copy began. What has no times to look at is
    /// compared, with [`Notice::Progress`] meanwhile. Answer: [`Reply::Done`].
    SourcesUnchanged,
    /// Checks the images (`qemu-img check`, no leaks, image end at file end), fsyncs everything in staging, reads back what is not
    /// an image, past the cache, and says what there is. One that failed or was broken off is not asked for again without
    /// copying anew. Answer: [`Reply::Sealed`].
    Seal,
    /// Reads the manifest of a backup that is published already, or fails with `backup_not_found`. Answer: [`Reply::Found`].
    Find {
        /// The instance.
        instance: InstanceId,
        /// The backup.
        backup: BackupId,
    },
    /// Reads the manifest of the latest backup of an instance, and those of all that it needs. Answer: [`Reply::Latest`].
    Latest {
        /// The instance.
        instance: InstanceId,
    },
    /// Writes the restore instructions and the manifest and renames the staging directory into place. The commit. Asked
    /// again, also of another mover, it finds out that this job, run and attempt has published already. A failure means that
    /// it is not published. Answer: [`Reply::Published`], or [`Reply::NotKnown`], after which it is to be asked again.
    Publish {
        /// The manifest; its `number` is filled in by the mover.
        manifest: Box<Manifest>,
    },
    /// Makes new volumes of a published backup beside those whose place they will take, and refuses where somebody has one of
    /// those open for writing. What is read is held against the hashes that were taken when the backup was made; what was written is
    /// durable. Of what will be written over a block device everything is read, and nothing written yet. [`Notice::Progress`] meanwhile. Answer: [`Reply::Copied`].
    Restore {
        /// The instance whose backup it is.
        instance: InstanceId,
        /// The backup.
        backup: BackupId,
        /// What becomes of which disk.
        volumes: Vec<RestoredVolume>,
        /// The old volumes will stay. Else one that holds what the new one can't, such as internal snapshots, is refused.
        keep_previous: bool,
    },
    /// Looks what those block devices are, and opens none. Needs no repository. Answer: [`Reply::Devices`].
    LookAtDevices {
        /// As definitions name them.
        paths: Vec<PathBuf>,
    },
    /// Takes, after a `Restore`, the block devices for the mover alone that are to be written over, or refuses where the host uses one
    /// itself. Nothing is written. Answer: [`Reply::Done`].
    Claim,
    /// Writes the block devices over that were claimed, and reads back past the cache what was written, which is held against the hashes that
    /// were taken when the backup was made. There is no way back, and another mover can't go on with it. [`Notice::Progress`] meanwhile.
    /// Answer: [`Reply::Done`].
    Overwrite,
    /// Puts every new volume in the place of the old one, which goes to `previous`: all of them or none. While they are exchanged at
    /// least one place is empty, so that nobody can start the instance with some of each. Needs no repository. Asked again, also
    /// of another mover, it goes on wherever it was cut off; with `only_go_on` it fails as `interrupted` where it had not begun, since
    /// much may have happened to the old volumes meanwhile. A failure means that every old volume is in its place.
    /// Answer: [`Reply::Done`], or [`Reply::NotKnown`], after which it is to be asked again.
    Exchange {
        /// All volumes of the restore.
        volumes: Vec<RestoredVolume>,
        /// Brings one to its end that was begun, and begins none.
        only_go_on: bool,
    },
    /// Removes the new volumes that have not taken their places, whether they are there, half there or not there. Needs no repository.
    /// Answer: [`Reply::Done`].
    RemoveFresh {
        /// All volumes of the restore.
        volumes: Vec<RestoredVolume>,
    },
    /// Removes the old volumes whose place was taken, whether they are there or not. Needs no repository. Answer: [`Reply::Done`].
    RemovePrevious {
        /// All volumes of the restore.
        volumes: Vec<RestoredVolume>,
    },
    /// Looks whether images of RBD that a restore has left are there, open or not. Changes nothing, and needs no repository. Answer:
    /// [`Reply::Images`].
    LookAtImages {
        /// The images.
        images: Vec<RbdRemains>,
    },
    /// Reads a file of a published backup that is beside its images, or fails with `backup_damaged` where it is not what its manifest says.
    /// Answer: [`Reply::Record`].
    ReadRecord {
        /// The instance.
        instance: InstanceId,
        /// The backup.
        backup: BackupId,
        /// Its name, one of the manifest's records.
        file: String,
    },
    /// Looks at the places of new files, and refuses where something is, or where what was made is not seen. Changes nothing, and needs no
    /// repository. Answer: [`Reply::Places`].
    LookAtNew {
        /// The files.
        new: NewFiles,
    },
    /// Looks how much a restore would write, and whether its volumes could be made where they are to be. Changes nothing, and needs no
    /// lease. Answer: [`Reply::Weighed`].
    Weigh {
        /// The restore.
        wanted: ToWeigh,
    },
    /// Makes files of a published backup where nothing is, and refuses where something is. As with a `Restore` what is read is held against the
    /// hashes of the backup, what was written is durable, and a `Compare` follows. Answer: [`Reply::MadeNew`].
    MakeNew {
        /// The instance whose backup it is.
        instance: InstanceId,
        /// The backup.
        backup: BackupId,
        /// The files.
        new: NewFiles,
    },
    /// Gives every new file its name: all of them or none, and nothing is overwritten. Needs no repository. Asked again, also of another mover,
    /// it goes on wherever it was cut off. A failure means that none has its name. Answer: [`Reply::Done`], or [`Reply::NotKnown`], after
    /// which it is to be asked again.
    PlaceNew {
        /// All files of the restore.
        new: NewFiles,
    },
    /// Takes the names away that `PlaceNew` gave, however many those are. Needs no repository. Answer: [`Reply::Done`], or
    /// [`Reply::NotKnown`], after which it is to be asked again.
    TakeBackNew {
        /// All files of the restore.
        new: NewFiles,
    },
    /// Removes the new files that do not have their names, whether they are there, half there or not there. Needs no repository. A failure
    /// where their directory is not the one that was looked at. Answer: [`Reply::Done`].
    RemoveNew {
        /// All files of the restore.
        new: NewFiles,
    },
    /// Looks whether the repository and the backups in it are whole, and changes nothing but a file with which it tries whether it can be
    /// written to. Takes no lease: what vanishes or is replaced meanwhile is no damage. [`Notice::Progress`] meanwhile.
    /// Answer: [`Reply::Validated`].
    Validate {
        /// What is looked at, and how far.
        wanted: Box<WantedValidation>,
    },
    /// Takes the instance's lease, removes what attempts that were cut off have left, and gives the lease back. `lease_held`: somebody is at
    /// work there, and nothing was removed. Answer: [`Reply::Swept`].
    Sweep {
        /// The instance.
        instance: InstanceId,
        /// Written into the lease for people.
        holder: LeaseHolder,
    },
    /// What of an instance's backups is based on what. Answer: [`Reply::Chains`].
    Chains {
        /// The instance.
        instance: InstanceId,
    },
    /// Makes, under the lease, images that hold what those of the child do without the other backup's, beside the instance's backups, and
    /// proves them: what is read back past the cache has the hashes that were taken when the child was made. Nothing of either is
    /// changed. Those of the child that need the other no more, from an earlier time, are left as they are. [`Notice::Progress`]
    /// meanwhile. Answer: [`Reply::Merged`].
    Merge {
        /// The instance.
        instance: InstanceId,
        /// Which backups.
        merger: Merger,
        /// Part of the new images' names, which no other attempt of any job has.
        suffix: String,
    },
    /// Under the lease, lets the images that were made take the places of the child's, and then takes the backups out of the listing, one
    /// after another. Nothing is done, but as `interrupted`, where the child still needs the other and this mover has not merged them; nor
    /// where [`may_go`](crate::model::deletion::may_go) refuses one of the backups. Wherever it is cut off each backup that is listed can
    /// be restored, and asked again, also of another mover, it goes on there. Answer: [`Reply::Done`].
    Delete {
        /// The instance.
        instance: InstanceId,
        /// What has to have been merged before.
        merger: Option<Merger>,
        /// What goes, in that order. One that is not there is gone already.
        backups: Vec<BackupId>,
    },
    /// Removes the files of backups that were taken out of the listing. Answer: [`Reply::Done`].
    RemoveDeleted {
        /// The instance.
        instance: InstanceId,
    },
    /// Removes the staging directory, and merged images that have taken no place, whether they are there, half there or not there.
    /// Answer: [`Reply::Done`].
    Discard,
    /// Gives the lease back. Answer: [`Reply::Done`].
    Release,
    /// Unmounts the repository. A share still in use is detached. Answer: [`Reply::Closed`].
    Close,
}

/// A frame to the mover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToMover {
    /// Which request it is; never the same twice.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// The host.
    pub host: HostId,
    /// The worker's installation.
    pub installation: InstallationId,
    /// The job and run, for people.
    pub job: String,
}

/// What became of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedDisk {
    /// The disk.
    pub target: DiskTarget,
    /// The size the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Bytes stored as data.
    pub data_bytes: u64,
    /// Hash over the block hashes, hex.
    pub content_root: String,
    /// What the image leaves the rest to; none for one that stands alone.
    pub based_on: Option<BasedOn>,
    /// Why it stands alone though there was to be a base.
    pub full_reason: Option<String>,
}

/// One file in the staging directory after sealing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Plain file name.
    pub file: String,
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3 of the file, hex; for images none, their content is in the block hashes.
    pub blake3: Option<String>,
}

/// What the mover says without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// How far copying or comparing is; at most every 200 ms, and once at the end.
    Progress {
        /// Bytes of disks looked at so far, zeros included.
        done_bytes: u64,
        /// Bytes of disks in all.
        total_bytes: u64,
        /// Bytes written as data so far.
        data_bytes: u64,
    },
    /// The lease could not be kept or was taken over. Nothing is published after this.
    LeaseLost {
        /// Why.
        failure: Failure,
    },
}

/// A frame from the mover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMover {
    /// The first frame: it is ready, or why it can't be.
    Started(Result<(), Failure>),
    /// The answer to a request.
    Answer {
        /// Which.
        id: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// Something to know.
    Notice(Notice),
}
