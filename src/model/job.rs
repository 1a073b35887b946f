//! A job as the worker holds it: parsed, checked, and independent of how it was encoded.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::deletion::DeleteMode;
use super::destination::Destination;
use super::id::{BackupId, DiskTarget, HostId, InstanceId, InstanceRef, JobId};
use super::repository::Repository;
use super::validation::ValidationLevel;
use crate::failure::{Code, Failure};

/// The kinds of job this version can do, as they stand in messages and routing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Make a backup of an instance.
    Backup,
    /// Put an instance's volumes back to what they were at a backup.
    Restore,
    /// Make of a backup what was not there. A kind of its own, and no option of a restore: a worker that does not know it yet has to refuse
    /// it, and would skip an option and replace volumes.
    RestoreNew,
    /// Look whether a repository and the backups in it are whole.
    RepoValidate,
    /// Delete backups of an instance.
    BackupDelete,
}

impl JobKind {
    /// All kinds.
    pub const ALL: &'static [JobKind] =
        &[JobKind::Backup, JobKind::Restore, JobKind::RestoreNew, JobKind::RepoValidate, JobKind::BackupDelete];

    /// The kind as it stands in messages and routing keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::Backup => "backup",
            JobKind::Restore => "restore",
            JobKind::RestoreNew => "restore-new",
            JobKind::RepoValidate => "repo-validate",
            JobKind::BackupDelete => "backup-delete",
        }
    }

    /// Whether a job that failed for good is worth nothing any more after a later one like it has ended well. Nobody may pass over a
    /// restore or a deletion that was asked for.
    pub const fn is_superseded_by_success(self) -> bool {
        matches!(self, JobKind::Backup | JobKind::RepoValidate)
    }

    /// The field of a job that holds the kind's own part.
    pub const fn part(self) -> &'static str {
        match self {
            JobKind::Backup => "backup",
            JobKind::Restore => "restore",
            JobKind::RestoreNew => "restore_new",
            JobKind::RepoValidate => "validate",
            JobKind::BackupDelete => "delete",
        }
    }
}

/// The label by which a job names the schedule that it is of.
pub const SCHEDULE_LABEL: &str = "schedule";

/// One run of a job: the equal key means the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// The job.
    pub job_id: JobId,
    /// 1 from the publisher, +1 for each replay.
    pub run: u32,
}

impl std::fmt::Display for RunKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.job_id, self.run)
    }
}

/// How the bytes get from the instance to the share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transfer {
    /// Pull, unless the host's configuration says otherwise.
    #[default]
    Auto,
    /// We read from QEMU's export and write to the share; the guest never waits for the share.
    Pull,
    /// QEMU writes to the share itself.
    Push,
}

/// How much of the disks a backup stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupMode {
    /// What has changed since the instance's latest backup in the repository, and a full one where there is none to be based on or its
    /// chain has become long.
    #[default]
    Auto,
    /// Everything: images that need no other backup.
    Full,
    /// As `auto`, however long the chain is, up to what can be restored.
    Incremental,
}

/// Whether the guest's file systems are frozen for the moment of the backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// No freeze: the backup is crash consistent.
    #[default]
    Off,
    /// Freeze if that works, else go on and record what was reached.
    Prefer,
    /// Freeze, or fail the job. A stopped instance has nothing to freeze: its backup says `crash`, since nobody can say how its guest
    /// ended, and is no failure.
    Require,
}

/// How far a backup is proven before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// Read back through the mount, past this host's cache, and compared with the source that stood still.
    #[default]
    Compared,
    /// Not read back. Promises nothing.
    Unverified,
}

/// How many backups make a chain, the full one among them: 1 to [`CHAIN_IMAGES_MAX`](super::manifest::CHAIN_IMAGES_MAX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FullEvery(pub u32);

impl Default for FullEvery {
    /// A full backup a week, where there is one a day.
    fn default() -> Self {
        Self(7)
    }
}

/// What a backup job asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSpec {
    /// How much is stored.
    pub mode: BackupMode,
    /// In the mode `auto`, most images in a chain before a full backup begins another.
    pub full_every: FullEvery,
    /// How the bytes travel.
    pub transfer: Transfer,
    /// Freeze policy.
    pub quiesce: Quiesce,
    /// Proof before publishing.
    pub verification: Verification,
    /// Disks left out on request.
    pub exclude_disks: Vec<DiskTarget>,
}

/// What a restore job asks for: the volumes of a stopped instance become what they were at one of its backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// The backup.
    pub backup_id: BackupId,
    /// Disks of the backup that are restored; empty means all.
    pub disks: Vec<DiskTarget>,
    /// For disks of the backup, the instance's disk whose volume is replaced; the others are found by their identity.
    pub onto: BTreeMap<DiskTarget, DiskTarget>,
    /// The old volumes stay beside the new ones.
    pub keep_previous: bool,
    /// Only says what it would do.
    pub dry_run: bool,
    /// Block devices beside which no second one can be made are written over.
    #[serde(default)]
    pub overwrite: bool,
}

/// What a job asks for that makes of a backup what was not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreNewSpec {
    /// The backup.
    pub backup_id: BackupId,
    /// Disks of the backup that are restored; empty means all.
    pub disks: Vec<DiskTarget>,
    /// What is made.
    pub to: Destination,
    /// Only says what it would do.
    pub dry_run: bool,
}

/// What a validation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateSpec {
    /// How far the repository is looked at.
    pub level: ValidationLevel,
    /// What attempts that were cut off have left on the share is removed.
    pub sweep: bool,
    /// Instances whose backups are looked at; empty means all.
    pub instances: Vec<InstanceId>,
    /// Bytes of disks that are read within a second, at most.
    pub max_bytes_per_second: Option<u64>,
}

/// What a job asks for that deletes a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSpec {
    /// The backup.
    pub backup_id: BackupId,
    /// How far the deletion may go.
    pub mode: DeleteMode,
    /// Only says what it would do.
    pub dry_run: bool,
}

/// The kind's own part of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Make a backup.
    Backup(BackupSpec),
    /// Restore a backup in place.
    Restore(RestoreSpec),
    /// Restore a backup to elsewhere.
    RestoreNew(RestoreNewSpec),
    /// Validate a repository.
    RepoValidate(ValidateSpec),
    /// Delete a backup.
    Delete(DeleteSpec),
}

/// How often, and with what pauses, a failed attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Failed attempts after which the run has failed; at least 1.
    pub attempts: u32,
    /// Pause after the first failed attempt; doubles with each further one.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, first_pause: Duration::from_secs(30), longest_pause: Duration::from_secs(30 * 60) }
    }
}

/// One run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Job id and run.
    pub key: RunKey,
    /// The host that is to do it.
    pub host: HostId,
    /// The instance it is about; none for a kind that is about a repository alone.
    pub instance: Option<InstanceRef>,
    /// The repository it uses.
    pub repository: Repository,
    /// What is to be done.
    pub work: Work,
    /// What happens after a failed attempt.
    pub retry: RetryPolicy,
    /// Not to be started after this moment.
    pub start_before: Option<Timestamp>,
    /// Longest time one attempt may take.
    pub deadline: Duration,
    /// The publisher's own words, carried into every event.
    pub labels: BTreeMap<String, String>,
    /// Who asked for it, in the publisher's words.
    pub requested_by: Option<String>,
}

impl Job {
    /// Longest time an attempt may take when the job names none: one day.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

    /// The job's kind.
    pub const fn kind(&self) -> JobKind {
        match self.work {
            Work::Backup(_) => JobKind::Backup,
            Work::Restore(_) => JobKind::Restore,
            Work::RestoreNew(_) => JobKind::RestoreNew,
            Work::RepoValidate(_) => JobKind::RepoValidate,
            Work::Delete(_) => JobKind::BackupDelete,
        }
    }

    /// The instance, for a kind that is about one: its message was checked for it.
    pub fn its_instance(&self) -> Result<&InstanceRef, Failure> {
        let kind = self.kind().as_str();
        let missing = || Failure::new(Code::Internal, format!("a job of the kind `{kind}` has no instance"));
        self.instance.as_ref().ok_or_else(missing)
    }
}
