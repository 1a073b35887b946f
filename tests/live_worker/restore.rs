//! The restore of a stopped instance in place: what is put back is what was backed up, and whatever goes wrong, the volumes are
//! those of before or those of the backup, all of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use longshore::message::event::RunDetail;
use longshore::model::id::JobId;

use crate::damaged::Damaged;
use crate::fleet::{Fleet, JOB};
use crate::image::{equal, qemu_img, qemu_io};
use crate::lab::{LabInstance, eventually, virsh};
use crate::share::Share;
use crate::slate::processes_of;

/// The next worker waits for the lease of the dead one, which is known to be gone: less than the two minutes that another host would wait.
const TAKEN_OVER: Duration = Duration::from_secs(100);

#[test]
fn every_volume_is_put_back_as_it_was_and_the_instance_starts() {
    let fleet = Fleet::start("restore");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let before: Vec<_> = damaged.volumes().iter().map(|(volume, ..)| whose(volume)).collect();
    let restored = fleet.restored(fleet.publish(&fleet.restore_job(&damaged.bare, &share, &damaged.backup)));
    assert_eq!((restored.backup_id, restored.number), (damaged.backup.backup_id, damaged.backup.number));
    let roots: Vec<_> = restored.volumes.iter().map(|volume| volume.content_root.clone()).collect();
    assert_eq!(roots, damaged.backup.disks.iter().map(|disk| disk.content_root.clone()).collect::<Vec<_>>());
    for ((volume, format, reference), told) in damaged.volumes().iter().zip(&restored.volumes) {
        equal(volume, format, reference, format);
        assert_eq!((told.volume.as_str(), &told.previous), (volume.to_str().unwrap(), &None));
        let info: serde_json::Value =
            serde_json::from_str(&qemu_img(&["info", "--output=json", volume.to_str().unwrap()])).unwrap();
        assert_eq!((&info["format"], info.get("backing-filename")), (&(*format).into(), None), "{info}");
    }
    let after: Vec<_> = damaged.volumes().iter().map(|(volume, ..)| whose(volume)).collect();
    assert_eq!(before, after, "owner and mode are kept");
    damaged.has_no_other_files();
    damaged.bare.start();
    fleet.finish(&[&damaged.bare], &[&share]);
}

fn whose(file: &Path) -> (u32, u32, u32) {
    let metadata = fs::metadata(file).unwrap();
    (metadata.uid(), metadata.gid(), metadata.permissions().mode())
}

#[test]
fn the_old_volumes_are_kept_where_the_job_says_so_and_one_disk_alone_can_be_restored() {
    let fleet = Fleet::start("keeps");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let mut job = fleet.restore_job(&damaged.bare, &share, &damaged.backup);
    let part = job.restore.as_mut().unwrap();
    (part.keep_previous, part.disks) = (true, vec!["vdb".to_owned()]);
    let RunDetail::Completed(completed) = fleet.heard.end_of(fleet.publish(&job), JOB) else { panic!() };
    assert_eq!(completed.warnings, ["disk `vda` of the instance was left as it is"]);
    let [volume] = &completed.restore.unwrap().volumes[..] else { panic!("one disk was asked for") };
    let [(vda, ..), (vdb, _, reference)] = damaged.volumes();
    equal(&vdb, "raw", &reference, "raw");
    qemu_io(&vda, "qcow2", &["read -P 0xee 1M 3M"]);
    qemu_io(Path::new(volume.previous.as_ref().unwrap()), "raw", &["read -P 0xee 1M 3M"]);
    fleet.finish(&[&damaged.bare], &[&share]);
}

#[test]
fn what_cannot_be_restored_changes_nothing() {
    let fleet = Fleet::start("refuses");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let code = |job: JobId| fleet.failed(job).failure.code;
    let job = || fleet.restore_job(&damaged.bare, &share, &damaged.backup);

    let mut unknown = job();
    unknown.restore.as_mut().unwrap().backup_id = JobId::draw().to_string();
    assert_eq!(code(fleet.publish(&unknown)), "backup_not_found");
    let mut twice = job();
    twice.restore.as_mut().unwrap().onto = [("vda".to_owned(), "vdb".to_owned())].into();
    assert_eq!(code(fleet.publish(&twice)), "disk_ambiguous");
    let other = LabInstance::bare();
    other.stop();
    assert_eq!(code(fleet.publish(&fleet.restore_job(&other, &share, &damaged.backup))), "backup_not_found");
    damaged.bare.start();
    assert_eq!(code(fleet.publish(&job())), "instance_running");
    virsh(&["suspend", &damaged.bare.name]);
    assert_eq!(code(fleet.publish(&job())), "instance_running");
    damaged.bare.stop();
    damaged.is_still_damaged();

    // One byte of the content, somewhere in the image's data.
    let image = share.path.join(&damaged.backup.directory).join("vdb.qcow2");
    let mut content = fs::read(&image).unwrap();
    let at = content.len() / 2;
    content[at] ^= 1;
    fs::write(&image, content).unwrap();
    assert_eq!(code(fleet.publish(&job())), "backup_damaged");
    damaged.is_still_damaged();
    fleet.finish(&[&damaged.bare, &other], &[]);
}

#[test]
fn a_restore_whose_worker_is_killed_is_done_by_the_next_one() {
    let mut fleet = Fleet::start("killed-restore");
    let share = Share::faulty("killed-restore");
    let damaged = Damaged::new(&fleet, &share);
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.publish(&fleet.restore_job(&damaged.bare, &share, &damaged.backup));
    fleet.is_moving(job, "restore");
    fleet.kill_worker();
    eventually("the mover is gone", JOB, || processes_of(&fleet.folder).is_empty());
    share.heal();
    fleet.start_worker();
    let retrying = fleet.heard.of_run(job, "the run goes on", TAKEN_OVER, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
    assert_eq!((retrying.failure.code.as_str(), &retrying.left_overs[..]), ("interrupted", &[][..]));
    fleet.restored(job);
    assert!(damaged.is_as_at_the_backup());
    damaged.has_no_other_files();
    fleet.finish(&[&damaged.bare], &[&share]);
}
