//! From what the work returned to what the `completed` event says of it.

use serde_json::Value;

use crate::failure::Failure;
use crate::job::backup::BackupResult;
use crate::job::delete::DeleteResult;
use crate::job::restore::{DryRun, Named, RestoreResult, RestoreValue, Volume};
use crate::job::validate::ValidateResult;
use crate::message::event::{
    BackedUpDisk, BackupSummary, DeleteSummary, NamedInstance, RestoreSummary, RestoredVolume,
};
use crate::model::job::JobKind;
use crate::model::manifest::{Manifest, ManifestDisk};
use crate::model::restoration::PlannedRestore;
use crate::model::validation::Validation;

/// What a completed run has to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The backup that was made.
    pub backup: Option<BackupSummary>,
    /// What was restored.
    pub restore: Option<Box<RestoreSummary>>,
    /// What a restore would do.
    pub restore_plan: Option<Box<PlannedRestore>>,
    /// What the repository was found to be.
    pub validate: Option<Box<Validation>>,
    /// What was deleted.
    pub delete: Option<Box<DeleteSummary>>,
    /// What was unusual about it.
    pub warnings: Vec<String>,
}

impl Shown {
    /// Whether nothing was found that is to be mended: a validation completes whatever it finds.
    pub fn is_as_it_should_be(&self) -> bool {
        self.validate.as_ref().is_none_or(|found| found.errors == 0)
    }
}

/// What the value of a completed saga of that kind holds. No value, nothing to show.
pub fn shown(kind: JobKind, value: &Value) -> Result<Shown, Failure> {
    match kind {
        _ if value.is_null() => Ok(Shown::default()),
        JobKind::Backup => {
            let BackupResult { manifest, warnings } = BackupResult::from_value(value)?;
            let warnings = manifest.warnings.iter().cloned().chain(warnings).collect();
            Ok(Shown { backup: Some(backup(manifest)), warnings, ..Shown::default() })
        }
        JobKind::Restore | JobKind::RestoreNew => Ok(match RestoreValue::from_value(value)? {
            RestoreValue::DryRun(DryRun { would, warnings }) => {
                Shown { restore_plan: Some(Box::new(would)), warnings, ..Shown::default() }
            }
            RestoreValue::Restored(result) => restored(result),
        }),
        JobKind::RepoValidate => {
            let ValidateResult { validation, warnings } = ValidateResult::from_value(value)?;
            Ok(Shown { validate: Some(Box::new(validation)), warnings, ..Shown::default() })
        }
        JobKind::BackupDelete => {
            let DeleteResult { plan, dry_run, freed_bytes, warnings } = DeleteResult::from_value(value)?;
            let delete = DeleteSummary {
                backup_id: plan.backup_id,
                mode: plan.mode,
                dry_run,
                deleted: plan.deleted,
                merged: plan.merged.into_iter().collect(),
                freed_bytes,
            };
            Ok(Shown { delete: Some(Box::new(delete)), warnings, ..Shown::default() })
        }
    }
}

fn restored(result: RestoreResult) -> Shown {
    let RestoreResult { backup_id, number, taken_at, volumes, new_instance, attached_to, warnings } = result;
    let volumes = volumes.into_iter().map(volume).collect();
    let named = |instance: Named| NamedInstance { id: instance.id, name: instance.name };
    let (new_instance, attached_to) = (new_instance.map(named), attached_to.map(named));
    let summary = RestoreSummary { backup_id, number, taken_at, volumes, new_instance, attached_to };
    Shown { restore: Some(Box::new(summary)), warnings, ..Shown::default() }
}

fn backup(manifest: Manifest) -> BackupSummary {
    BackupSummary {
        backup_id: manifest.backup_id,
        number: manifest.number,
        parent: manifest.parent(),
        directory: format!("instances/{}/{}", manifest.instance_id, manifest.backup_id),
        transfer: manifest.transfer,
        consistency: manifest.quiesce.consistency,
        consistency_reason: manifest.quiesce.reason,
        frozen_ms: manifest.quiesce.frozen_ms,
        guest: manifest.guest,
        verification: manifest.verification,
        disks: manifest.disks.into_iter().map(disk).collect(),
        skipped_disks: manifest.skipped_disks,
    }
}

fn disk(disk: ManifestDisk) -> BackedUpDisk {
    BackedUpDisk {
        target: disk.target,
        virtual_bytes: disk.virtual_bytes,
        data_bytes: disk.data_bytes,
        file_bytes: disk.file_bytes,
        content_root: disk.content_root,
        found_by: disk.based_on.map(|based_on| based_on.found_by),
        full_reason: disk.full_reason,
    }
}

fn volume(volume: Volume) -> RestoredVolume {
    RestoredVolume {
        disk: volume.disk,
        target: volume.target,
        volume: volume.volume.display().to_string(),
        format: Some(volume.format),
        previous: volume.previous.map(|previous| previous.display().to_string()),
        virtual_bytes: volume.virtual_bytes,
        data_bytes: volume.data_bytes,
        content_root: volume.content_root,
    }
}
