//! What a new RBD image is given besides its content: room, or its restore fails with the right code; and all that was set for the old one.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use longshore::message::JobMessage;
use longshore::message::event::{Failed, RunDetail};
use longshore::message::job::RetryPart;
use serde_json::Value;

use crate::fleet::{Fleet, JOB};
use crate::image::{qemu_img, qemu_io};
use crate::incremental::back_up;
use crate::rbd_images::{BULK, OnRbd, POOL, SMALL, cluster};
use crate::running::manifest_in;
use crate::share::Share;

/// Longest time until a restore is given up whose pool is full, and what it has made is gone.
const GIVEN_UP: Duration = Duration::from_secs(150);

/// Of what is left to others: 16 MiB, and a hundredth of the data.
const SPARED: u64 = 16 << 20;

/// A restore of the image alone, of one attempt.
fn only_the_image(job: JobMessage) -> JobMessage {
    let retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    let mut job = JobMessage { retry, ..job };
    job.restore.as_mut().unwrap().disks = vec!["vdc".to_owned()];
    job
}

/// It completes; what it says besides that the other disks were left alone.
fn is_restored(fleet: &Fleet, job: JobMessage) -> Vec<String> {
    let RunDetail::Completed(completed) = fleet.heard.end_of(fleet.publish(&job), JOB) else { panic!("it failed") };
    assert!(completed.left_overs.is_empty(), "{completed:?}");
    completed.warnings.into_iter().filter(|warning| !warning.contains("was left as it is")).collect()
}

fn is_volume_full(failed: &Failed, why: &str) {
    assert_eq!(failed.failure.code, "volume_full", "{failed:?}");
    let said = format!("{} {:?}", failed.failure.text, failed.failure.causes);
    assert!(said.contains(why) && failed.left_overs.is_empty(), "{failed:?}");
}

/// An image whose objects hold 4 KiB each, at their ends, which a quota counts as 64 MiB.
fn make_holes(image: &str) {
    cluster().rbd(&["create", "--size", "64M", image]);
    let ends: Vec<_> = (1..=16).map(|object| format!("write -P 0x77 {} 4k", (object << 22) - (4 << 10))).collect();
    let ends: Vec<_> = ends.iter().map(String::as_str).collect();
    qemu_io(Path::new(&cluster().name(image)), "raw", &ends);
}

#[test]
fn a_pool_without_room_is_full_before_anything_is_made_and_amid_the_writing_as_well() {
    let fleet = Fleet::start("rbd-full");
    let share = Share::faulty("rbd-full");
    // Its removal is the first in this pool, which takes room itself.
    let holes = format!("{SMALL}/holes");
    cluster().rbd(&["create", "--size", "8M", &holes]);
    cluster().rbd(&["rm", "--no-progress", &holes]);
    let on_rbd = OnRbd::new(SMALL);
    let backup = back_up(&fleet, &on_rbd.bare, &share);
    let data_bytes = manifest_in(&share.path.join(&backup.directory)).disks[2].data_bytes;
    let needed = data_bytes + data_bytes / 100 + SPARED;
    cluster().qemu_io(&on_rbd.image, "write -P 0xee 1M 3M");
    let job = || only_the_image(fleet.restore_job(&on_rbd.bare, &share, &backup));
    let refused = |why: &str| is_volume_full(&fleet.failed(fleet.publish(&job())), why);

    let stored = cluster().stored(SMALL);
    cluster().quota(SMALL, stored + needed - 4096);
    refused("quota of the RBD pool small");
    // Longer than can be carried over.
    cluster().rbd(&["image-meta", "set", &on_rbd.image, "note", &"x".repeat(66_000)]);
    cluster().quota(SMALL, stored + needed + 4096);
    let [lost] = &is_restored(&fleet, job())[..] else { panic!("no warning of the note") };
    assert!(lost.contains("image-meta"), "{lost}");
    assert!(cluster().reads_as(&on_rbd.image, &on_rbd.reference(), "raw"));
    cluster().ceph(&["osd", "pool", "set-quota", SMALL, "max_bytes", "0"]);

    cluster().qemu_io(&on_rbd.image, "write -P 0xee 1M 3M");
    make_holes(&holes);
    share.forget(&on_rbd.bare.id);
    share.order(r#"{"read_mb": 1}"#);
    let restore = fleet.publish(&job());
    fleet.is_moving(restore, "restore");
    // Nothing is read while it fills up, by its holes: what is stored leaves room.
    share.order(r#"{"mode": "hang"}"#);
    cluster().quota(SMALL, stored + needed + SPARED);
    cluster().is_full(SMALL);
    share.heal();
    let RunDetail::Failed(failed) = fleet.heard.end_of(restore, GIVEN_UP) else { panic!("it did not fail") };
    is_volume_full(&failed, "`small` is full");
    let name = on_rbd.bare.name.as_str();
    assert_eq!(cluster().images(SMALL, name), [name], "what was made is gone, and makes room");
    refused("`RBD pool small` has 0 bytes free");
    // Whatever comes next waits until it is told.
    cluster().ceph(&["osd", "pool", "set-quota", SMALL, "max_bytes", "0"]);
    cluster().qemu_io(&on_rbd.image, "read -P 0xee 1M 3M");
    cluster().rbd(&["rm", "--no-progress", &holes]);
    fleet.finish(&[&on_rbd.bare], &[&share]);
}

/// What a cluster says of an image, but for what is another's of any other image.
fn likeness(image: &str) -> Value {
    let mut info = cluster().info(image).unwrap();
    let of_its_own = ["id", "block_name_prefix", "create_timestamp", "access_timestamp", "modify_timestamp"];
    of_its_own.iter().for_each(|field| drop(info.as_object_mut().unwrap().remove(*field)));
    info
}

#[test]
fn a_new_image_is_laid_out_and_set_like_the_old_one_and_not_held_up_by_its_limits() {
    let fleet = Fleet::start("rbd-settings");
    let share = fleet.share();
    let on_rbd = OnRbd::new(POOL);
    let image = &on_rbd.image;
    cluster().rbd(&["rm", "--no-progress", image]);
    let features = "--image-feature=layering,exclusive-lock,deep-flatten";
    let layout = ["--object-size=1M", "--stripe-unit=64K", "--stripe-count=4", "--data-pool", BULK, features];
    cluster().rbd(&[&["create", "--size=16M"], &layout[..], &[image]].concat());
    let name = cluster().name(image);
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", on_rbd.reference().to_str().unwrap(), &name]);
    let backup = back_up(&fleet, &on_rbd.bare, &share);
    cluster().qemu_io(image, "write -P 0xee 1M 3M");
    // At 64 KiB a second its restore would take longer than any job here may.
    let settings = [("conf_rbd_qos_bps_limit", "65536"), ("note", "-1 of 2"), ("--note", "{\"a\":\n\"b'\"}")];
    for (name, value) in settings {
        cluster().rbd(&["image-meta", "set", image, "--", name, value]);
    }
    let before = likeness(image);
    let id = cluster().id_of(image);
    let warnings = is_restored(&fleet, only_the_image(fleet.restore_job(&on_rbd.bare, &share, &backup)));
    assert_eq!(warnings, Vec::<String>::new());
    assert_ne!(cluster().id_of(image), id);
    assert_eq!(likeness(image), before);
    assert!(before["data_pool"] == BULK && before["stripe_count"] == 4, "{before}");
    let found: Value = serde_json::from_str(&cluster().rbd(&["image-meta", "list", "--format=json", image])).unwrap();
    let expected: BTreeMap<_, _> = settings.into_iter().collect();
    assert_eq!(found, serde_json::to_value(expected).unwrap());
    cluster().rbd(&["image-meta", "remove", image, "conf_rbd_qos_bps_limit"]);
    assert!(cluster().reads_as(image, &on_rbd.reference(), "raw"));
    fleet.finish(&[&on_rbd.bare], &[&share]);
}
