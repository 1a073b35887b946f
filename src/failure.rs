//! Why a job, or a message, did not work out: a stable code, how bad it is, where it happened, and the causes.
//!
//! A failure is classified where it is seen, by the code that knows the thing that failed; nobody matches on texts
//! later. What happens next (again, or to the dead letters) is decided elsewhere from [`Code::class`] alone.
//! The codes are part of the wire contract: they stand in events, in routing keys of dead letters and in the README,
//! so one is never renamed and never given another meaning.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::network::NetworkAccess;

/// Whether trying the same thing again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The world may be different in a while: worth another attempt.
    Transient,
    /// The same request will fail the same way until somebody changes something.
    Permanent,
    /// Longshore itself is wrong; somebody should read the log.
    Bug,
}

macro_rules! codes {
    ($($(#[$section:meta])* $name:ident = $text:literal, $class:ident, $meaning:literal;)*) => {
        /// Every way in which a job can end other than well, in the order of the README's table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $meaning] $name,)* }

        impl Code {
            /// All codes, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code as it stands in messages and routing keys.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// Whether trying again can help.
            pub const fn class(self) -> Class {
                match self { $(Code::$name => Class::$class,)* }
            }

            /// One sentence for the operator: what it means and, where there is one, the remedy.
            pub const fn meaning(self) -> &'static str {
                match self { $(Code::$name => $meaning,)* }
            }
        }
    };
}

codes! {
    MalformedMessage = "malformed_message", Permanent, "the body cannot be read as its content type says, or a field is missing or of the wrong type";
    MessageTooLarge = "message_too_large", Permanent, "the body is over 256 KiB or nested deeper than 32 levels";
    UnsupportedContentType = "unsupported_content_type", Permanent, "the content type is neither MessagePack nor JSON";
    UnsupportedVersion = "unsupported_version", Permanent, "the message type is not one that this worker reads";
    UnknownKind = "unknown_kind", Permanent, "the job's kind is not one that this worker can do";
    InvalidField = "invalid_field", Permanent, "a field has the right type but a value that is not allowed";
    InvalidMountOption = "invalid_mount_option", Permanent, "the repository's address or mount options are not ones that may reach mount(8)";
    SecretInOptions = "secret_in_options", Permanent, "a field or mount option carries a secret; give credentials by reference instead";
    WrongHost = "wrong_host", Permanent, "the job names another host than the queue it was read from";
    RunBodyDiffers = "run_body_differs", Permanent, "this run of the job was taken before with another body";
    RunSuperseded = "run_superseded", Permanent, "a higher run of this job is known already";
    StartBeforePassed = "start_before_passed", Permanent, "the job was not started before the time that it named";
    ControlTooLate = "control_too_late", Permanent, "a control message came after the moment until which it was to be obeyed";
    DeadlineExceeded = "deadline_exceeded", Permanent, "the job took longer than its deadline";
    Cancelled = "cancelled", Permanent, "a controller cancelled the run; it is told as the event `cancelled`, and as the reason why steps were taken back";
    InstanceNotHere = "instance_not_here", Permanent, "no such instance on this host; the manager sends the job where the instance went";
    InstanceAmbiguous = "instance_ambiguous", Permanent, "the name fits several instances; use the uuid";
    InstanceStateUnsupported = "instance_state_unsupported", Permanent, "the instance is in a state in which this job cannot be done: neither running nor shut off, or with saved memory";
    InstanceRunning = "instance_running", Permanent, "the instance runs, and a restore in place needs it shut off, or the bus of a disk to be attached takes none while it runs";
    InstanceStarted = "instance_started", Transient, "the stopped instance was started during its backup or restore";
    InstanceStopped = "instance_stopped", Transient, "the running instance stopped during its backup";
    InUseElsewhere = "in_use_elsewhere", Transient, "another process or host has a disk of the stopped instance open";
    SourceChanged = "source_changed", Transient, "a disk of the instance changed after its backup or restore was planned, or while it was read from a stopped one";
    DiskNotFound = "disk_not_found", Permanent, "the instance, or the backup, has no disk of that name or identity";
    DiskAmbiguous = "disk_ambiguous", Permanent, "two disks share the identity by which they are mapped";
    NothingToBackUp = "nothing_to_back_up", Permanent, "the instance has no disk that can be backed up";
    DiskUnsupported = "disk_unsupported", Permanent, "a disk cannot be read for a backup, or replaced by a restore: where it is, what it holds or how it is defined forbids it";
    HypervisorUnavailable = "hypervisor_unavailable", Transient, "libvirt does not answer on this host";
    HypervisorTimedOut = "hypervisor_timed_out", Transient, "a libvirt call did not return in its time";
    HypervisorFailed = "hypervisor_failed", Transient, "libvirt refused or failed a call";
    HypervisorTooOld = "hypervisor_too_old", Permanent, "libvirt or QEMU is older than what this job needs";
    InstanceBusy = "instance_busy", Transient, "another job or libvirt operation holds the instance";
    AgentMissing = "agent_missing", Permanent, "the job requires a quiesced backup and the instance has no guest agent configured";
    AgentSilent = "agent_silent", Transient, "the guest agent does not answer";
    FreezeFailed = "freeze_failed", Transient, "the job requires a quiesced backup and the guest could not be frozen";
    FreezeIncomplete = "freeze_incomplete", Permanent, "the job requires a quiesced backup and a file system on a backed-up disk cannot be frozen";
    GuestMaybeFrozen = "guest_maybe_frozen", Permanent, "the guest was asked to freeze and has not confirmed that it is thawed; the guard goes on trying";
    GuardFailed = "guard_failed", Transient, "the guard process could not be armed";
    GuardFired = "guard_fired", Transient, "the guard thawed the guest or ended the job before the worker did: not a consistent moment";
    ScratchTooSmall = "scratch_too_small", Transient, "too little room on the host for the scratch of a pull backup";
    ScratchFull = "scratch_full", Transient, "the scratch of the pull backup reached its limit, so that it was given up before the guest could notice";
    HostIo = "host_io", Transient, "a directory or file on the host itself could not be made, read or removed";
    HostUnfit = "host_unfit", Permanent, "the host cannot run a mover: not root, a kernel before 5.10, or a run directory with too long a path";
    PushNotPossible = "push_not_possible", Permanent, "QEMU cannot write to the share itself";
    MountFailed = "mount_failed", Transient, "the share could not be mounted";
    MountDenied = "mount_denied", Permanent, "the share refuses this host or its credentials";
    MountTimedOut = "mount_timed_out", Transient, "mounting the share got no answer in its time";
    MountTypeUnsupported = "mount_type_unsupported", Permanent, "this host cannot mount a repository of that type: its program is missing, or the kernel lacks it";
    CredentialsUnreadable = "credentials_unreadable", Permanent, "the file that the credentials refer to is missing, readable by others or malformed, sealed ones do not open with this host's key, or libvirt has no secret of the name that a disk's definition says, or gives it to nobody";
    RepositoryNotFound = "repository_not_found", Permanent, "no repository at that address: missing directory or no `longshore.json`";
    RepositoryIdentityMismatch = "repository_identity_mismatch", Permanent, "the share holds another repository than the job names";
    RepositoryNotSeparate = "repository_not_separate", Permanent, "the address is on the same device as its parent: nothing is mounted there";
    RepositoryUnsafe = "repository_unsafe", Permanent, "something on the share is not what its name says, such as a symbolic link in place of a directory";
    RepositoryFull = "repository_full", Transient, "too little room in the repository";
    RepositoryReadOnly = "repository_read_only", Permanent, "the repository cannot be written to";
    RepositoryIo = "repository_io", Transient, "reading from or writing to the repository failed";
    LeaseHeld = "lease_held", Transient, "another worker holds the instance's lease in the repository";
    LeaseLost = "lease_lost", Transient, "the instance's lease in the repository was taken over or could not be kept";
    BackupExists = "backup_exists", Permanent, "a backup of that id is published already";
    BackupNotFound = "backup_not_found", Permanent, "the repository has no such backup";
    BackupHasChildren = "backup_has_children", Permanent, "other backups are based on the one to be deleted, and the job's mode does not take them along";
    BackupPinned = "backup_pinned", Permanent, "a backup that would be deleted has a pin";
    BackupDamaged = "backup_damaged", Permanent, "what the repository holds of the backup is not what was backed up, or is not all there";
    RestoreUnfinished = "restore_unfinished", Permanent, "it could not be found out whether a restore's volumes have taken their places, somebody has them already, or a block device was being written over; look at what its warnings name before the instance is started";
    PathNotAllowed = "path_not_allowed", Permanent, "a new volume would be outside the directories that the host's configuration allows, or a link leads there";
    VolumeExists = "volume_exists", Permanent, "a file of a new volume's name is there already, or is a disk of an instance of this host";
    InstanceExists = "instance_exists", Permanent, "an instance of this host has the name, the uuid or a MAC address that a new one was to get";
    DefinitionRefused = "definition_refused", Permanent, "the definition of a new instance, or of a disk that was to be attached, is not taken: libvirt refuses it, or it cannot be trusted";
    DiskTargetInUse = "disk_target_in_use", Permanent, "the instance to which a volume was to be attached has a disk of that target or serial number already";
    VolumeFull = "volume_full", Transient, "too little room for the new volumes where the instance's are";
    VolumeIo = "volume_io", Transient, "a volume could not be made, read back, replaced or removed";
    VolumeDenied = "volume_denied", Permanent, "the storage of a volume does not take the key that libvirt has for it, or lets its user not do that";
    SourceReadFailed = "source_read_failed", Transient, "a disk of the instance could not be read";
    NbdProtocol = "nbd_protocol", Transient, "an NBD server answered against the protocol";
    ImageToolFailed = "image_tool_failed", Transient, "qemu-img or qemu-nbd failed";
    ImageDamaged = "image_damaged", Transient, "the written image does not pass its check";
    ContentMismatch = "content_mismatch", Transient, "what was read back from the share is not what was to be written there";
    Stalled = "stalled", Transient, "no byte moved for longer than the stall limit, or a step did not end within its own";
    MoverDied = "mover_died", Transient, "the mover process ended before its work was done";
    MoverUnresponsive = "mover_unresponsive", Transient, "the mover did not answer in its time; it may be stuck behind a dead share";
    HostDraining = "host_draining", Transient, "the host is being drained";
    Interrupted = "interrupted", Transient, "the worker, or the mover at the wrong moment, ended while the job ran";
    CrashLoop = "crash_loop", Permanent, "the job was interrupted by the worker's end too often";
    JournalFailed = "journal_failed", Transient, "the worker's journal cannot be written";
    JournalLost = "journal_lost", Permanent, "the host came back with an empty journal";
    DeliveryLimit = "delivery_limit", Permanent, "the broker gave the message up after too many deliveries";
    Internal = "internal", Bug, "Longshore found itself in a state that cannot be; please report the log";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not one of the codes.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a failure code")]
pub struct UnknownCode(String);

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Code::ALL.iter().copied().find(|code| code.as_str() == text).ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One thing that went wrong. Its text says what was tried and on what; `causes` are the texts below it, outermost
/// first, already flattened so that a failure can cross a pipe, the journal and the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable code.
    pub code: Code,
    /// The step in which it was seen, filled in by the saga engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What was tried, on what.
    pub text: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What is still there because of it, where that can be looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remains: Option<Box<Remains>>,
}

/// Something on the host that could not be removed yet, by which it can be seen whether it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remains {
    /// A process that cannot be ended yet, or goes on by itself.
    Process {
        /// Its id.
        pid: u32,
        /// When it started, in the kernel's clock ticks since boot: an id alone is given again.
        started: u64,
        /// Directories that it works in, empty and to be removed once it has ended.
        directories: Vec<PathBuf>,
    },
    /// A file or directory.
    Path(PathBuf),
    /// Volumes of a restore, which are gone with the last of them.
    Volumes {
        /// Those that are files.
        files: Vec<PathBuf>,
        /// Those that are logical volumes, which have no path while they are not active.
        logical: Vec<LogicalName>,
    },
    /// The same where some are images of Ceph's RBD, of which only their clusters can say whether they are gone. A name of its own: a version that
    /// knows of no images finds that it cannot read it, and keeps it.
    Images {
        /// The images.
        images: Vec<RbdRemains>,
        /// As in [`Remains::Volumes`].
        files: Vec<PathBuf>,
        /// Likewise.
        logical: Vec<LogicalName>,
    },
}

/// A logical volume of LVM, active or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalName {
    /// Its volume group.
    pub group: String,
    /// Its name there.
    pub name: String,
}

impl LogicalName {
    /// Where its device is as long as it is active.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.group).join(&self.name)
    }
}

/// An image of RBD that could not be removed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RbdRemains {
    /// Pool, namespace and image.
    pub image: String,
    /// The way to its cluster.
    pub access: NetworkAccess,
}

impl RbdRemains {
    /// Said by a failure of an image that has two names: by either, all of it would be removed.
    pub const NEVER_REMOVE: &str = "NEVER `rbd rm`";
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remains::Process { pid, directories, .. } => {
                write!(f, "process {pid}")?;
                directories.iter().try_for_each(|directory| write!(f, " and its directory `{}`", directory.display()))
            }
            Remains::Path(path) => write!(f, "`{}`", path.display()),
            Remains::Volumes { files, logical } => f.write_str(&volumes(&[], files, logical)),
            Remains::Images { images, files, logical } => f.write_str(&volumes(images, files, logical)),
        }
    }
}

fn volumes(images: &[RbdRemains], files: &[PathBuf], logical: &[LogicalName]) -> String {
    let images = images.iter().map(|one| format!("RBD image `{}`", one.image));
    let paths = files.iter().cloned().chain(logical.iter().map(LogicalName::device));
    images.chain(paths.map(|path| format!("`{}`", path.display()))).collect::<Vec<_>>().join(" and ")
}

impl Failure {
    /// A failure with no further cause.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, step: None, text: text.into(), causes: Vec::new(), remains: None }
    }

    /// Adds an error and all of its sources as causes.
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        self.causes.push(error.to_string());
        let mut below = error.source();
        while let Some(error) = below {
            self.causes.push(error.to_string());
            below = error.source();
        }
        self
    }

    /// Adds another failure, with its causes, as the cause.
    #[must_use]
    pub fn because_of(mut self, failure: &Failure) -> Self {
        self.causes.push(failure.text.clone());
        self.causes.extend_from_slice(&failure.causes);
        // What could not be removed is still there, whatever it was that went wrong first.
        self.remains = self.remains.or_else(|| failure.remains.clone());
        self
    }

    /// Adds one cause that is only known as a text, such as what a command printed.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Names the step, unless an inner one is named already.
    #[must_use]
    pub fn in_step(mut self, step: &str) -> Self {
        self.step.get_or_insert_with(|| step.to_owned());
        self
    }

    /// Names what is still there because of it.
    #[must_use]
    pub fn leaving(mut self, remains: Remains) -> Self {
        self.remains = Some(Box::new(remains));
        self
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Class {
        self.code.class()
    }
}

impl fmt::Display for Failure {
    /// The text alone, or with `{:#}` the causes after it, as the outer edges print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if f.alternate() {
            for cause in &self.causes {
                write!(f, ": {cause}")?;
            }
            write!(f, " [{}]", self.code)?;
        }
        Ok(())
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_code_is_snake_case_and_read_back_as_itself() {
        for code in Code::ALL {
            let text = code.as_str();
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{text}");
            assert_eq!(text.parse::<Code>().unwrap(), *code);
        }
    }

    #[test]
    fn causes_are_flattened_from_the_outside_in() {
        let inner = std::io::Error::other("disk on fire");
        let outer = std::io::Error::other(inner);
        let failure = Failure::new(Code::RepositoryIo, "cannot write `vda.qcow2`").because(&outer);
        assert_eq!(format!("{failure:#}"), "cannot write `vda.qcow2`: disk on fire [repository_io]");
    }
}
