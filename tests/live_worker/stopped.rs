//! The backup of a stopped instance, also of one that doesn't stay stopped, and disks that are no part of a backup.

use longshore::message::event::RunDetail;
use longshore::model::manifest::{Consistency, TransferUsed};

use crate::fleet::{Fleet, JOB};
use crate::image::equal;
use crate::lab::{LabInstance, virsh};
use crate::share::Share;

#[test]
fn a_stopped_instance_is_backed_up_without_what_its_guest_cannot_write_to() {
    let bare = LabInstance::bare();
    bare.stop();
    give_drives(&bare);
    let fleet = Fleet::start("stopped");
    let share = fleet.share();
    let summary = fleet.completed(fleet.back_up(&bare, &share, "require"));
    assert_eq!(
        (summary.transfer, summary.consistency, summary.frozen_ms),
        (TransferUsed::Stopped, Consistency::Crash, None)
    );
    let reason = summary.consistency_reason.unwrap();
    assert!(reason.contains("nothing to freeze"), "{reason}");
    let backup = share.path.join(&summary.directory);
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &backup.join("vda.qcow2"), "qcow2");
    equal(&bare.folder.join("vdb.reference.raw"), "raw", &backup.join("vdb.qcow2"), "qcow2");

    let disks: Vec<_> = summary.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(disks, ["vda", "vdb"]);
    let mut skipped: Vec<_> =
        summary.skipped_disks.iter().map(|disk| (disk.target.as_str(), disk.reason.as_str())).collect();
    skipped.sort_unstable();
    let targets: Vec<_> = skipped.iter().map(|(target, _)| *target).collect();
    assert_eq!(targets, ["fda", "hdc", "vdr", "vds"], "{skipped:?}");
    assert!(skipped.iter().all(|(_, reason)| !reason.is_empty()), "{skipped:?}");
    let manifest = std::fs::read_to_string(backup.join("manifest.json")).unwrap();
    assert!(targets.iter().all(|target| manifest.contains(target)), "{manifest}");
    fleet.finish(&[&bare], &[&share]);
}

/// Redefines it with a CD-ROM, a floppy, a read-only and a shareable disk.
fn give_drives(bare: &LabInstance) {
    let folder = bare.folder.display();
    let drive = |device: &str, target: &str, bus: &str, word: &str| {
        std::fs::write(bare.folder.join(target), vec![7; 1 << 20]).unwrap();
        format!(
            "<disk type='file' device='{device}'><driver name='qemu' type='raw'/><source file='{folder}/{target}'/>\
             <target dev='{target}' bus='{bus}'/>{word}</disk>"
        )
    };
    let drives = [
        drive("cdrom", "hdc", "ide", "<readonly/>"),
        drive("floppy", "fda", "fdc", ""),
        drive("disk", "vdr", "virtio", "<readonly/>"),
        drive("disk", "vds", "virtio", "<shareable/>"),
    ];
    let definition = virsh(&["dumpxml", "--inactive", &bare.name]);
    let file = bare.folder.join("drives.xml");
    std::fs::write(&file, definition.replace("</devices>", &format!("{}</devices>", drives.concat()))).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
}

#[test]
fn an_instance_that_starts_during_its_backup_is_tried_again_while_it_runs() {
    let bare = LabInstance::bare();
    bare.stop();
    let fleet = Fleet::start("starts");
    let share = Share::faulty("starts");
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    bare.start();
    let retrying = fleet.heard.of_run(job, "the attempt is given up", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
    assert_eq!(retrying.failure.code, "instance_started", "{retrying:?}");
    share.heal();
    let summary = fleet.completed(job);
    assert_eq!(summary.transfer, TransferUsed::Pull);
    equal(
        &bare.folder.join("vdb.reference.raw"),
        "raw",
        &share.path.join(&summary.directory).join("vdb.qcow2"),
        "qcow2",
    );
    fleet.finish(&[&bare], &[&share]);
}
