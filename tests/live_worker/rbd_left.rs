//! Images that a restore has left on a cluster: named until they are gone, whoever removes them, and removed by nobody else.

use std::time::Duration;

use longshore::message::HostEvent;
use longshore::message::event::{HostDetail, LeftOver, RunDetail};
use longshore::model::network::SecretRef;
use nix::sys::signal::Signal;

use crate::asked::Asked;
use crate::contract::images::images_that_are_there_are_named_and_stay;
use crate::fleet::{Fleet, JOB};
use crate::incremental::back_up;
use crate::rbd::Opened;
use crate::rbd_images::{OnRbd, POOL, cluster};
use crate::share::Share;

/// Longest time for a look: twenty heartbeats, and some.
const LOOKED_AT: Duration = Duration::from_secs(90);

#[test]
fn a_mover_says_which_images_are_there_and_leaves_them() {
    let secret = SecretRef::Usage("test".to_owned());
    let (key, access) = (cluster().key_named(secret.clone()), cluster().access(secret));
    let name = format!("left-{}", uuid::Uuid::new_v4().simple());
    let image = |what: &str| format!("{POOL}/{name}{what}");
    let there = [image(""), image(".previous")];
    there.iter().for_each(|image| drop(cluster().rbd(&["create", "--size", "8M", image])));
    let user = Opened::new(cluster(), &there[1]);
    let [volume, previous] = &there;
    Asked::new(key.clone()).with(async |mover| {
        images_that_are_there_are_named_and_stay(mover, (key, &access), [volume, previous], &image(".new")).await;
    });
    drop(user);
    there.iter().for_each(|image| drop(cluster().rbd(&["rm", "--no-progress", image])));
}

/// Waits for a heartbeat, from now on, whose left-overs are so.
fn left_overs_are(fleet: &Fleet, what: &str, so: impl Fn(&[LeftOver]) -> bool) {
    let told = |event: &HostEvent| matches!(&event.detail, HostDetail::Heartbeat(beat) if so(&beat.left_overs));
    fleet.heard.of_host(what, LOOKED_AT, fleet.heard.host_events(), told);
}

#[test]
fn an_old_image_that_cannot_be_removed_is_named_with_its_removal_until_somebody_has_done_that() {
    let mut fleet = Fleet::start("rbd-left");
    let share = Share::faulty("rbd-left");
    let on_rbd = OnRbd::new(POOL);
    let backup = back_up(&fleet, &on_rbd.bare, &share);
    cluster().qemu_io(&on_rbd.image, "write -P 0xee 1M 3M");
    share.forget(&on_rbd.bare.id);
    share.order(r#"{"read_mb": 1}"#);
    let mut job = fleet.restore_job(&on_rbd.bare, &share, &backup);
    job.restore.as_mut().unwrap().disks = vec!["vdc".to_owned()];
    let job = fleet.publish(&job);
    fleet.is_moving(job, "restore");
    cluster().rbd(&["snap", "create", "--no-progress", &format!("{}@monday", on_rbd.image)]);
    share.heal();
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    assert!(cluster().reads_as(&on_rbd.image, &on_rbd.reference(), "raw"));
    let images = || cluster().images(POOL, &on_rbd.bare.name);
    let [_, previous] = &images()[..] else { panic!("{:?}", images()) };
    let previous = format!("{POOL}/{previous}");
    let [left] = &completed.left_overs[..] else { panic!("{completed:?}") };
    assert!(left.what.contains(&previous) && left.reason.contains("snapshots"), "{left:?}");

    // An operator does as the journal says, while there is no worker.
    fleet.signal(Signal::SIGTERM);
    assert!(fleet.worker_ends(JOB).success());
    let listed = fleet.command_on_host(&["journal", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let removal = format!("rbd rm {previous}");
    assert!(listed.contains(&format!("`{removal}`")), "{listed}");
    cluster().rbd(&["snap", "purge", "--no-progress", &previous]);
    cluster().rbd(&removal.split(' ').skip(1).collect::<Vec<_>>());
    fleet.start_worker();
    left_overs_are(&fleet, "the next worker names it", |left| left.len() == 1);
    left_overs_are(&fleet, "nothing is left", <[LeftOver]>::is_empty);
    assert_eq!(images(), [on_rbd.bare.name.as_str()]);
    fleet.finish(&[&on_rbd.bare], &[&share]);
}
