//! A worker that is killed at the worst moments: a guest is frozen, another's bytes are on their way.

use std::time::Duration;

use longshore::message::event::RunDetail;

use crate::fleet::{Fleet, Settings};
use crate::gate::Gate;
use crate::lab::{LabInstance, eventually};
use crate::share::Share;
use crate::slate::{mounts_below, processes_of};

/// Within this the guard has thawed.
const THAWED: Duration = Duration::from_secs(10);
/// The next worker waits until the dead one's lease has stood still for two minutes.
const TAKEN_OVER: Duration = Duration::from_secs(240);

#[test]
fn a_killed_worker_leaves_no_guest_frozen_and_the_next_one_finishes_its_jobs() {
    let (guest, bare) = (LabInstance::guest(), LabInstance::bare());
    let gate = Gate::new(&guest.folder);
    let mut fleet = Fleet::with("killed", Settings { libvirt_uri: gate.uri(), ..Settings::default() });
    let (share, slow) = (fleet.share(), Share::faulty("killed"));
    slow.order(r#"{"bw_mb": 2}"#);
    let copied = fleet.back_up(&bare, &slow, "off");
    fleet.is_copying(copied);
    let frozen = fleet.back_up(&guest, &share, "require");
    eventually("the guest is frozen", Duration::from_secs(30), || guest.is_frozen());
    assert!(bare.has_backup_job());

    fleet.kill_worker();
    let thawed = eventually("the guest is thawed", THAWED, || !guest.is_frozen());
    let ended = eventually("the pull jobs are gone", THAWED, || !bare.has_backup_job() && !guest.has_backup_job());
    println!("after SIGKILL: thawed in {thawed:?}, the jobs gone {ended:?} later");
    eventually("the movers are gone", THAWED, || processes_of(&fleet.folder).is_empty());
    assert_eq!(mounts_below(&fleet.folder), Vec::<String>::new());
    assert!(fleet.heard.no_letter_of(frozen) && fleet.heard.no_letter_of(copied));

    gate.open();
    slow.heal();
    fleet.start_worker();
    for (job, instance) in [(frozen, &guest), (copied, &bare)] {
        let retrying =
            fleet.heard.of_run(job, "the run goes on", TAKEN_OVER, |event| event.detail.word() == "retrying");
        let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
        assert_eq!(retrying.failure.code, "interrupted", "{retrying:?}");
        fleet.completed(job);
        assert!(!instance.has_backup_job());
    }
    fleet.finish(&[&guest, &bare], &[&share, &slow]);
}
