//! A worker that is killed at the worst moments: a guest is frozen, the bytes of others are on their way.

use std::time::Duration;

use longshore::message::event::RunDetail;

use crate::fleet::{Fleet, Settings};
use crate::gate::{FREEZE, Gate, Keeps};
use crate::lab::{LabInstance, eventually};
use crate::push::push_job;
use crate::share::Share;
use crate::slate::{mounts_below, processes_of};

/// Within this the guard has thawed.
const THAWED: Duration = Duration::from_secs(10);
/// The next worker waits for the lease of the dead one, which is known to be gone: less than the two minutes that another host would wait.
const TAKEN_OVER: Duration = Duration::from_secs(100);

#[test]
fn a_killed_worker_leaves_no_guest_frozen_and_the_next_one_finishes_its_jobs() {
    let (guest, bare, pushed_from) = (LabInstance::guest(), LabInstance::bare(), LabInstance::bare());
    let gate = Gate::new(&guest.folder, FREEZE, Keeps::Answer);
    let mut fleet = Fleet::with("killed", Settings { libvirt_uri: gate.uri(), ..Settings::default() });
    let (share, slow) = (fleet.share(), Share::faulty("killed"));
    slow.order(r#"{"bw_mb": 2}"#);
    let copied = fleet.back_up(&bare, &slow, "off");
    fleet.is_copying(copied);
    let mut job = push_job(&fleet, &pushed_from, &slow, "off");
    job.retry = fleet.job(&pushed_from, &slow).retry;
    let pushed = fleet.publish(&job);
    fleet.is_moving(pushed, "push");
    let frozen = fleet.back_up(&guest, &share, "require");
    eventually("the guest is frozen", Duration::from_secs(30), || guest.is_frozen());
    assert!(bare.has_backup_job() && pushed_from.has_backup_job());

    fleet.kill_worker();
    let thawed = eventually("the guest is thawed", THAWED, || !guest.is_frozen());
    let ended = eventually("the pull jobs are gone", THAWED, || !bare.has_backup_job() && !guest.has_backup_job());
    // What QEMU itself has under way to the share comes to its end first.
    slow.heal();
    eventually("the push job is gone", THAWED, || !pushed_from.has_backup_job());
    eprintln!("after SIGKILL: thawed in {thawed:?}, the jobs gone {ended:?} later");
    eventually("the movers are gone", THAWED, || processes_of(&fleet.folder).is_empty());
    // Where QEMU wrote stays until a worker is there again, for it is the host's and not the mover's.
    assert_eq!(mounts_below(&fleet.folder).len(), 1);
    assert!([frozen, copied, pushed].into_iter().all(|job| fleet.heard.no_letter_of(job)));

    gate.open();
    fleet.start_worker();
    for (job, instance) in [(frozen, &guest), (copied, &bare), (pushed, &pushed_from)] {
        let retrying =
            fleet.heard.of_run(job, "the run goes on", TAKEN_OVER, |event| event.detail.word() == "retrying");
        let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
        assert_eq!(retrying.failure.code, "interrupted", "{retrying:?}");
        fleet.completed(job);
        assert!(!instance.has_backup_job());
    }
    fleet.finish(&[&guest, &bare, &pushed_from], &[&share, &slow]);
}
