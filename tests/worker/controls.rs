//! Control messages are obeyed one after the other, before any job begins, and once.

use longshore::broker::memory::Depth;
use longshore::broker::topology::control_queue;
use longshore::message::event::HostDetail;
use longshore::message::{Announce, Control, Drain, Pause, Resume};

use crate::fleet::Fleet;

const NO_PAUSES: &str = "CREATE TRIGGER broken BEFORE INSERT ON kept WHEN NEW.run_id = 0 BEGIN SELECT RAISE(ABORT, 'the test says so'); END";
const NO_CANCELLATIONS: &str =
    "CREATE TRIGGER broken BEFORE INSERT ON tombstones BEGIN SELECT RAISE(ABORT, 'the test says so'); END";
const MENDED: &str = "DROP TRIGGER broken";

fn count(fleet: &Fleet, is_wanted: impl Fn(&HostDetail) -> bool) -> usize {
    fleet.events.of_host().iter().filter(|detail| is_wanted(detail)).count()
}

fn beats(fleet: &Fleet) -> usize {
    count(fleet, |detail| matches!(detail, HostDetail::Heartbeat(_)))
}

fn drainings(fleet: &Fleet) -> usize {
    count(fleet, |detail| matches!(detail, HostDetail::Draining(_)))
}

fn onlines(fleet: &Fleet) -> usize {
    count(fleet, |detail| matches!(detail, HostDetail::Online(_)))
}

/// Waits until the worker has had every chance to do what it should not do.
async fn beats_pass(fleet: &Fleet) {
    let before = beats(fleet);
    fleet.until("more heartbeats", |fleet| (beats(fleet) >= before + 10).then_some(())).await;
}

async fn until_paused(fleet: &Fleet) {
    let is_paused = |fleet: &Fleet| match fleet.events.of_host().pop()? {
        HostDetail::Heartbeat(heartbeat) => heartbeat.paused.map(drop),
        _ => None,
    };
    fleet.until("a heartbeat that says so", is_paused).await;
}

#[tokio::test]
async fn a_worker_begins_nothing_before_it_has_obeyed_what_was_sent_while_none_was_there() {
    let mut fleet = Fleet::with(&["web"]).await;
    beats_pass(&fleet).await;
    fleet.stop().await;
    fleet.command(&Control::Pause(Pause::default())).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.in_journal(NO_PAUSES).await;
    fleet.start().await;
    beats_pass(&fleet).await;
    assert!(fleet.events.story(key).iter().all(|(_, word)| *word != "started"), "it was told to begin nothing");
    fleet.in_journal(MENDED).await;
    until_paused(&fleet).await;
    beats_pass(&fleet).await;
    assert!(fleet.events.story(key).iter().all(|(_, word)| *word != "started"), "it is paused");
    fleet.command(&Control::Resume(Resume::default())).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_drain_does_not_overtake_a_cancellation_and_holds_up_no_announcement() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.in_journal(NO_CANCELLATIONS).await;
    fleet.cancel(key, "not wanted").await;
    fleet.command(&Control::Drain(Drain { limit_seconds: Some(0), ..Drain::default() })).await;
    beats_pass(&fleet).await;
    let before = onlines(&fleet);
    // By now it shares no commit with the cancellation, which is tried again after ever longer pauses.
    fleet.command(&Control::Announce(Announce {})).await;
    fleet.until("the announcement", |fleet| (onlines(fleet) > before).then_some(())).await;
    assert_eq!((drainings(&fleet), fleet.events.final_of(key)), (0, None));
    fleet.in_journal(MENDED).await;
    assert_eq!(fleet.end_of(key).await.word(), "cancelled");
    assert!(fleet.ended().await.unwrap().drained);
    fleet.movers.unhang("copy");
    fleet.finish().await;
}

/// The broker hands it over again, and that is when it counts.
#[tokio::test]
async fn a_drain_whose_acknowledgement_was_not_sent_is_obeyed_once() {
    let fleet = Fleet::with(&["web"]).await;
    beats_pass(&fleet).await;
    fleet.in_journal(NO_PAUSES).await;
    fleet.command(&Control::Drain(Drain { stay: true, ..Drain::default() })).await;
    let queue = control_queue(&fleet.host);
    let handed_over = Some(Depth { ready: 0, unacked: 1 });
    fleet.until("the delivery", |fleet| (fleet.server.depth(&queue) == handed_over).then_some(())).await;
    fleet.server.go_down();
    fleet.until("the broker has it again", |fleet| (fleet.server.depth(&queue) != handed_over).then_some(())).await;
    fleet.server.go_up();
    fleet.until("it is handed over again", |fleet| (fleet.server.depth(&queue) == handed_over).then_some(())).await;
    fleet.in_journal(MENDED).await;
    fleet.until("it is read", |fleet| fleet.control_is_read().then_some(())).await;
    until_paused(&fleet).await;
    beats_pass(&fleet).await;
    assert_eq!(drainings(&fleet), 1);
    fleet.command(&Control::Resume(Resume::default())).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}
