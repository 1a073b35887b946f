//! What comes between the backups of a chain, or into one of them, and costs neither the content nor the chain.

use longshore::message::event::{BackupSummary, RunDetail};
use longshore::model::manifest::ChangesFoundBy;

use crate::fleet::{Fleet, JOB};
use crate::image::equal;
use crate::incremental::{back_up, checkpoints, image, kill_and_start};
use crate::lab::LabInstance;
use crate::share::Share;

/// Both disks can be tracked.
const DISKS: &str = "vda:qcow2:8,vdb:qcow2:8";

fn found_by(backup: &BackupSummary) -> Vec<Option<ChangesFoundBy>> {
    backup.disks.iter().map(|disk| disk.found_by).collect()
}

fn both_are_equal(bare: &LabInstance, share: &Share, backup: &BackupSummary) {
    for disk in ["vda", "vdb"] {
        equal(&bare.folder.join(format!("{disk}.qcow2")), "qcow2", &image(share, backup, disk), "qcow2");
    }
}

#[test]
fn a_backup_whose_qemu_is_killed_is_made_by_the_next_attempt_and_the_chain_goes_on() {
    let fleet = Fleet::start("qemu-killed");
    let share = Share::faulty("qemu-killed");
    let bare = LabInstance::bare_with(DISKS);
    let full = back_up(&fleet, &bare, &share);
    bare.overwrite(0, 0x21, "6M");
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    kill_and_start(&bare);
    share.heal();
    fleet.heard.of_run(job, "the attempt is given up", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    let backup = completed.backup.unwrap();
    assert_eq!((backup.parent, found_by(&backup)), (Some(full.backup_id), vec![Some(ChangesFoundBy::Hashes); 2]));
    bare.overwrite(0, 0x22, "64k");
    let next = back_up(&fleet, &bare, &share);
    assert_eq!((next.parent, found_by(&next)), (Some(backup.backup_id), vec![Some(ChangesFoundBy::Bitmap); 2]));
    bare.stop();
    both_are_equal(&bare, &share, &next);
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn after_one_disk_was_put_back_all_is_read_once_and_the_chain_goes_on() {
    let fleet = Fleet::start("one-back");
    let share = fleet.share();
    let bare = LabInstance::bare_with(DISKS);
    let first = back_up(&fleet, &bare, &share);
    bare.overwrite(0, 0x31, "2M");
    let second = back_up(&fleet, &bare, &share);
    bare.stop();
    let mut job = fleet.restore_job(&bare, &share, &first);
    job.restore.as_mut().unwrap().disks = vec!["vda".to_owned()];
    let RunDetail::Completed(_) = fleet.heard.end_of(fleet.publish(&job), JOB) else { panic!("it is not restored") };
    bare.start();
    bare.overwrite(1, 0x32, "64k");
    let job = fleet.back_up(&bare, &share, "off");
    let RunDetail::Completed(told) = fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    let [warning] = &told.warnings[..] else { panic!("{:?}", told.warnings) };
    assert!(warning.contains("can be tracked") && warning.contains("disk 'vda'"), "{warning}");
    let third = told.backup.unwrap();
    assert_eq!(third.parent, Some(second.backup_id));
    assert_eq!(found_by(&third), [Some(ChangesFoundBy::Hashes); 2]);
    assert_eq!(checkpoints(&bare).len(), 1);
    bare.overwrite(0, 0x33, "64k");
    let fourth = back_up(&fleet, &bare, &share);
    assert_eq!(found_by(&fourth), [Some(ChangesFoundBy::Bitmap); 2]);
    bare.stop();
    both_are_equal(&bare, &share, &fourth);
    fleet.finish(&[&bare], &[&share]);
}
