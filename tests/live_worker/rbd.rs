//! Instances with a disk on Ceph's RBD: read while they run and while they are shut off, with a key that nobody else gets to see.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore::message::event::{BackupSummary, Failed};
use longshore::message::job::{BackupPart, JobMessage, RetryPart};
use longshore::model::id::JobId;
use longshore::model::manifest::{ChangesFoundBy, Proof, TransferUsed};

use crate::fleet::{Fleet, JOB, Settings};
use crate::image::{equal, qemu_img};
use crate::incremental::{back_up, image};
use crate::lab::eventually;
use crate::push::push_job;
use crate::rbd_images::{Cluster, HANGING, OnRbd, POOL, cluster};
use crate::secrets::{files_below, holds, of_processes};
use crate::share::Share;

/// How long a program that opens an image may take until the cluster knows of it.
pub const OPENED: Duration = Duration::from_secs(30);

/// How long the cluster may take to forget a program that was killed with an image open.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How the changes of `vdb` and of the RBD image were found, neither of which can keep a bitmap.
fn found_by(backup: &BackupSummary) -> [Option<ChangesFoundBy>; 3] {
    let [vda, vdb, vdc] = &backup.disks[..] else { panic!("{backup:?}") };
    [vda.found_by, vdb.found_by, vdc.found_by]
}

#[test]
fn a_stopped_instance_is_backed_up_from_rbd_and_its_key_is_seen_by_nobody() {
    let fleet = Fleet::start("rbd-stopped");
    let share = Share::faulty("rbd-stopped");
    let on_rbd = OnRbd::new(POOL);
    share.order(r#"{"bw_mb": 4}"#);
    let job = fleet.back_up(&on_rbd.bare, &share, "off");
    fleet.is_copying(job);
    // QEMU's tool has the image open by now, or had it before or will have it: they are looked at until the job ends.
    let mut told = 0;
    let ended = || fleet.heard.events_of(job).iter().any(|event| event.detail.is_final());
    let until = Instant::now() + JOB;
    while !ended() {
        assert!(Instant::now() < until, "the job has not ended");
        for (shown, content) in ["cmdline", "environ"].into_iter().flat_map(of_processes) {
            assert!(!holds(&content, &cluster().key), "the key is in {}", shown.display());
            let line = String::from_utf8_lossy(&content).into_owned();
            told += usize::from(line.starts_with("qemu-nbd") && line.contains("\"key-secret\":\"key\""));
        }
        share.heal();
    }
    assert!(told > 0, "the tool with the key was seen");
    let full = fleet.completed(job);
    assert_eq!((full.transfer, full.verification), (TransferUsed::Stopped, Proof::Compared));
    equal(&on_rbd.reference(), "raw", &image(&share, &full, "vdc"), "qcow2");
    equal(&on_rbd.bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &full, "vda"), "qcow2");

    cluster().qemu_io(&on_rbd.image, "write -P 0x5a 1M 64k");
    let second = back_up(&fleet, &on_rbd.bare, &share);
    assert_eq!((second.parent, found_by(&second)), (Some(full.backup_id), [Some(ChangesFoundBy::Hashes); 3]));
    assert_eq!(second.disks[2].data_bytes, 1 << 20, "a block of ours");
    assert!(cluster().reads_as(&on_rbd.image, &image(&share, &second, "vdc"), "qcow2"));
    equal(&on_rbd.reference(), "raw", &image(&share, &full, "vdc"), "qcow2");

    let contents = || files_below(&fleet.folder).into_iter().map(|file| (fs::read(&file).unwrap_or_default(), file));
    assert!(contents().any(|(content, _)| holds(&content, &on_rbd.secret.uuid)), "what is no secret can be found");
    for (content, file) in
        contents().chain(files_below(&share.path).into_iter().map(|file| (fs::read(&file).unwrap(), file)))
    {
        assert!(!holds(&content, &cluster().key), "the key is in `{}`", file.display());
    }
    for body in fleet.heard.bodies() {
        assert!(!holds(&body, &cluster().key), "the key is in {}", String::from_utf8_lossy(&body));
    }
    fleet.finish(&[&on_rbd.bare], &[&share]);
}

#[test]
fn a_running_instance_is_pulled_and_pushed_from_rbd_and_its_changes_are_found_by_hashes() {
    let fleet = Fleet::start("rbd-running");
    let share = fleet.share();
    let on_rbd = OnRbd::new(POOL);
    let bare = &on_rbd.bare;
    bare.start();
    let full = back_up(&fleet, bare, &share);
    assert_eq!((full.transfer, full.verification), (TransferUsed::Pull, Proof::Compared));
    equal(&on_rbd.reference(), "raw", &image(&share, &full, "vdc"), "qcow2");

    bare.overwrite(2, 0x44, "64k");
    bare.overwrite(0, 0x55, "64k");
    let second = back_up(&fleet, bare, &share);
    let [by_bitmap, by_hashes] = [Some(ChangesFoundBy::Bitmap), Some(ChangesFoundBy::Hashes)];
    assert_eq!((second.parent, found_by(&second)), (Some(full.backup_id), [by_bitmap, by_hashes, by_hashes]));
    assert!(cluster().reads_as(&on_rbd.image, &image(&share, &second, "vdc"), "qcow2"));

    bare.overwrite(2, 0x66, "128k");
    let pushed = fleet.completed(fleet.publish(&push_job(&fleet, bare, &share, "off")));
    assert_eq!((pushed.transfer, pushed.verification), (TransferUsed::Push, Proof::Structure));
    let reason = pushed.disks[2].full_reason.clone().unwrap_or_default();
    assert!(found_by(&pushed)[0] == by_bitmap && reason.contains("QEMU writes all of a disk"), "{pushed:?}");
    assert!(cluster().reads_as(&on_rbd.image, &image(&share, &pushed, "vdc"), "qcow2"));

    // The hashes of a push are as good as others.
    bare.stop();
    let last = back_up(&fleet, bare, &share);
    assert_eq!((last.transfer, last.parent), (TransferUsed::Stopped, Some(pushed.backup_id)));
    assert_eq!(last.disks[2].data_bytes, 0);
    fleet.finish(&[bare], &[&share]);
}

/// A backup of one attempt.
fn job(fleet: &Fleet, on_rbd: &OnRbd, share: &Share) -> JobMessage {
    let backup = Some(BackupPart { quiesce: Some("off".to_owned()), ..BackupPart::default() });
    let retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    JobMessage { backup, retry, ..fleet.job(&on_rbd.bare, share) }
}

fn refused(fleet: &Fleet, on_rbd: &OnRbd, share: &Share) -> Failed {
    let failed = fleet.failed(fleet.publish(&job(fleet, on_rbd, share)));
    assert_eq!(share.entries_of(&on_rbd.bare.id), Vec::<String>::new(), "{failed:?}");
    failed
}

#[test]
fn an_image_that_is_not_given_or_that_others_have_open_is_refused_and_leaves_nothing() {
    let fleet = Fleet::start("rbd-refused");
    let share = fleet.share();
    let wrong = OnRbd::with_key(POOL, "AQDp5AxrsA0kNxAA23Yra6O1gb+RcN913rVYxg==");
    assert_eq!(refused(&fleet, &wrong, &share).failure.code, "volume_denied");
    wrong.secret.remove();
    let failed = refused(&fleet, &wrong, &share);
    assert_eq!(failed.failure.code, "credentials_unreadable", "{failed:?}");

    let used = OnRbd::new(POOL);
    let user = Opened::new(cluster(), &used.image);
    let failed = refused(&fleet, &used, &share);
    assert_eq!(failed.failure.code, "in_use_elsewhere", "{failed:?}");
    drop(user);
    let backup = fleet.completed(fleet.publish(&job(&fleet, &used, &share)));
    equal(&used.reference(), "raw", &image(&share, &backup, "vdc"), "qcow2");
    fleet.finish(&[&used.bare], &[&share]);
}

/// Another host's QEMU, as far as the cluster can tell.
pub struct Opened(Child);

impl Opened {
    pub fn new(cluster: &Cluster, image: &str) -> Self {
        let mut tool = Command::new("qemu-io");
        tool.args(["-f", "raw"]).arg(cluster.name(image)).stdin(Stdio::piped()).stdout(Stdio::null());
        let opened = Self(tool.spawn().unwrap());
        eventually("the image is open", OPENED, || !cluster.is_closed(image));
        opened
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // The end of its input lets it close the image, so that the cluster need not find out.
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn storage_that_stops_answering_amid_a_backup_ends_it_by_its_deadlines() {
    let settings = Settings { stall_seconds: 8, ..Settings::default() };
    let fleet = Fleet::with("rbd-hangs", settings);
    let share = Share::faulty("rbd-hangs");
    let on_rbd = OnRbd::new(HANGING);
    share.order(r#"{"bw_mb": 4}"#);
    let job: JobId = fleet.publish(&job(&fleet, &on_rbd, &share));
    fleet.is_copying(job);
    cluster().hang(true);
    share.heal();
    let failed = fleet.failed(job);
    assert_eq!(failed.failure.code, "stalled", "{failed:?}");
    assert_eq!(share.entries_of(&on_rbd.bare.id), Vec::<String>::new());
    cluster().hang(false);
    // The stall limit of this test is shorter than the cluster takes to notice that the tool was killed.
    eventually("the cluster forgets who was killed", FORGOTTEN, || cluster().is_closed(&on_rbd.image));
    let summary = back_up(&fleet, &on_rbd.bare, &share);
    equal(&on_rbd.reference(), "raw", &image(&share, &summary, "vdc"), "qcow2");
    fleet.finish(&[&on_rbd.bare], &[&share]);
}

#[test]
fn the_backup_of_an_image_is_plain_qcow2_and_can_be_converted_back_by_hand() {
    let fleet = Fleet::start("rbd-by-hand");
    let share = fleet.share();
    let on_rbd = OnRbd::new(POOL);
    let backup = back_up(&fleet, &on_rbd.bare, &share);
    let readme = fs::read_to_string(share.path.join(&backup.directory).join("README-RESTORE.txt")).unwrap();
    assert!(readme.contains(&format!("rbd:{}", on_rbd.image)), "{readme}");
    cluster().qemu_io(&on_rbd.image, "write -P 0xee 0 4M");
    let (from, to) = (image(&share, &backup, "vdc"), cluster().name(&on_rbd.image));
    qemu_img(&["convert", "-n", "-f", "qcow2", "-O", "raw", from.to_str().unwrap(), &to]);
    assert!(cluster().reads_as(&on_rbd.image, &on_rbd.reference(), "raw"));
    fleet.finish(&[&on_rbd.bare], &[&share]);
}
