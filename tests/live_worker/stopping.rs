//! Stopping a worker politely, and two workers that both want to be the host's.

use std::time::{Duration, Instant};

use longshore::message::event::RunDetail;
use nix::sys::signal::Signal;

use crate::fleet::{Fleet, JOB, Settings};
use crate::lab::{LabInstance, eventually};
use crate::share::Share;

#[test]
fn a_drain_finishes_what_it_can_in_its_time_and_keeps_the_rest() {
    let bare = LabInstance::bare();
    let hurried = Settings { drain_seconds: 1, ..Settings::default() };
    let mut fleet = Fleet::with("drain", hurried);
    let share = Share::faulty("drain");
    share.order(r#"{"bw_mb": 1}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    fleet.signal(Signal::SIGTERM);
    assert!(fleet.worker_ends(JOB).success());
    let kept = fleet.heard.of_run(job, "the run is kept", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(kept) = kept.detail else { panic!("{kept:?}") };
    assert_eq!(kept.failure.code, "host_draining", "{kept:?}");
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());

    fleet.configure(&Settings::default());
    share.order(r#"{"bw_mb": 4}"#);
    fleet.start_worker();
    fleet.heard.of_run(job, "the run goes on", JOB, |event| event.attempt == 2 && event.detail.word() == "progress");
    fleet.signal(Signal::SIGTERM);
    assert!(fleet.worker_ends(JOB).success());
    fleet.completed(job);
    fleet.start_worker();
    fleet.finish(&[&bare], &[&share]);
}

/// Four heartbeats of 5 s, and some.
const IN_USE: Duration = Duration::from_secs(45);

#[test]
fn a_second_worker_of_a_host_gives_up_and_the_first_one_works_on() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("twice");
    let share = fleet.share();
    let mut same_journal = fleet.spawn_worker("same-journal.log");
    let text = std::fs::read_to_string(fleet.config()).unwrap();
    std::fs::write(fleet.config(), text.replace("/state\"", "/other-state\"")).unwrap();
    let mut same_host = fleet.spawn_worker("same-host.log");
    for (other, log, says) in [
        (&mut same_journal, "same-journal.log", "journal"),
        (&mut same_host, "same-host.log", "another worker has this host id"),
    ] {
        eventually("the second worker has given up", IN_USE, || other.try_wait().unwrap().is_some());
        let (status, log) = (other.wait().unwrap(), std::fs::read_to_string(fleet.folder.join(log)).unwrap());
        assert!(status.code().is_some_and(|code| code == 1), "{status}: {log}");
        assert!(log.contains(says), "{log}");
    }
    let began = Instant::now();
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    println!("the first worker's job took {:?}", began.elapsed());
    fleet.finish(&[&bare], &[&share]);
}
