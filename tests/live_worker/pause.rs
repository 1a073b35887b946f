//! A controller pauses a host and has it go on, by the command line: through the worker's death, and while there is none.

use std::time::Duration;

use longshore::message::HostEvent;
use longshore::message::event::{HostDetail, Paused};

use crate::cancel::Commanded;
use crate::control::{messages_in, readers_of};
use crate::fleet::START;
use crate::lab::{LabInstance, eventually};

/// Longest time from a message's confirm to what its reader makes of it.
const SOON: Duration = Duration::from_secs(20);

fn paused(event: &HostEvent) -> Option<&Paused> {
    match &event.detail {
        HostDetail::Heartbeat(heartbeat) => heartbeat.paused.as_ref(),
        _ => None,
    }
}

/// Waits for a heartbeat from now on that says that the host is paused for that reason, or that it is not.
fn until_beat(commanded: &Commanded, reason: Option<&str>) {
    let heard = &commanded.fleet.heard;
    heard.of_host(&format!("a heartbeat with the pause {reason:?}"), START, heard.host_events(), |event| {
        let is_beat = matches!(event.detail, HostDetail::Heartbeat(_));
        is_beat && paused(event).map(|paused| paused.reason.as_deref()) == reason.map(Some)
    });
}

#[test]
fn a_paused_host_begins_nothing_until_it_is_told_to_go_on_whatever_becomes_of_its_worker() {
    let bare = LabInstance::bare();
    let mut commanded = Commanded::new("pause");
    let host = commanded.fleet.host.clone();
    let share = commanded.fleet.share();

    // Whom the broker lets speak, but not the host.
    let stranger = commanded.another(&format!("stranger-pause.{}", std::process::id()));
    commanded.as_user(&stranger, &["host", "pause", &host], 0);
    let log = commanded.fleet.folder.join("worker.log");
    let refused = || std::fs::read_to_string(&log).unwrap().contains("is not one of `broker.controllers`");
    eventually("it is not obeyed", SOON, refused);
    until_beat(&commanded, None);
    commanded.fleet.completed(commanded.fleet.back_up(&bare, &share, "off"));

    commanded.says(&["host", "pause", &host, "--for", "1h", "--reason", "new disks"], 0, "told");
    until_beat(&commanded, Some("new disks"));
    let queue = format!("longshore.jobs.{host}");
    eventually("the worker reads its queue no more", SOON, || readers_of(&queue) == 0);
    let job = commanded.fleet.back_up(&bare, &share, "off");
    eventually("the job is in its queue", SOON, || messages_in(&queue) == 1);
    until_beat(&commanded, Some("new disks"));
    assert_eq!((commanded.fleet.heard.events_of(job).len(), messages_in(&queue)), (0, 1));

    commanded.fleet.kill_worker();
    let control = format!("longshore.control.{host}");
    let again = ["host", "pause", &host, "--reason", "more disks"];
    // A broker may take a moment to notice that the worker has gone.
    eventually("its absence is told", SOON, || commanded.run(&again).status.code() == Some(3));
    assert!(messages_in(&control) >= 1);
    let listed = commanded.fleet.command_on_host(&["journal", "list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("the host is paused since") && listed.contains("new disks"), "{listed}");
    commanded.fleet.start_worker();
    until_beat(&commanded, Some("more disks"));
    assert_eq!((commanded.fleet.heard.events_of(job).len(), messages_in(&queue)), (0, 1));

    commanded.says(&["host", "pause", "no-such-host", &host, "--reason", "even more disks"], 10, "no control queue");
    until_beat(&commanded, Some("even more disks"));
    commanded.says(&["host", "pause", &host, "--until", "2020-01-01T00:00:00Z"], 2, "has passed");
    commanded.says(&["host", "resume", &host], 0, "told");
    commanded.fleet.completed(job);
    until_beat(&commanded, None);
    commanded.fleet.finish(&[&bare], &[&share]);
}
