//! What comes of a backup: its manifest, and what the `completed` event says of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use super::plan::PlannedDisk;
use crate::failure::{Code, Failure};
use crate::model::manifest::{Consistency, GuestRecord, MadeBy, Manifest, ManifestDisk, QuiesceRecord, RecordFile};
use crate::mover::protocol::{CopiedDisk, SealedFile};

/// The published backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupResult {
    /// Its manifest, as published.
    pub manifest: Manifest,
    /// What did not go as it should while it was published, though it is good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl BackupResult {
    /// The result of publishing `manifest` as the instance's backup `number`.
    pub(super) fn new(manifest: Manifest, number: u64, warnings: Vec<String>) -> Self {
        Self { manifest: Manifest { number, ..manifest }, warnings }
    }

    /// As the commit's value.
    pub(super) fn to_value(&self) -> Result<Value, Failure> {
        serde_json::to_value(self)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down the result of the backup").because(&error))
    }

    /// From the value of a completed saga.
    pub fn from_value(value: &Value) -> Result<Self, Failure> {
        Self::deserialize(value)
            .map_err(|error| Failure::new(Code::Internal, "cannot read the result of the backup").because(&error))
    }
}

/// Puts together what the steps found out; `files` is everything in the staging directory.
pub(super) fn manifest(context: &Context, files: &[SealedFile]) -> Result<Manifest, Failure> {
    let plan = &context.plan;
    let facts = context.facts()?;
    let files: BTreeMap<&str, &SealedFile> = files.iter().map(|file| (file.file.as_str(), file)).collect();
    let finished_at = Timestamp::now();
    let mut disks = Vec::with_capacity(plan.disks.len());
    for disk in &plan.disks {
        let full_reason = context.basis.full_reason(&disk.target).map(str::to_owned);
        let made = manifest_disk(disk, &context.copied, &files)?;
        let checkpoint = context.tracking.checkpoint.as_ref();
        let checkpoint = checkpoint.filter(|checkpoint| checkpoint.disks.contains(&disk.target));
        let checkpoint = checkpoint.map(|checkpoint| checkpoint.name.clone());
        disks.push(ManifestDisk { full_reason: made.full_reason.or(full_reason), checkpoint, ..made });
    }
    let of_a_disk = |name: &str| disks.iter().any(|disk| disk.file == name || disk.blocks_file == name);
    let records = files.values().filter(|file| !of_a_disk(&file.file)).map(|file| record_file(file));
    let records = records.collect::<Result<Vec<_>, Failure>>()?;
    Ok(Manifest {
        format: Manifest::FORMAT,
        backup_id: plan.backup_id,
        number: 0,
        repository_id: context.common.job.repository.id,
        instance_id: plan.instance_id,
        instance_name: plan.instance_name.clone(),
        instance_state: plan.instance_state,
        job_id: plan.key.job_id,
        run: plan.key.run,
        attempt: plan.attempt,
        transfer: plan.transfer(),
        taken_at: context.taken_at.unwrap_or(finished_at),
        finished_at,
        quiesce: context.quiesce.clone().unwrap_or_else(|| not_frozen(context)),
        guest: context.begin_ms.map(|begin_ms| GuestRecord { begin_ms, worst_write_ms: context.worst_write_ms }),
        verification: plan.verification,
        disks,
        skipped_disks: plan.skipped_disks.clone(),
        records,
        made_by: MadeBy {
            host: context.common.settings.host.clone(),
            longshore: env!("CARGO_PKG_VERSION").to_owned(),
            libvirt: facts.versions.libvirt.to_string(),
            qemu: facts.versions.qemu.to_string(),
        },
        labels: context.common.job.labels.clone(),
        warnings: context.common.warnings.clone(),
    })
}

fn not_frozen(context: &Context) -> QuiesceRecord {
    let freeze = &context.plan.freeze;
    QuiesceRecord {
        requested: freeze.requested,
        consistency: Consistency::Crash,
        not_frozen: Vec::new(),
        frozen_ms: None,
        reason: freeze.reason.clone(),
    }
}

fn manifest_disk(
    disk: &PlannedDisk,
    copied: &[CopiedDisk],
    files: &BTreeMap<&str, &SealedFile>,
) -> Result<ManifestDisk, Failure> {
    let missing = |what: String| Failure::new(Code::Internal, format!("the mover did not say what became of {what}"));
    let copied = copied.iter().find(|copied| copied.target == disk.target);
    let copied = copied.ok_or_else(|| missing(format!("disk `{}`", disk.target)))?;
    let (file, blocks_file) = (format!("{}.qcow2", disk.target), format!("{}.blocks", disk.target));
    let image = files.get(file.as_str()).ok_or_else(|| missing(format!("`{file}`")))?;
    if !files.contains_key(blocks_file.as_str()) {
        return Err(missing(format!("`{blocks_file}`")));
    }
    Ok(ManifestDisk {
        target: disk.target.clone(),
        serial: disk.serial.clone(),
        source: disk.source.clone(),
        pool_volume: disk.pool_volume.clone(),
        file_bytes: image.bytes,
        file,
        virtual_bytes: copied.virtual_bytes,
        data_bytes: copied.data_bytes,
        blocks_file,
        content_root: copied.content_root.clone(),
        based_on: copied.based_on.clone(),
        full_reason: copied.full_reason.clone(),
        checkpoint: None,
    })
}

fn record_file(file: &SealedFile) -> Result<RecordFile, Failure> {
    let blake3 = file.blake3.clone().ok_or_else(|| {
        Failure::new(Code::Internal, format!("the mover did not hash the record `{}`", file.file.escape_debug()))
    })?;
    Ok(RecordFile { file: file.file.clone(), bytes: file.bytes, blake3 })
}
