//! Stopping a worker politely, and two workers that both want to be the host's.

use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::Duration;

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

#[test]
fn whoever_starts_it_hears_that_it_is_ready_that_it_lives_and_that_it_ends() {
    let bare = LabInstance::bare();
    let socket = bare.folder.join("notify");
    let ear = UnixDatagram::bind(&socket).unwrap();
    ear.set_read_timeout(Some(JOB)).unwrap();
    let mut fleet = Fleet::with("notified", Settings { listens: Some((socket, 2)), ..Settings::default() });
    let until = |wanted: &dyn Fn(&str) -> bool| {
        let mut buffer = [0; 512];
        let mut all = Vec::new();
        while !all.last().is_some_and(|state: &String| wanted(state)) {
            let length = ear.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}; heard {all:?}"));
            all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        all
    };
    assert_eq!(until(&|state| state.starts_with("STATUS=takes jobs"))[0], "READY=1");
    let share = Share::faulty("notified");
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    until(&|state| state == "STATUS=takes jobs; 1 at work, 0 wait");
    until(&|state| state == "WATCHDOG=1");
    fleet.signal(Signal::SIGTERM);
    // A minute to let jobs end, what taking them back may take, and a minute for the rest.
    until(&|state| state == "STOPPING=1\nEXTEND_TIMEOUT_USEC=450000000");
    until(&|state| state == "STATUS=comes to rest; 1 at work, 0 wait");
    share.heal();
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
    let same_journal = fleet.spawn_worker("same-journal.log");
    gives_up(&fleet, same_journal, "same-journal.log", "is in use by another process");
    let text = std::fs::read_to_string(fleet.config()).unwrap();
    std::fs::write(fleet.config(), text.replace("/state\"", "/other-state\"")).unwrap();
    let same_host = fleet.spawn_worker("same-host.log");
    gives_up(&fleet, same_host, "same-host.log", &fleet.host);
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    fleet.finish(&[&bare], &[&share]);
}

/// Waits until it has ended with a sentence about the reason.
fn gives_up(fleet: &Fleet, mut worker: Child, log: &str, says: &str) {
    eventually("the second worker has given up", IN_USE, || worker.try_wait().unwrap().is_some());
    let (status, log) = (worker.wait().unwrap(), std::fs::read_to_string(fleet.folder.join(log)).unwrap());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.starts_with("longshore: ") && line.contains(says)), "{log}");
}
