//! A controller has a worker come to rest, by the command line, with bytes on their way; and whoever runs its process, in a hurry.

use std::time::{Duration, Instant};

use longshore::message::event::{HostDetail, RunDetail};
use longshore::model::id::JobId;
use nix::sys::signal::Signal;

use crate::cancel::Commanded;
use crate::control::messages_in;
use crate::fleet::{Fleet, JOB, START};
use crate::lab::{LabInstance, eventually};
use crate::share::Share;

/// Longest time until the broker has noticed that a worker has gone.
const SOON: Duration = Duration::from_secs(20);
/// Within this a job has stopped at its next step and is taken back, on a busy machine. Less than a job at this pace takes, and than a worker lets it go on.
const STOPPED: Duration = Duration::from_secs(30);

/// Status of a worker that a controller has drained.
const DRAINED: i32 = 6;

fn was_kept(fleet: &Fleet, job: JobId) {
    let kept = fleet.heard.of_run(job, "the run is kept", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(kept) = kept.detail else { panic!("{kept:?}") };
    assert_eq!(kept.failure.code, "host_draining", "{kept:?}");
}

#[test]
fn a_drained_worker_ends_in_order_or_rests_and_a_host_without_one_is_named() {
    let bare = LabInstance::bare();
    let mut commanded = Commanded::new("drained");
    let share = Share::faulty("drained");
    let host = commanded.fleet.host.clone();
    share.order(r#"{"bw_mb": 1}"#);
    let job = commanded.fleet.back_up(&bare, &share, "off");
    commanded.fleet.is_copying(job);
    let drain = ["host", "drain", &host, "--limit-seconds", "1", "--reason", "upgrade"];
    commanded.says(&drain, 0, "told");
    assert_eq!(commanded.fleet.worker_ends(STOPPED).code(), Some(DRAINED));
    was_kept(&commanded.fleet, job);
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    let control = format!("longshore.control.{host}");
    // One that was told is not told again when it comes back.
    eventually("its absence is told", SOON, || commanded.run(&drain).status.code() == Some(1));
    assert_eq!(messages_in(&control), 0);

    commanded.fleet.start_worker();
    let second = |event: &longshore::message::RunEvent| event.attempt == 2 && event.detail.word() == "progress";
    commanded.fleet.heard.of_run(job, "the run goes on", JOB, second);
    commanded.says(&[&drain[..], &["--stay"]].concat(), 0, "told");
    commanded.fleet.heard.of_host("it rests", START, commanded.fleet.heard.host_events(), |event| {
        matches!(&event.detail, HostDetail::Heartbeat(beat) if beat.running.is_empty() && beat.waiting == 1 && beat.paused.is_some())
    });
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    share.heal();
    commanded.says(&["host", "resume", &host], 0, "told");
    commanded.fleet.completed(job);
    commanded.fleet.finish(&[&bare], &[&share]);
}

#[test]
fn what_is_evicted_is_in_the_dead_letters_and_nowhere_else() {
    let bare = LabInstance::bare();
    let mut commanded = Commanded::new("evicted");
    let share = Share::faulty("evicted");
    share.order(r#"{"bw_mb": 1}"#);
    let running = commanded.fleet.back_up(&bare, &share, "off");
    commanded.fleet.is_copying(running);
    let waiting = commanded.fleet.back_up(&bare, &share, "off");
    commanded.fleet.heard.of_run(waiting, "it waits for its instance", JOB, |event| event.detail.word() == "accepted");
    let host = commanded.fleet.host.clone();
    commanded.says(&["host", "drain", &host, "--limit-seconds", "1", "--evict"], 0, "told");
    assert_eq!(commanded.fleet.worker_ends(STOPPED).code(), Some(DRAINED));
    for (job, attempts) in [(running, 1), (waiting, 0)] {
        let failed = commanded.fleet.failed(job);
        assert_eq!((failed.failure.code.as_str(), failed.attempts), ("host_draining", attempts));
    }
    for queue in [format!("longshore.jobs.{host}"), format!("longshore.control.{host}")] {
        assert_eq!(messages_in(&queue), 0, "{queue}");
    }
    share.heal();
    commanded.fleet.start_worker();
    commanded.fleet.completed(commanded.fleet.back_up(&bare, &share, "off"));
    commanded.fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_second_signal_stops_what_runs_at_its_next_step() {
    let bare = LabInstance::bare();
    let mut fleet = Fleet::start("hurried");
    let share = Share::faulty("hurried");
    share.order(r#"{"bw_mb": 1}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    let before = fleet.heard.host_events();
    fleet.signal(Signal::SIGTERM);
    let draining = |event: &longshore::message::HostEvent| matches!(event.detail, HostDetail::Draining(_));
    fleet.heard.of_host("the first is heard", START, before, draining);
    let began = Instant::now();
    fleet.signal(Signal::SIGTERM);
    assert!(fleet.worker_ends(STOPPED).success());
    eprintln!("stopped within {} ms of the second signal", began.elapsed().as_millis());
    was_kept(&fleet, job);
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    share.heal();
    fleet.start_worker();
    fleet.completed(job);
    fleet.finish(&[&bare], &[&share]);
}
