//! An instance and its disks as the host sees them at one moment.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::id::{DiskTarget, InstanceId, InstanceName};
use super::network::{NetworkAccess, SecretRef};

/// What an instance is doing, as far as a backup cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// Its vCPUs run.
    Running,
    /// Paused by somebody.
    Paused,
    /// Paused by QEMU because of an I/O error on one of its disks.
    PausedByIoError,
    /// On its way to being shut off; its vCPUs run no more.
    ShuttingDown,
    /// Shut off.
    ShutOff,
    /// Anything else libvirt knows: crashed, suspended by the guest.
    Other,
}

/// The kind of device a disk is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskDevice {
    /// A hard disk.
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI device passed through.
    Lun,
}

/// The format in which a source is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// QEMU's own.
    #[default]
    Qcow2,
    /// Bytes as the guest sees them.
    Raw,
}

impl ImageFormat {
    /// The word for it, which is QEMU's and libvirt's.
    pub const fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Raw => "raw",
        }
    }
}

/// Where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A file on the host or on primary storage mounted there.
    File {
        /// Absolute path.
        path: PathBuf,
        /// Stored format.
        format: ImageFormat,
    },
    /// A block device, such as a logical volume.
    Block {
        /// Absolute path.
        path: PathBuf,
        /// Stored format.
        format: ImageFormat,
    },
    /// A network source that QEMU opens itself, such as RBD.
    Network {
        /// libvirt's protocol word.
        protocol: String,
        /// Pool and image, or the protocol's own name.
        name: String,
        /// Stored format.
        #[serde(default = "raw", skip_serializing_if = "is_raw")]
        format: ImageFormat,
        /// How it is reached.
        #[serde(default, skip_serializing_if = "unsaid")]
        access: Box<NetworkAccess>,
    },
    /// A source this version does not know how to name.
    Other {
        /// libvirt's word for the type.
        kind: String,
    },
}

/// The name of a volume in a storage pool of the hypervisor, by which a definition may say where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolVolume {
    /// The pool.
    pub pool: String,
    /// The volume in it.
    pub volume: String,
}

/// What a volume on the network is as a rule, and was taken for before its format was written down.
fn raw() -> ImageFormat {
    ImageFormat::Raw
}

fn is_raw(format: &ImageFormat) -> bool {
    *format == ImageFormat::Raw
}

fn unsaid(access: &NetworkAccess) -> bool {
    access.is_unsaid()
}

impl DiskSource {
    /// Whether both are the same volume: by which way one on the network is reached may change.
    pub fn is_same_place(&self, other: &DiskSource) -> bool {
        match (self, other) {
            (
                DiskSource::Network { protocol, name, format, access },
                DiskSource::Network { protocol: others, name: its_name, format: its_format, access: its_access },
            ) => (protocol, name, format, &access.snapshot) == (others, its_name, its_format, &its_access.snapshot),
            _ => self == other,
        }
    }

    /// The secret without which it is not given.
    pub fn secret(&self) -> Option<&SecretRef> {
        match self {
            DiskSource::Network { access, .. } => access.secret.as_ref(),
            DiskSource::File { .. } | DiskSource::Block { .. } | DiskSource::Other { .. } => None,
        }
    }
}

/// One disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The target, such as `vda`.
    pub target: DiskTarget,
    /// The serial number shown to the guest, if the definition sets one: the most stable identity.
    pub serial: Option<String>,
    /// What the guest takes it for.
    pub device: DiskDevice,
    /// The bus it is attached to, in libvirt's word.
    pub bus: Option<String>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Several instances may write to it at once, so that no single one of them can say when it is consistent.
    pub shareable: bool,
    /// Its changes are thrown away when the instance stops; QEMU refuses block jobs on it.
    pub transient: bool,
    /// QEMU decrypts it for the guest, so that everything that is read through QEMU is plain text.
    pub encrypted: bool,
    /// The definition itself says what backs it, whatever the file at its path says of that.
    pub pinned_chain: bool,
    /// Its image keeps the guest's data in another file, which others may write to without a bitmap of the image seeing it. Known where
    /// the hypervisor tells (libvirt from 10.10 on).
    #[serde(default)]
    pub data_elsewhere: bool,
    /// The definition lets the instance start where the volume is not there (`startupPolicy`).
    pub may_be_missing: bool,
    /// Where its content is; none for an empty drive.
    pub source: Option<DiskSource>,
    /// The volume of a storage pool that the definition names in place of that, if it does.
    #[serde(default)]
    pub pool_volume: Option<PoolVolume>,
    /// Size that the guest sees, bytes; known where the hypervisor could tell.
    pub virtual_bytes: Option<u64>,
    /// Bytes allocated in its storage, backing files included: known where all of that are files that the hypervisor could
    /// measure.
    pub allocated_bytes: Option<u64>,
}

/// An instance at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name on this host.
    pub name: InstanceName,
    /// What it is doing.
    pub state: PowerState,
    /// It is shut off with its memory saved, and its next start resumes that.
    pub saved_memory: bool,
    /// It has no definition that outlives its run.
    #[serde(default)]
    pub transient: bool,
    /// Its disks in the order of the definition. For a running instance those it runs with, not those of its next start.
    pub disks: Vec<Disk>,
    /// A guest agent channel is configured.
    pub agent_configured: bool,
    /// Somebody in the guest has the agent's channel open.
    pub agent_connected: bool,
    /// The inactive definition, as `virsh define` takes it, with its security-sensitive parts left out.
    pub definition: String,
    /// What it runs with, where its disks are others than the definition's: some were attached or changed for this run only.
    pub live_definition: Option<String>,
    /// The firmware's variable store, if the definition has one in a file.
    pub nvram: Option<PathBuf>,
    /// State beside the disks that no backup holds, a sentence for each.
    pub unrecorded: Vec<String>,
}
