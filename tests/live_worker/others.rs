//! What others keep of an instance: a checkpoint of another tool, and internal snapshots.

use std::process::Command;

use longshore::message::event::RunDetail;
use longshore::model::manifest::ChangesFoundBy;

use crate::fleet::{Fleet, JOB};
use crate::image::{equal, qemu_img, qemu_io};
use crate::incremental::{back_up, checkpoints, image};
use crate::lab::{LabInstance, variable, virsh};

const MIB: u64 = 1 << 20;
const DISK: &str = "vda:qcow2:16";
const THEIRS: &str = "another-tool";

/// Whether virsh does it.
fn does(arguments: &[&str]) -> bool {
    let output = Command::new(variable("LONGSHORE_LAB_VIRSH")).arg("-q").args(arguments).output().unwrap();
    output.status.success()
}

fn release(fleet: &Fleet, bare: &LabInstance) {
    let released = fleet.command_on_host(&["instance", "release-tracking", &bare.name]).output().unwrap();
    assert!(released.status.success() && !released.stdout.is_empty(), "{released:?}");
}

#[test]
fn a_checkpoint_of_another_tool_is_never_touched_and_keeps_no_backup_from_being_made() {
    let fleet = Fleet::start("others");
    let share = fleet.share();
    let bare = LabInstance::bare_with(DISK);
    let theirs = |what: &str| assert!(checkpoints(&bare).contains(&THEIRS.to_owned()), "{what}");
    // Before ours, between two of ours, and after.
    virsh(&["checkpoint-create-as", &bare.name, THEIRS, "--diskspec", "vda"]);
    let full = back_up(&fleet, &bare, &share);
    theirs("a first backup");
    bare.overwrite(0, 0x11, "1M");
    virsh(&["checkpoint-create-as", &bare.name, "another-one", "--diskspec", "vda"]);
    bare.overwrite(0, 0x12, "64k");
    let second = back_up(&fleet, &bare, &share);
    assert_eq!((second.parent, second.disks[0].found_by), (Some(full.backup_id), Some(ChangesFoundBy::Bitmap)));
    assert_eq!(second.disks[0].data_bytes, MIB);
    assert_eq!(checkpoints(&bare).len(), 3);
    virsh(&["checkpoint-delete", &bare.name, "another-one"]);
    bare.overwrite(0, 0x13, "128k");
    let third = back_up(&fleet, &bare, &share);
    assert_eq!((third.disks[0].found_by, third.disks[0].data_bytes), (Some(ChangesFoundBy::Bitmap), 128 << 10));

    release(&fleet, &bare);
    assert_eq!(checkpoints(&bare), [THEIRS], "theirs is not ours to release");
    let read = back_up(&fleet, &bare, &share);
    assert_eq!((read.disks[0].found_by, read.disks[0].data_bytes), (Some(ChangesFoundBy::Hashes), 0));
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &read, "vda"), "qcow2");

    // Its bitmap went with the old volume, its name is left to it, and the next backup is made all the same.
    fleet.restored(fleet.publish(&fleet.restore_job(&bare, &share, &second)));
    assert_eq!(checkpoints(&bare), [THEIRS]);
    bare.start();
    let after = back_up(&fleet, &bare, &share);
    assert_eq!(after.disks[0].found_by, Some(ChangesFoundBy::Hashes));
    theirs("a backup after a restore");
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &after, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn an_instance_goes_back_to_an_internal_snapshot_once_tracking_is_released_and_its_next_backup_sees_it() {
    let fleet = Fleet::start("reverts");
    let share = fleet.share();
    let bare = LabInstance::bare_with(DISK);
    let volume = bare.folder.join("vda.qcow2");
    let full = back_up(&fleet, &bare, &share);
    virsh(&["snapshot-create-as", &bare.name, "before"]);
    bare.overwrite(0, 0x11, "1M");
    let second = back_up(&fleet, &bare, &share);
    assert_eq!((second.parent, second.disks[0].found_by), (Some(full.backup_id), Some(ChangesFoundBy::Bitmap)));

    let revert = ["snapshot-revert", &bare.name, "before"];
    assert!(!does(&revert), "QEMU reverts no image with a bitmap, and nobody sees one go back under it");
    // Which leaves it shut off.
    bare.start();
    release(&fleet, &bare);
    virsh(&revert);
    let back = back_up(&fleet, &bare, &share);
    assert_eq!((back.parent, back.disks[0].found_by), (Some(second.backup_id), Some(ChangesFoundBy::Hashes)));
    assert_eq!(back.disks[0].content_root, full.disks[0].content_root, "it is what it was");

    // Behind our back: the bitmaps taken out of the image of a stopped instance by hand, for nothing else lets it go back.
    bare.stop();
    let apply = |image: &std::path::Path| {
        let output = Command::new("qemu-img").args(["snapshot", "-q", "-a", "before"]).arg(image).output().unwrap();
        output.status.success()
    };
    assert!(!apply(&volume), "qemu-img takes no image back either");
    qemu_io(&volume, "qcow2", &["write -P 0x21 3M 1M"]);
    for name in checkpoints(&bare) {
        qemu_img(&["bitmap", "--remove", volume.to_str().unwrap(), &name]);
    }
    assert!(apply(&volume));
    bare.start();
    let job = fleet.back_up(&bare, &share, "off");
    let RunDetail::Completed(found) = fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    let found = found.backup.unwrap();
    assert_eq!((found.parent, found.disks[0].found_by), (Some(back.backup_id), Some(ChangesFoundBy::Hashes)));
    assert_eq!(found.disks[0].content_root, full.disks[0].content_root);
    bare.stop();
    equal(&volume, "qcow2", &image(&share, &found, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}
