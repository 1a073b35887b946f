//! The backup of a running instance whose guest agent answers: whole, proven, and the guest none the worse for it.

use std::path::Path;

use longshore::model::job::Quiesce;
use longshore::model::manifest::{Consistency, Manifest, Proof, TransferUsed};

use crate::fleet::Fleet;
use crate::image::{equal, qemu_img};
use crate::lab::LabInstance;

/// Room that qcow2's own tables and half-filled clusters may take beside the data, bytes.
const TABLES_MAX: u64 = 4 << 20;

#[test]
fn a_running_instance_is_quiesced_backed_up_and_proven() {
    let guest = LabInstance::guest();
    let fleet = Fleet::start("running");
    let share = fleet.share();
    let job = fleet.back_up(&guest, &share, "require");
    let summary = fleet.completed(job);
    assert_eq!(
        (summary.number, summary.transfer, summary.consistency),
        (1, TransferUsed::Pull, Consistency::FileSystem)
    );
    assert_eq!(summary.verification, Proof::Compared);
    assert!(summary.frozen_ms.is_some_and(|frozen| frozen < 10_000), "{:?}", summary.frozen_ms);
    assert!(!guest.is_frozen(), "the guest goes on");
    let noticed = summary.guest.expect("it ran");
    assert!(noticed.begin_ms < 10_000, "{noticed:?}");

    let backup = share.path.join(&summary.directory);
    assert_eq!(backup, share.backups_of(&guest.id).join(summary.backup_id.to_string()));
    let manifest = manifest_in(&backup);
    assert_eq!(manifest.guest, Some(noticed));
    assert_eq!(
        (manifest.job_id, manifest.backup_id, manifest.quiesce.requested),
        (job, summary.backup_id, Quiesce::Require)
    );
    everything_is_there(&backup, &manifest);
    for disk in &manifest.disks {
        image_is_sound(&backup.join(&disk.file), disk.data_bytes, disk.file_bytes, TABLES_MAX);
    }
    equal(&guest.folder.join("vdb.reference.raw"), "raw", &backup.join("vdb.qcow2"), "qcow2");
    fleet.finish(&[&guest], &[&share]);
}

/// The manifest of the backup in that directory.
pub fn manifest_in(backup: &Path) -> Manifest {
    serde_json::from_slice(&std::fs::read(backup.join("manifest.json")).unwrap()).unwrap()
}

/// Each file that the manifest names, with the length that it says, and the sentences for a person.
pub fn everything_is_there(backup: &Path, manifest: &Manifest) {
    let targets: Vec<_> = manifest.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb"]);
    for disk in &manifest.disks {
        assert_eq!(std::fs::metadata(backup.join(&disk.file)).unwrap().len(), disk.file_bytes);
        assert!(std::fs::metadata(backup.join(&disk.blocks_file)).unwrap().len() > 0);
    }
    for record in &manifest.records {
        let content = std::fs::read(backup.join(&record.file)).unwrap();
        assert_eq!(blake3::hash(&content).to_hex().to_string(), record.blake3, "{}", record.file);
    }
    let names: Vec<_> = manifest.records.iter().map(|record| record.file.as_str()).collect();
    assert!(names.contains(&"domain.xml") && names.contains(&"agent.json"), "{names:?}");
    let definition = std::fs::read_to_string(backup.join("domain.xml")).unwrap();
    assert!(definition.contains(&manifest.instance_id.to_string()), "{definition}");
    let agent: serde_json::Value = serde_json::from_slice(&std::fs::read(backup.join("agent.json")).unwrap()).unwrap();
    assert!(agent.to_string().contains("ext4"), "{agent}");
    let sentences = std::fs::read_to_string(backup.join("README-RESTORE.txt")).unwrap();
    assert!(sentences.contains("qemu-img") && sentences.contains("vda.qcow2"), "{sentences}");
}

/// Sound, standalone, ending where the file ends, and with its holes still holes: at most so many bytes are stored besides data.
pub fn image_is_sound(image: &Path, data_bytes: u64, file_bytes: u64, besides: u64) {
    use std::os::unix::fs::MetadataExt;
    let check: serde_json::Value =
        serde_json::from_str(&qemu_img(&["check", "--output=json", image.to_str().unwrap()])).unwrap();
    for trouble in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(check.get(trouble).and_then(serde_json::Value::as_u64).unwrap_or(0), 0, "{check}");
    }
    assert_eq!(check["image-end-offset"].as_u64(), Some(file_bytes), "{check}");
    let info: serde_json::Value =
        serde_json::from_str(&qemu_img(&["info", "--output=json", image.to_str().unwrap()])).unwrap();
    assert!(info.get("backing-filename").is_none(), "{info}");
    let (virtual_bytes, allocated) =
        (info["virtual-size"].as_u64().unwrap(), std::fs::metadata(image).unwrap().blocks() * 512);
    assert!(data_bytes < virtual_bytes, "the disk has zeros: {data_bytes} of {virtual_bytes}");
    assert!(allocated <= data_bytes + besides, "{allocated} allocated for {data_bytes} of data");
}
