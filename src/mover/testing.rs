//! A manifest and the files that go with it, for the tests of this folder.
#![allow(clippy::unwrap_used)]

use crate::model::id::{BackupId, InstanceId, JobId, RepositoryId};
use crate::model::instance::{DiskSource, ImageFormat, PowerState};
use crate::model::job::Quiesce;
use crate::model::manifest::{
    Consistency, MadeBy, Manifest, ManifestDisk, Proof, QuiesceRecord, RecordFile, TransferUsed,
};

const IMAGE: &[u8] = b"not really an image";
const DEFINITION: &[u8] = b"<domain/>";

/// A backup of instance `web` with those disks.
pub(super) fn manifest(targets: &[&str]) -> Manifest {
    let disk = |target: &&str| ManifestDisk {
        target: target.parse().unwrap(),
        serial: None,
        source: DiskSource::File { path: format!("/images/{target}.qcow2").into(), format: ImageFormat::Qcow2 },
        file: format!("{target}.qcow2"),
        virtual_bytes: 1 << 20,
        file_bytes: IMAGE.len() as u64,
        data_bytes: 0,
        blocks_file: format!("{target}.blocks"),
        content_root: "00".repeat(32),
    };
    Manifest {
        format: Manifest::FORMAT,
        backup_id: BackupId::draw(),
        number: 0,
        repository_id: RepositoryId::draw(),
        instance_id: InstanceId::draw(),
        instance_name: "web".parse().unwrap(),
        instance_state: PowerState::Running,
        job_id: JobId::draw(),
        run: 1,
        attempt: 1,
        transfer: TransferUsed::Pull,
        taken_at: jiff::Timestamp::UNIX_EPOCH,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        quiesce: QuiesceRecord {
            requested: Quiesce::Off,
            consistency: Consistency::Crash,
            not_frozen: Vec::new(),
            frozen_ms: None,
            reason: None,
        },
        guest: None,
        verification: Proof::Compared,
        disks: targets.iter().map(disk).collect(),
        skipped_disks: Vec::new(),
        records: vec![RecordFile {
            file: "domain.xml".into(),
            bytes: DEFINITION.len() as u64,
            blake3: blake3::hash(DEFINITION).to_hex().to_string(),
        }],
        made_by: MadeBy {
            host: "kvm-07".parse().unwrap(),
            longshore: "0.1.0".into(),
            libvirt: "11.3.0".into(),
            qemu: "10.0.0".into(),
        },
        labels: Default::default(),
        warnings: Vec::new(),
    }
}

/// Every file that such a manifest names.
pub(super) fn fill(manifest: &Manifest, mut write: impl FnMut(&str, &[u8])) {
    for disk in &manifest.disks {
        write(&disk.file, IMAGE);
        write(&disk.blocks_file, b"hashes");
    }
    for record in &manifest.records {
        write(&record.file, DEFINITION);
    }
}
