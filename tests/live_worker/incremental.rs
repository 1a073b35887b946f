//! Backups of what had changed, of real instances: how it is found, what it takes, and that each point comes back as it was.

use std::path::PathBuf;

use longshore::message::event::{BackupSummary, RunDetail};
use longshore::model::manifest::{ChangesFoundBy, TransferUsed};

use crate::fleet::{Fleet, JOB};
use crate::image::equal;
use crate::lab::{LabInstance, eventually, virsh};
use crate::share::Share;

const MIB: u64 = 1 << 20;

pub fn back_up(fleet: &Fleet, instance: &LabInstance, share: &Share) -> BackupSummary {
    fleet.completed(fleet.back_up(instance, share, "off"))
}

/// How the changes of `vda` and of the raw `vdb`, which can't keep a bitmap, were found.
pub fn found_by(backup: &BackupSummary) -> [Option<ChangesFoundBy>; 2] {
    let [vda, vdb] = &backup.disks[..] else { panic!("{backup:?}") };
    [vda.found_by, vdb.found_by]
}

pub const BY_BITMAP: [Option<ChangesFoundBy>; 2] = [Some(ChangesFoundBy::Bitmap), Some(ChangesFoundBy::Hashes)];
pub const BY_HASHES: [Option<ChangesFoundBy>; 2] = [Some(ChangesFoundBy::Hashes); 2];

pub fn image(share: &Share, backup: &BackupSummary, disk: &str) -> PathBuf {
    share.path.join(&backup.directory).join(format!("{disk}.qcow2"))
}

/// The checkpoints that the domain has, asked past the code under test.
pub fn checkpoints(instance: &LabInstance) -> Vec<String> {
    virsh(&["checkpoint-list", &instance.name, "--name"]).lines().map(str::to_owned).collect()
}

/// Kills the instance's QEMU, which writes no bitmap any more, and starts another.
pub fn kill_and_start(instance: &LabInstance) {
    let word = format!("guest={},", instance.name);
    let pid = crate::slate::process_of_qemu(&word);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("libvirt sees it", JOB, || virsh(&["domstate", &instance.name]) == "shut off");
    instance.start();
}

#[test]
fn what_a_running_instance_has_written_is_found_by_its_bitmap_and_read_whole_where_that_was_lost() {
    let fleet = Fleet::start("incremental");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let full = back_up(&fleet, &bare, &share);
    assert_eq!((full.parent, found_by(&full)), (None, [None; 2]));
    assert!(full.disks.iter().all(|disk| disk.full_reason.as_ref().unwrap().contains("first backup")), "{full:?}");

    bare.overwrite(0, 0x11, "3M");
    let second = back_up(&fleet, &bare, &share);
    assert_eq!((second.parent, found_by(&second)), (Some(full.backup_id), BY_BITMAP));
    assert_eq!((second.disks[0].data_bytes, second.disks[1].data_bytes), (3 * MIB, 0));
    let [kept] = &checkpoints(&bare)[..] else { panic!("{:?}", checkpoints(&bare)) };
    assert!(kept.contains(&second.backup_id.to_string()), "{kept}");

    // Less than a block of ours, over an end of the instance that was no accident.
    bare.stop();
    bare.start();
    bare.overwrite(0, 0x22, "128k");
    let third = back_up(&fleet, &bare, &share);
    assert_eq!((found_by(&third), third.disks[0].data_bytes), (BY_BITMAP, 128 * 1024));

    kill_and_start(&bare);
    bare.overwrite(0, 0x33, "64k");
    let job = fleet.back_up(&bare, &share, "off");
    let RunDetail::Completed(lost) = fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    assert!(lost.warnings.iter().any(|warning| warning.contains("can be tracked")), "{:?}", lost.warnings);
    let fourth = lost.backup.unwrap();
    assert_eq!((fourth.parent, found_by(&fourth)), (Some(third.backup_id), BY_HASHES));
    assert_eq!(fourth.disks[0].data_bytes, MIB, "a block of ours");
    bare.overwrite(0, 0, "64k");
    let fifth = back_up(&fleet, &bare, &share);
    assert_eq!((found_by(&fifth), fifth.disks[0].data_bytes), (BY_BITMAP, 0), "zeros over data are no data");

    bare.stop();
    let stopped = back_up(&fleet, &bare, &share);
    assert_eq!((stopped.transfer, found_by(&stopped)), (TransferUsed::Stopped, BY_BITMAP));
    assert_eq!(stopped.disks[0].data_bytes, 0, "nothing has changed");
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &stopped, "vda"), "qcow2");
    equal(&bare.folder.join("vdb.raw"), "raw", &image(&share, &stopped, "vdb"), "qcow2");

    // Back to the second, from where it goes on although no image holds a bitmap.
    fleet.restored(fleet.publish(&fleet.restore_job(&bare, &share, &second)));
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &second, "vda"), "qcow2");
    let volume = bare.folder.join("vda.qcow2");
    let mut read = std::process::Command::new("qemu-io");
    let read = read.args(["-f", "qcow2", "-c", "read -P 0x11 0 3M"]).arg(volume).output().unwrap();
    assert!(read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed"), "{read:?}");
    assert_eq!(checkpoints(&bare), [""; 0], "what was put back remembers nothing");
    bare.start();
    let after = back_up(&fleet, &bare, &share);
    assert_eq!((after.parent, found_by(&after)), (Some(stopped.backup_id), BY_HASHES));
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &after, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn two_repositories_of_one_instance_keep_out_of_each_others_way() {
    let fleet = Fleet::start("two-shares");
    let shares = [Share::directory(fleet.folder.join("one")), Share::directory(fleet.folder.join("other"))];
    let bare = LabInstance::bare();
    let firsts: Vec<_> = shares.iter().map(|share| back_up(&fleet, &bare, share)).collect();
    for (share, first) in shares.iter().zip(&firsts) {
        bare.overwrite(0, 0x44, "1M");
        let next = back_up(&fleet, &bare, share);
        assert_eq!((next.parent, found_by(&next)), (Some(first.backup_id), BY_BITMAP));
        assert_eq!(checkpoints(&bare).len(), 2);
        bare.overwrite(0, 0x55, "2M");
    }
    let lasts: Vec<_> = shares.iter().map(|share| back_up(&fleet, &bare, share)).collect();
    let released = fleet.command_on_host(&["instance", "release-tracking", &bare.name]).output().unwrap();
    assert!(released.status.success(), "{released:?}");
    assert_eq!((String::from_utf8_lossy(&released.stdout).lines().count(), checkpoints(&bare)), (2, Vec::new()));
    bare.stop();
    for (share, last) in shares.iter().zip(&lasts) {
        assert_eq!(found_by(last), BY_BITMAP);
        equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(share, last, "vda"), "qcow2");
    }
    fleet.finish(&[&bare], &shares.iter().collect::<Vec<_>>());
}

#[test]
fn an_instance_that_was_defined_anew_goes_on_with_its_chain() {
    let fleet = Fleet::start("redefined");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let full = back_up(&fleet, &bare, &share);
    let definition = fleet.folder.join("domain.xml");
    std::fs::write(&definition, virsh(&["dumpxml", "--inactive", &bare.name])).unwrap();
    bare.stop();
    virsh(&["undefine", &bare.name, "--checkpoints-metadata"]);
    virsh(&["define", definition.to_str().unwrap()]);
    bare.start();
    bare.overwrite(0, 0x66, "1M");
    let next = back_up(&fleet, &bare, &share);
    assert_eq!(
        (next.parent, found_by(&next)),
        (Some(full.backup_id), BY_BITMAP),
        "its checkpoint was made known again"
    );
    assert_eq!(checkpoints(&bare).len(), 1);
    bare.overwrite(0, 0x77, "1M");
    let last = back_up(&fleet, &bare, &share);
    assert_eq!(found_by(&last), BY_BITMAP);
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &last, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}
