//! Disks that come and go while the instance runs, between the backups of a chain: a new one is stored whole, with the reason, and the
//! others go on.

use std::path::{Path, PathBuf};

use longshore::message::event::{BackedUpDisk, BackupSummary};
use longshore::message::job::{NewVolumePart, RestoreNewPart};
use longshore::model::manifest::ChangesFoundBy;

use crate::fleet::Fleet;
use crate::image::{equal, holds, qemu_img};
use crate::incremental::{back_up, checkpoints, image};
use crate::lab::{LabInstance, virsh};

const MIB: u64 = 1 << 20;
/// The device of QEMU that is the disk `sda`: of all disks those of this bus go without a guest that lets go of them.
const SDA: &str = "scsi0-0-0-0";

/// A disk that can be attached.
fn made(bare: &LabInstance, name: &str) -> PathBuf {
    let path = bare.folder.join(name);
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "8M"]);
    path
}

fn attach(bare: &LabInstance, disk: &Path, serial: &str) {
    let file = disk.to_str().unwrap();
    let as_sda =
        ["--targetbus", "scsi", "--driver", "qemu", "--subdriver", "qcow2", "--serial", serial, "--persistent"];
    virsh(&[&["attach-disk", &bare.name, file, "sda"], &as_sda[..]].concat());
}

fn detach(bare: &LabInstance) {
    virsh(&["detach-disk", &bare.name, "sda", "--persistent"]);
}

fn disk<'b>(backup: &'b BackupSummary, target: &str) -> &'b BackedUpDisk {
    backup.disks.iter().find(|disk| disk.target.as_str() == target).unwrap_or_else(|| panic!("{backup:?}"))
}

fn is_by_bitmap(backup: &BackupSummary, target: &str, data_bytes: u64) {
    let disk = disk(backup, target);
    assert_eq!((disk.found_by, disk.data_bytes), (Some(ChangesFoundBy::Bitmap), data_bytes), "{disk:?}");
}

fn is_whole_as_new(backup: &BackupSummary, target: &str) {
    let disk = disk(backup, target);
    let reason = disk.full_reason.as_ref().unwrap_or_else(|| panic!("{disk:?}"));
    assert!(disk.found_by.is_none() && reason.contains("has no such disk"), "{disk:?}");
}

#[test]
fn a_disk_that_comes_goes_or_is_another_leaves_the_chain_of_the_others_alone() {
    let fleet = Fleet::start("hotplug");
    let share = fleet.share();
    let bare = LabInstance::bare_off_with("vda:qcow2:16");
    let controller = "<controller type='scsi' model='virtio-scsi'/></devices>";
    bare.redefine(|definition| definition.replace("</devices>", controller));
    bare.start();
    let full = back_up(&fleet, &bare, &share);

    let one = made(&bare, "one.qcow2");
    attach(&bare, &one, "one");
    bare.overwrite(0, 0x11, "1M");
    bare.qemu_io_at(SDA, "write -P 0x12 0 1M");
    let came = back_up(&fleet, &bare, &share);
    assert_eq!(came.parent, Some(full.backup_id));
    is_by_bitmap(&came, "vda", MIB);
    is_whole_as_new(&came, "sda");

    bare.qemu_io_at(SDA, "write -P 0x13 1M 128k");
    let stayed = back_up(&fleet, &bare, &share);
    is_by_bitmap(&stayed, "vda", 0);
    is_by_bitmap(&stayed, "sda", 128 << 10);

    // Another one in its place, with a serial number of its own.
    detach(&bare);
    equal(&one, "qcow2", &image(&share, &stayed, "sda"), "qcow2");
    let two = made(&bare, "two.qcow2");
    attach(&bare, &two, "two");
    bare.overwrite(0, 0x14, "64k");
    bare.qemu_io_at(SDA, "write -P 0x15 2M 1M");
    let other = back_up(&fleet, &bare, &share);
    is_by_bitmap(&other, "vda", 64 << 10);
    is_whole_as_new(&other, "sda");

    detach(&bare);
    equal(&two, "qcow2", &image(&share, &other, "sda"), "qcow2");
    bare.overwrite(0, 0x16, "64k");
    let gone = back_up(&fleet, &bare, &share);
    assert_eq!((gone.parent, gone.disks.len()), (Some(other.backup_id), 1));
    is_by_bitmap(&gone, "vda", 64 << 10);
    assert_eq!(checkpoints(&bare).len(), 1);
    bare.stop();
    let volume = bare.folder.join("vda.qcow2");
    equal(&volume, "qcow2", &image(&share, &gone, "vda"), "qcow2");

    // A point at which it had a disk more: it says so, and the rest can be had.
    let mut job = fleet.restore_job(&bare, &share, &stayed);
    let failed = fleet.failed(fleet.publish(&job)).failure;
    assert!(failed.code == "disk_not_found" && failed.text.contains("disk `sda`"), "{failed:?}");
    job = fleet.restore_job(&bare, &share, &stayed);
    job.restore.as_mut().unwrap().disks = vec!["vda".to_owned()];
    fleet.restored(fleet.publish(&job));
    equal(&volume, "qcow2", &image(&share, &stayed, "vda"), "qcow2");
    let alone = bare.folder.join("sda-again.qcow2");
    let new = NewVolumePart { path: alone.to_str().unwrap().to_owned(), ..NewVolumePart::default() };
    let mut job = fleet.restore_job(&bare, &share, &stayed);
    (job.kind, job.restore) = ("restore-new".to_owned(), None);
    job.restore_new = Some(RestoreNewPart {
        backup_id: stayed.backup_id.to_string(),
        disks: vec!["sda".to_owned()],
        volume: Some(new),
        ..RestoreNewPart::default()
    });
    fleet.restored(fleet.publish(&job));
    equal(&alone, "qcow2", &one, "qcow2");
    holds(&alone, "qcow2", 0x12, "1M");
    fleet.finish(&[&bare], &[&share]);
}
