//! From what the work returned to what the `completed` event says of it.

use serde_json::Value;

use crate::failure::Failure;
use crate::job::backup::BackupResult;
use crate::message::event::{BackedUpDisk, BackupSummary};
use crate::model::manifest::{Manifest, ManifestDisk};

/// The summary of the backup that a completed saga's value holds, and the warnings that came with it. No value, no backup.
pub fn backup_summary(value: &Value) -> Result<(Option<BackupSummary>, Vec<String>), Failure> {
    if value.is_null() {
        return Ok((None, Vec::new()));
    }
    let BackupResult { manifest, warnings } = BackupResult::from_value(value)?;
    let all = manifest.warnings.iter().cloned().chain(warnings).collect();
    Ok((Some(summary(manifest)), all))
}

fn summary(manifest: Manifest) -> BackupSummary {
    BackupSummary {
        backup_id: manifest.backup_id,
        number: manifest.number,
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
    }
}
