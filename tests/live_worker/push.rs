//! Backups that QEMU itself writes to the share: proven without trusting libvirt's word, and the guest let go when the share hurts it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use longshore::message::event::RunDetail;
use longshore::message::job::{BackupPart, JobMessage, RetryPart};
use longshore::model::manifest::{Consistency, Proof, TransferUsed};

use crate::fleet::{Fleet, JOB, Settings};
use crate::image::equal;
use crate::lab::{LabInstance, eventually, guard_stands, virsh};
use crate::running::{everything_is_there, image_is_sound, manifest_in};
use crate::share::Share;
use crate::slate::mounts_below;

/// A share that is slow enough for a fault to come while QEMU writes.
const SLOW: &str = r#"{"bw_mb": 8}"#;
/// Room that zeros may take which the source had stored as data: QEMU copies those as they are, bytes.
const ZEROS_MAX: u64 = 32 << 20;
/// Longest time from what paused a guest until it runs again.
const RUNS_AGAIN: Duration = Duration::from_secs(10);

/// A job that pushes, of one attempt.
pub fn push_job(fleet: &Fleet, instance: &LabInstance, share: &Share, quiesce: &str) -> JobMessage {
    let mut job = fleet.job(instance, share);
    let (transfer, quiesce) = (Some("push".to_owned()), Some(quiesce.to_owned()));
    job.backup = Some(BackupPart { transfer, quiesce, ..BackupPart::default() });
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    job
}

#[test]
fn a_running_instance_is_quiesced_and_pushed_and_its_structure_proven() {
    let guest = LabInstance::guest();
    let fleet = Fleet::start("push");
    let share = fleet.share();
    for number in 1..=2 {
        let summary = fleet.completed(fleet.publish(&push_job(&fleet, &guest, &share, "require")));
        assert_eq!(
            (summary.number, summary.transfer, summary.consistency, summary.verification),
            (number, TransferUsed::Push, Consistency::FileSystem, Proof::Structure)
        );
        assert!(summary.frozen_ms.is_some_and(|frozen| frozen < 10_000), "{:?}", summary.frozen_ms);
        assert!(!guest.is_frozen(), "the guest goes on");
        let backup = share.path.join(&summary.directory);
        let manifest = manifest_in(&backup);
        everything_is_there(&backup, &manifest);
        // Of the second one what the guest has written since.
        let (on_top, alone): (Vec<_>, Vec<_>) = manifest.disks.iter().partition(|disk| disk.based_on.is_some());
        assert_eq!((on_top.len(), alone.len()), if number == 2 { (2, 0) } else { (0, 2) }, "{manifest:?}");
        for disk in alone {
            image_is_sound(&backup.join(&disk.file), disk.data_bytes, disk.file_bytes, ZEROS_MAX);
        }
        equal(&guest.folder.join("vdb.reference.raw"), "raw", &backup.join("vdb.qcow2"), "qcow2");
    }
    fleet.finish(&[&guest], &[&share]);
}

/// What goes wrong while QEMU writes, the step that notices, and the code that says so.
const FAULTS: [(&str, &str, &str); 5] = [
    // libvirt calls these two a success: the pages were lost after QEMU had closed the image; the last tables never arrived.
    (r#"{"mode": "late", "file": "vd*.qcow2", "told": "others"}"#, "inspect", "repository_io"),
    (r#"{"mode": "enospc_meta", "file": "vda.qcow2"}"#, "inspect", "image_damaged"),
    (r#"{"mode": "enospc", "file": "vd*.qcow2"}"#, "push", "repository_full"),
    (r#"{"mode": "eio", "file": "vd*.qcow2"}"#, "push", "repository_io"),
    (r#"{"mode": "flip", "file": "domain.xml", "offset": 9}"#, "seal", "content_mismatch"),
];

#[test]
fn what_libvirt_calls_a_success_is_not_published_where_its_content_is_not_there() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("pushbad");
    let share = Share::faulty("pushbad");
    let mut wrong = Vec::new();
    for (orders, step, code) in FAULTS {
        share.order(if step == "seal" { orders } else { SLOW });
        let job = fleet.publish(&push_job(&fleet, &bare, &share, "off"));
        if step != "seal" {
            fleet.is_moving(job, "push");
            share.order(orders);
            eventually("QEMU is done with it", JOB, || !bare.has_backup_job());
            share.heal();
        }
        let failed = fleet.failed(job);
        share.heal();
        let ended = virsh(&["domjobinfo", &bare.name, "--completed", "--keep-completed"]);
        let called_success = ended.contains("Completed");
        let left = share.entries_of(&bare.id);
        let found = (failed.failure.step.as_deref(), failed.failure.code.as_str());
        let runs = virsh(&["domstate", &bare.name]) == "running";
        if found != (Some(step), code) || called_success != (step != "push") || !left.is_empty() || !runs {
            wrong.push(format!("{orders}: {failed:#?}, left {left:?}, libvirt says {ended}, runs {runs}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let job = fleet.publish(&push_job(&fleet, &bare, &share, "off"));
    let backup = share.path.join(fleet.completed(job).directory);
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &backup.join("vda.qcow2"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_guest_that_a_full_share_has_paused_runs_again() {
    let guest = LabInstance::guest();
    let fleet = Fleet::start("pushfull");
    let share = Share::faulty("pushfull");
    share.order(r#"{"bw_mb": 1}"#);
    let job = fleet.publish(&push_job(&fleet, &guest, &share, "off"));
    fleet.is_moving(job, "push");
    // It writes and syncs once a second, and what it overwrites goes to the share first.
    share.order(r#"{"mode": "enospc", "file": "vd*.qcow2"}"#);
    eventually("the job is over", JOB, || !guest.has_backup_job());
    eventually("the guest runs", RUNS_AGAIN, || virsh(&["domstate", &guest.name]) == "running");
    let before = guest.writes_done();
    eventually("its writes are done again", RUNS_AGAIN, || guest.writes_done() >= before + 3);
    share.heal();
    let failed = fleet.failed(job);
    assert_eq!(failed.failure.code, "repository_full", "{failed:#?}");
    assert_eq!(virsh(&["domstate", "--reason", &guest.name]).split(' ').next(), Some("running"));
    fleet.finish(&[&guest], &[&share]);
}

#[test]
fn a_share_that_hangs_keeps_neither_qemu_nor_its_guest() {
    let (guest, bare) = (LabInstance::guest(), LabInstance::bare());
    let fleet = Fleet::with("pushhang", Settings { stall_seconds: 5, ..Settings::default() });
    let (hanging, good) = (Share::faulty("pushhang"), fleet.share());
    hanging.order(r#"{"bw_mb": 2}"#);
    let job = fleet.publish(&push_job(&fleet, &guest, &hanging, "off"));
    fleet.is_moving(job, "push");
    hanging.order(r#"{"mode": "hang"}"#);
    // Others go on meanwhile.
    fleet.completed(fleet.publish(&push_job(&fleet, &bare, &good, "off")));
    eventually("QEMU is free of the share, which still hangs", JOB, || !guest.has_backup_job());
    eventually("the guest runs", RUNS_AGAIN, || virsh(&["domstate", &guest.name]) == "running");
    let before = guest.writes_done();
    eventually("its writes are done again", RUNS_AGAIN, || guest.writes_done() >= before + 3);
    let RunDetail::Failed(failed) = fleet.heard.end_of(job, STUCK) else { panic!("the job did not fail") };
    assert_eq!(failed.failure.code, "stalled", "{failed:#?}");
    assert_eq!(mounts_below(&fleet.folder.join("run")), Vec::<String>::new());
    assert!(guest.agent_answers());
    let left = hanging.entries_of(&guest.id);
    assert!(left.iter().all(|name| name.starts_with(".staging-")), "nothing is published: {left:?}");
    // Whoever was made to fail on that share has lost it for good: it is a FUSE file system, whose connection is cut.
    drop(hanging);
    fleet.finish(&[&guest, &bare], &[&good]);
}

/// The next worker still has what frees QEMU: where the share is mounted for it.
#[test]
fn a_worker_that_dies_while_its_share_hangs_leaves_qemu_to_the_next_one() {
    let bare = LabInstance::bare();
    let mut fleet = Fleet::start("pushdies");
    let hanging = Share::faulty("pushdies");
    hanging.order(r#"{"bw_mb": 2}"#);
    let job = fleet.publish(&push_job(&fleet, &bare, &hanging, "off"));
    fleet.is_moving(job, "push");
    hanging.order(r#"{"mode": "hang"}"#);
    fleet.kill_worker();
    fleet.start_worker();
    eventually("QEMU is free of the share, which still hangs", FREED, || !bare.has_backup_job());
    eventually("the instance runs", RUNS_AGAIN, || virsh(&["domstate", &bare.name]) == "running");
    let run = fleet.folder.join("run");
    eventually("nothing is shown any more", FREED, || {
        mounts_below(&run).iter().all(|point| !point.contains("pushdies"))
    });
    eventually("the dead worker's guard believes that all is well", FREED, || !guard_stands(bare.id));
    assert!(hanging.entries_of(&bare.id).iter().all(|name| name.starts_with('.')), "nothing is published");
    drop(hanging);
    let RunDetail::Failed(_) = fleet.heard.end_of(job, STUCK) else { panic!("the job did not fail") };
    fleet.finish(&[&bare], &[]);
}

/// The guard tries as well, and each of its tries may be stuck for a while.
const FREED: Duration = Duration::from_secs(180);

/// The way back behind a dead share takes its deadlines one after the other.
const STUCK: Duration = Duration::from_secs(400);

#[test]
fn mounts_that_do_not_reach_qemu_are_found_out_and_the_remedy_named() {
    let bare = LabInstance::bare();
    let mut fleet = Fleet::without_worker("pushless", Settings::default());
    let run = fleet.folder.join("run");
    std::fs::create_dir(&run).unwrap();
    mount(&["--bind", run.to_str().unwrap(), run.to_str().unwrap()]);
    mount(&["--make-private", run.to_str().unwrap()]);
    fleet.start_worker();
    let share = fleet.share();
    let failed = fleet.failed(fleet.publish(&push_job(&fleet, &bare, &share, "off")));
    let failure = failed.failure;
    assert_eq!((failure.code.as_str(), failure.step.as_deref()), ("push_not_possible", Some("source")), "{failure:#?}");
    assert!(failure.causes.iter().any(|cause| cause.contains("shared")), "{failure:#?}");
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    assert_eq!(mounts_below(&run), Vec::<String>::new());
    unmount(&run);
    fleet.finish(&[&bare], &[&share]);
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success(), "mount {arguments:?}");
}

fn unmount(place: &Path) {
    assert!(Command::new("umount").arg(place).status().unwrap().success(), "umount {}", place.display());
}
