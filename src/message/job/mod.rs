//! A job as its publisher writes it. Texts stay texts until [`JobMessage::check`] has looked at them, so that a wrong
//! value is told from a wrong type, and by the name of its field.

mod check;
mod destination;
mod from_job;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::{named, named_option};
use crate::model::deletion::DeleteMode;
use crate::model::id::{BackupId, DiskTarget, HostId, InstanceId, InstanceName, JobId, RepositoryId};
use crate::model::job::{BackupMode, JobKind, Quiesce, Transfer, Verification};
use crate::model::manifest::CHAIN_IMAGES_MAX;
use crate::model::repository::{ADDRESS_BYTES_MAX, OPTIONS_BYTES_MAX, RepositoryType};
use crate::model::validation::ValidationLevel;

pub use destination::{AttachPart, NewInstancePart, NewVolumePart, RestoreNewPart};

pub use check::{
    DEADLINE_SECONDS_MAX, EXCLUDED_DISKS_MAX, LABEL_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_BYTES_MAX, LABELS_MAX,
    PAUSE_SECONDS_MAX, READ_BYTES_PER_SECOND_MIN, REQUESTED_BY_BYTES_MAX, RESTORED_DISKS_MAX, RETRY_ATTEMPTS_MAX,
    SEALED_BYTES_MAX, VALIDATED_INSTANCES_MAX,
};

/// One run of a job, for one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("allOf" = [
    { "if": { "properties": { "kind": { "const": "backup" } } }, "then": { "required": ["instance", "backup"] } },
    { "if": { "properties": { "kind": { "const": "restore" } } }, "then": { "required": ["instance", "restore"] } },
    { "if": { "properties": { "kind": { "const": "restore-new" } } }, "then": { "required": ["instance", "restore_new"] } },
    { "if": { "properties": { "kind": { "const": "repo-validate" } } },
      "then": { "required": ["validate"], "properties": { "instance": false } } },
    { "if": { "properties": { "kind": { "const": "backup-delete" } } }, "then": { "required": ["instance", "delete"] } },
]))]
pub struct JobMessage {
    /// The job: the same for all of its runs. Any UUID; of version 7, jobs sort by age.
    #[schemars(with = "JobId")]
    pub job_id: String,
    /// Which time the job is asked for: 1 from its publisher, and one more each time that somebody wants it done again, as when it is replayed from
    /// the dead letters. The same run with the same body is one request, however often it is sent; with another body, or with a lower number
    /// than one that the host knows, it is refused.
    #[schemars(range(min = 1))]
    pub run: u32,
    /// What is to be done; its own part is in the field of the same name, that of `restore-new` in `restore_new`, that of
    /// `repo-validate` in `validate` and that of `backup-delete` in `delete`. `restore` puts the volumes of an instance back in place;
    /// `restore-new` makes of a backup what was not there, an instance or a volume, and is a kind of its own so that a worker that does not know
    /// it refuses it and replaces nothing.
    #[schemars(with = "JobKind")]
    pub kind: String,
    /// The host that is to do it; also the routing key.
    #[schemars(with = "HostId")]
    pub host: String,
    /// The instance it is about; required, but for `repo-validate`, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub instance: Option<InstancePart>,
    /// The repository it uses.
    #[serde(deserialize_with = "named")]
    pub repository: RepositoryPart,
    /// The own part of a backup; required for that kind.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub backup: Option<BackupPart>,
    /// The own part of a restore; required for that kind.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub restore: Option<RestorePart>,
    /// The own part of a restore to elsewhere; required for the kind `restore-new`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub restore_new: Option<RestoreNewPart>,
    /// The own part of a validation; required for the kind `repo-validate`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub validate: Option<ValidatePart>,
    /// The own part of a deletion; required for the kind `backup-delete`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    #[schemars(required)]
    pub delete: Option<DeletePart>,
    /// What happens after a failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub retry: Option<RetryPart>,
    /// Not to be started after this moment, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Timestamp>")]
    pub start_before: Option<String>,
    /// Longest time that one attempt may take, seconds; a day when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = DEADLINE_SECONDS_MAX))]
    pub deadline_seconds: Option<u64>,
    /// The publisher's own words, carried into every event: at most 64, without control characters, and no more than 16 KiB
    /// together, as JSON writes them. No secrets: a name with one of the words `pass`, `cred`, `credentials`, `password`,
    /// `passphrase` or `secret` in it, `key` alone, and texts such as `password=…` or `//user:password@…` are refused as
    /// `secret_in_options`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = LABELS_MAX))]
    pub labels: BTreeMap<String, String>,
    /// Who asked for it, in the publisher's words, at most 255 bytes in UTF-8. What `labels` says of secrets holds here as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = REQUESTED_BY_BYTES_MAX))]
    pub requested_by: Option<String>,
}

/// An instance by its uuid or by its name on the host: exactly one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{ "required": ["id"] }, { "required": ["name"] }]))]
pub struct InstancePart {
    /// Its uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<InstanceId>")]
    pub id: Option<String>,
    /// Its name on the host, at most 255 bytes in UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<InstanceName>")]
    pub name: Option<String>,
}

/// A backup repository, in the form that CloudStack's operators know.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryPart {
    /// The identity that the `longshore.json` on the share must have.
    #[schemars(with = "RepositoryId")]
    pub id: String,
    /// Kind of share.
    #[serde(rename = "type")]
    #[schemars(with = "RepositoryType")]
    pub repository_type: String,
    /// Its address: `/path`, `host:/path`, `//server/share` or `mon1,mon2:/path`, without `user:password@`.
    #[schemars(length(min = 1, max = ADDRESS_BYTES_MAX))]
    pub address: String,
    /// Mount options such as `vers=4.2,hard`. Those that carry a secret are refused: names that begin with `pass`, `cred` or
    /// `secret`, the words that `labels` lists, and `user=name%password`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = OPTIONS_BYTES_MAX))]
    pub options: String,
    /// Where the credentials are, if the share wants any.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub credentials: Option<CredentialsPart>,
}

impl fmt::Debug for RepositoryPart {
    /// Address and options are left out: before the check they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepositoryPart").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Credentials of a share: exactly one of the two.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{ "required": ["reference"] }, { "required": ["sealed"] }]))]
pub struct CredentialsPart {
    /// Name of a file in the host's credentials directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$"))]
    pub reference: Option<String>,
    /// Sealed to the host's public key.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub sealed: Option<SealedPart>,
}

/// The text of a credentials file, sealed with HPKE (RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
/// ChaCha20Poly1305) to the host's key, which `longshore host key` prints there. `info` is `longshore credentials v1`; the associated
/// data are the job's host, job id, repository's id, type, address and options, with a line feed between them, both ids in lower case
/// with hyphens, the rest as it stands in the job. Sealing again makes another body: the same run is sent again as it was.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SealedPart {
    /// Encapsulated key, base64.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub enc: String,
    /// Sealed bytes, base64.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub ciphertext: String,
}

/// What a backup job asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupPart {
    /// How much is stored; `auto` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BackupMode>")]
    pub mode: Option<String>,
    /// In the mode `auto`, most backups in a chain, the full one among them; 7 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = CHAIN_IMAGES_MAX))]
    pub full_every: Option<u32>,
    /// How the bytes travel; `auto` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Transfer>")]
    pub transfer: Option<String>,
    /// Freeze policy; `off` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Quiesce>")]
    pub quiesce: Option<String>,
    /// Proof before publishing; `compared` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Verification>")]
    pub verification: Option<String>,
    /// Targets of disks to leave out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<DiskTarget>", length(max = EXCLUDED_DISKS_MAX))]
    pub exclude_disks: Vec<String>,
}

/// What a restore job asks for: the volumes of the instance, which must be shut off, become what they were at one of its
/// backups. New volumes are made beside the old ones and proven; then all of them take the places of the old ones, or none does. The
/// instance's definition stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestorePart {
    /// The backup.
    #[schemars(with = "BackupId")]
    pub backup_id: String,
    /// Targets of the backup's disks that are restored; all of them when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<DiskTarget>", length(max = RESTORED_DISKS_MAX))]
    pub disks: Vec<String>,
    /// Which disk of the backup replaces the volume of which disk of the instance, target by target. Those that are not named here
    /// are found by their serial number, or, without one, by target and source together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<DiskTarget, DiskTarget>", extend("maxProperties" = RESTORED_DISKS_MAX))]
    pub onto: BTreeMap<String, String>,
    /// The old volumes stay beside the new ones, under names that the `completed` event tells.
    #[serde(default)]
    pub keep_previous: bool,
    /// Nothing is restored: the `completed` event says in `restore_plan` what would be, also while the instance runs. A worker that does
    /// not know this field skips it, and restores: which version a worker has, its `worker.online` tells.
    #[serde(default)]
    pub dry_run: bool,
    /// A block device that is no logical volume of LVM is written over, which nothing can take back: there is no second one to take its
    /// place. Without it such a disk is refused. Not together with `keep_previous`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite: bool,
}

/// What a validation asks for: the repository is looked at, as far as `level` says, and what is found comes as data in the `completed`
/// event. A repository with damage is a completed job; one that could not be looked at is a failed one. Nothing is repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValidatePart {
    /// How far; `catalogue` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ValidationLevel>")]
    pub level: Option<String>,
    /// What attempts that were cut off have left on the share is removed, under the lease of its instance. What a living worker
    /// writes is left alone.
    #[serde(default)]
    pub sweep: bool,
    /// Instances whose backups are looked at; all of them when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<InstanceId>", length(max = VALIDATED_INSTANCES_MAX))]
    pub instances: Vec<String>,
    /// Bytes of disks that are read within a second, at most, so that others get on as well; without a limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = READ_BYTES_PER_SECOND_MIN))]
    pub max_bytes_per_second: Option<u64>,
}

/// What a job of the kind `backup-delete` asks for: one backup of the instance goes, and no other loses what it is based on. An instance
/// that is named by its uuid need not be on the host, nor anywhere else any more. A backup with a pin is not deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeletePart {
    /// The backup.
    #[schemars(with = "BackupId")]
    pub backup_id: String,
    /// How far the deletion may go; `only` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DeleteMode>")]
    pub mode: Option<String>,
    /// Nothing is deleted: the `completed` event says what would be.
    #[serde(default)]
    pub dry_run: bool,
}

/// What happens after a failed attempt. Pauses double from the first to the longest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryPart {
    /// Failed attempts after which the run has failed; 3 when absent. Where it is more than one, an attempt that fails in a way that can
    /// pass, on a repository that fails job after job on that host, is followed by another and not counted, for 12 hours at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = RETRY_ATTEMPTS_MAX))]
    pub attempts: Option<u32>,
    /// Pause after the first failed attempt, seconds; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = PAUSE_SECONDS_MAX))]
    pub first_pause_seconds: Option<u64>,
    /// Longest pause, seconds; 1800 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = PAUSE_SECONDS_MAX))]
    pub longest_pause_seconds: Option<u64>,
}

impl JobMessage {
    /// Message type of a job.
    pub const MESSAGE_TYPE: &'static str = "longshore.job.v1";
}
