//! The own parts of the events of a run.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::model::deletion::{DeleteMode, DeletedBackup, MergedBackup};
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName, JobId};
use crate::model::instance::ImageFormat;
use crate::model::manifest::{ChangesFoundBy, Consistency, GuestRecord, Proof, SkippedDisk, TransferUsed};
use crate::model::restoration::PlannedRestore;
use crate::model::validation::Validation;

/// The host has the job in its journal and will bring it to an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {}

/// An attempt began; which one is in the event's outer fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {}

/// How far the attempt is. Told at most once a second while it gets on, when all bytes of a step are done, and once more before
/// the event that ends the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The step it is in.
    pub step: String,
    /// Bytes done in this step.
    pub done_bytes: u64,
    /// Bytes to do in this step, as far as known.
    pub total_bytes: u64,
    /// Bytes per second, lately.
    pub rate_bytes_per_second: u64,
    /// Seconds until this step is done, if that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

/// Longest text that [`in_short`](super::RunDetail::in_short) leaves, characters.
const SHORT_CHARACTERS_MAX: usize = 1000;
/// Disks, or backups, that it leaves.
const SHORT_DISKS_MAX: usize = 100;
/// Findings, and sizes of instances, that it leaves.
const SHORT_FINDINGS_MAX: usize = 20;

fn in_short(text: String) -> String {
    match text.char_indices().nth(SHORT_CHARACTERS_MAX) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Says in its place that something was left out.
fn left_out(count: usize) -> Vec<String> {
    if count == 0 {
        Vec::new()
    } else {
        vec![format!("{count} more that had no room in the event: see the worker's log")]
    }
}

impl super::RunDetail {
    /// The same with its texts cut and its lists left out, for an event that would be longer than its readers take. What it says
    /// of the run and its backup stays.
    pub(crate) fn in_short(self) -> Self {
        match self {
            Self::Retrying(told) => Self::Retrying(Retrying {
                failure: told.failure.in_short(),
                warnings: left_out(told.warnings.len() + told.left_overs.len()),
                left_overs: Vec::new(),
                ..told
            }),
            Self::Completed(told) => {
                let backup = told.backup.map(BackupSummary::in_short);
                let restore = told.restore.map(|restore| Box::new(restore.in_short()));
                let restore_plan = told.restore_plan.map(|plan| Box::new(plan_in_short(*plan)));
                let validate = told.validate.map(|found| Box::new(found.with_at_most(SHORT_FINDINGS_MAX)));
                let delete = told.delete.map(|delete| Box::new(delete.in_short()));
                let warnings = left_out(told.warnings.len() + told.left_overs.len());
                let left_overs = Vec::new();
                let short = Completed { warnings, left_overs, backup, restore, restore_plan, delete, validate, ..told };
                Self::Completed(short)
            }
            Self::Failed(told) => Self::Failed(Failed {
                failure: told.failure.in_short(),
                warnings: left_out(told.warnings.len() + told.left_overs.len()),
                left_overs: Vec::new(),
                ..told
            }),
            Self::Cancelled(told) => Self::Cancelled(Cancelled {
                requested_by: told.requested_by.map(in_short),
                reason: told.reason.map(in_short),
                left_overs: Vec::new(),
            }),
            Self::Progress(told) => Self::Progress(Progress { step: in_short(told.step), ..told }),
            Self::Accepted(_) | Self::Started(_) => self,
        }
    }
}

impl FailureReport {
    fn in_short(self) -> Self {
        let causes = left_out(self.causes.len());
        Self { step: self.step.map(in_short), text: in_short(self.text), causes, ..self }
    }
}

impl BackupSummary {
    fn in_short(self) -> Self {
        let disks = self.disks.into_iter().take(SHORT_DISKS_MAX).collect();
        let consistency_reason = self.consistency_reason.map(in_short);
        Self { directory: in_short(self.directory), consistency_reason, disks, skipped_disks: Vec::new(), ..self }
    }
}

impl RestoreSummary {
    fn in_short(self) -> Self {
        Self { volumes: self.volumes.into_iter().take(SHORT_DISKS_MAX).collect(), ..self }
    }
}

fn plan_in_short(plan: PlannedRestore) -> PlannedRestore {
    PlannedRestore { volumes: plan.volumes.into_iter().take(SHORT_DISKS_MAX).collect(), ..plan }
}

impl DeleteSummary {
    fn in_short(self) -> Self {
        Self { deleted: self.deleted.into_iter().take(SHORT_DISKS_MAX).collect(), ..self }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureReport {
    /// The stable code. New ones may come within v1, so a reader must bear one that it does not know.
    #[schemars(regex(pattern = r"^[a-z_]{1,64}$"))]
    pub code: String,
    /// Whether trying again can help.
    pub class: Class,
    /// The step in which it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What was tried, on what.
    pub text: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

impl From<&Failure> for FailureReport {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.as_str().to_owned(),
            class: failure.class(),
            step: failure.step.clone(),
            text: failure.text.clone(),
            causes: failure.causes.clone(),
        }
    }
}

/// An attempt failed and another will follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retrying {
    /// Why the attempt failed.
    pub failure: FailureReport,
    /// When the next one begins, at the earliest.
    pub next_attempt_at: Timestamp,
    /// What else was not as it should be in the attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
}

/// Something of a job that could not be removed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOver {
    /// What it is and where, such as the path of a mount.
    pub what: String,
    /// Why it is still there.
    pub reason: String,
    /// The job that left it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
}

/// One disk of a finished backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackedUpDisk {
    /// The disk's target in the domain.
    pub target: DiskTarget,
    /// Size that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Bytes stored as data; the rest reads as zeros.
    pub data_bytes: u64,
    /// Length of the image file, bytes.
    pub file_bytes: u64,
    /// Hash over the hashes of the disk's blocks, hex.
    pub content_root: String,
    /// For an image that holds only what had changed since the parent: how that was found. Absent for one that stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_by: Option<ChangesFoundBy>,
    /// Why everything was stored where less might have done, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_reason: Option<String>,
}

/// The backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupSummary {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among the backups of its instance.
    pub number: u64,
    /// Its directory, relative to the repository.
    pub directory: String,
    /// The backup without which it can't be restored; absent for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupId>,
    /// How the bytes travelled.
    pub transfer: TransferUsed,
    /// What moment of the guest it shows.
    pub consistency: Consistency,
    /// Why that is less than the job's `quiesce` asked for, in a sentence; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// How long the guest was frozen, milliseconds; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// What the guest noticed besides; absent where it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestRecord>,
    /// How it was proven.
    pub verification: Proof,
    /// The disks in it.
    pub disks: Vec<BackedUpDisk>,
    /// Disks left out, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_disks: Vec<SkippedDisk>,
}

/// One volume that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoredVolume {
    /// The backup's disk.
    pub disk: DiskTarget,
    /// The disk that it is of the instance: the one whose volume was replaced, or that of the new instance, or the one that was attached.
    /// Of a volume that belongs to no instance, the backup's.
    pub target: DiskTarget,
    /// Path of the volume.
    pub volume: String,
    /// Its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Where the old volume is, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Size that the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Bytes written as data; the rest reads as zeros.
    pub data_bytes: u64,
    /// Hash over the hashes of the disk's blocks, hex: what was read back from the volume has it, as the backup had.
    pub content_root: String,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedInstance {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreSummary {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place among the backups of its instance.
    pub number: u64,
    /// The moment of the guest that the volumes show.
    pub taken_at: Timestamp,
    /// The volumes that were made.
    pub volumes: Vec<RestoredVolume>,
    /// The instance that was made of the backup, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_instance: Option<NamedInstance>,
    /// The instance that the volume was attached to, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<NamedInstance>,
}

/// What was deleted or, of a dry run, what would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteSummary {
    /// The backup that the job named.
    pub backup_id: BackupId,
    /// How far the deletion might go.
    pub mode: DeleteMode,
    /// Nothing was deleted or merged: this is what would be.
    pub dry_run: bool,
    /// What is gone, in the order in which it went.
    pub deleted: Vec<DeletedBackup>,
    /// The child that took over what it was based on; none or one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<MergedBackup>,
    /// Bytes that became free, less those by which a merged child has grown. Of a dry run with a merge, at most so many.
    pub freed_bytes: u64,
}

/// The run ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Completed {
    /// How long the attempt took, milliseconds.
    pub duration_ms: u64,
    /// What was not as it should be, though the job is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
    /// The backup, of a job of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSummary>,
    /// What was restored, of a job of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Box<RestoreSummary>>,
    /// What a restore would do, of a job of that kind with `dry_run`: nothing was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_plan: Option<Box<PlannedRestore>>,
    /// What the repository was found to be, of a job of the kind `repo-validate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<Box<Validation>>,
    /// What was deleted, of a job of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<Box<DeleteSummary>>,
}

/// The run ended in a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// Why.
    pub failure: FailureReport,
    /// Attempts that were made.
    pub attempts: u32,
    /// What else was not as it should be in the last attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
}

/// The run was cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {
    /// Who wanted it, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
}
