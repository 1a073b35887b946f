//! A manifest and the files that go with it, for the tests of this folder.
#![allow(clippy::unwrap_used)]

use crate::model::id::{BackupId, InstanceId, JobId, RepositoryId};
use crate::model::instance::{DiskSource, ImageFormat, PowerState};
use crate::model::job::Quiesce;
use crate::model::manifest::{
    BasedOn, ChangesFoundBy, Consistency, MadeBy, Manifest, ManifestDisk, Proof, QuiesceRecord, RecordFile,
    TransferUsed,
};
use crate::mover::image::backing_name;

/// Length of what stands for an image: no more than its header.
const IMAGE_BYTES: usize = 512;
const DEFINITION: &[u8] = b"<domain/>";

/// A backup of instance `web` with those disks.
pub(super) fn manifest(targets: &[&str]) -> Manifest {
    let disk = |target: &&str| ManifestDisk {
        target: target.parse().unwrap(),
        serial: None,
        source: DiskSource::File { path: format!("/images/{target}.qcow2").into(), format: ImageFormat::Qcow2 },
        pool_volume: None,
        file: format!("{target}.qcow2"),
        virtual_bytes: 1 << 20,
        file_bytes: IMAGE_BYTES as u64,
        data_bytes: 0,
        blocks_file: format!("{target}.blocks"),
        content_root: "00".repeat(32),
        based_on: None,
        full_reason: None,
        checkpoint: None,
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

/// An incremental backup of the same disks on top of that one.
pub(super) fn child_of(parent: &Manifest) -> Manifest {
    let mut child = Manifest { backup_id: BackupId::draw(), number: parent.number + 1, ..parent.clone() };
    for disk in &mut child.disks {
        let (backup_id, content_root) = (parent.backup_id, disk.content_root.clone());
        disk.based_on = Some(BasedOn { backup_id, content_root, found_by: ChangesFoundBy::Hashes });
    }
    child
}

/// The beginning of an image as we have them made, with the name of a backing file if it has one.
pub(super) fn image_header(backing: Option<&str>) -> Vec<u8> {
    let mut image = vec![0; IMAGE_BYTES];
    // Magic, version, size of a cluster, table of count blocks and its clusters, size of a count.
    for (at, number) in [(0, 0x5146_49fb_u32), (4, 3), (20, 16), (52, 65536), (56, 1), (96, 4)] {
        image[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    if let Some(name) = backing {
        image[8..16].copy_from_slice(&200_u64.to_be_bytes());
        image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        image[200..200 + name.len()].copy_from_slice(name.as_bytes());
    }
    image
}

/// Every file that such a manifest names.
pub(super) fn fill(manifest: &Manifest, mut write: impl FnMut(&str, &[u8])) {
    for disk in &manifest.disks {
        let backing = disk.based_on.as_ref().map(|based_on| backing_name(based_on.backup_id, &disk.file));
        write(&disk.file, &image_header(backing.as_deref()));
        write(&disk.blocks_file, b"hashes");
    }
    for record in &manifest.records {
        write(&record.file, DEFINITION);
    }
}

/// Puts such a backup into the repository at `root`, with all of its files.
pub(super) fn published(root: &std::path::Path, manifest: &Manifest) -> Manifest {
    let directory =
        root.join(super::share::INSTANCES).join(manifest.instance_id.to_string()).join(manifest.backup_id.to_string());
    std::fs::create_dir_all(&directory).unwrap();
    fill(manifest, |name, content| std::fs::write(directory.join(name), content).unwrap());
    std::fs::write(directory.join(Manifest::FILE), serde_json::to_vec(manifest).unwrap()).unwrap();
    manifest.clone()
}
