//! The broker is away, or takes less than it should: jobs go on, and what is to be told is told later.

use std::time::Duration;

use longshore::broker::memory::MemoryServer;
use longshore::broker::topology::{DEAD_QUEUE, JOBS_EXCHANGE, jobs_key, jobs_queue};
use longshore::broker::{Outgoing, Properties};
use longshore::message::event::{HostDetail, RunDetail};

use crate::events::Reader;
use crate::fleet::{Fleet, SHARE, encoded};

/// More than the worker lets pass before it tries an unroutable letter again.
const LETTER_PAUSE: Duration = Duration::from_secs(61);

#[tokio::test]
async fn a_job_completes_while_the_broker_is_away_and_its_end_is_told_once_afterwards() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.told(key, 1, "started").await;
    fleet.until_copying("web").await;
    fleet.server.go_down();
    fleet.movers.unhang("copy");
    fleet.until("the backup", |fleet| fleet.movers.published(SHARE).first().cloned()).await;
    fleet.until("its end on the host", |fleet| fleet.movers.running().is_empty().then_some(())).await;
    assert_eq!(fleet.events.final_of(key), None);
    fleet.server.go_up();
    fleet.completed(key).await;
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    fleet.stop().await;
    let ends = fleet.events.all().into_iter().filter(|seen| {
        seen.properties.correlation_id.as_deref() == Some(&key.job_id.to_string())
            && seen.routing_key.starts_with("backup.completed")
    });
    assert_eq!(ends.count(), 1);
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_dies_while_the_broker_is_away_has_its_events_told_by_the_next() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.told(key, 1, "started").await;
    fleet.until_copying("web").await;
    fleet.server.go_down();
    fleet.movers.unhang("copy");
    fleet.until("the backup", |fleet| fleet.movers.published(SHARE).first().cloned()).await;
    fleet.until("its end on the host", |fleet| fleet.movers.running().is_empty().then_some(())).await;
    fleet.crash().await;
    fleet.start().await;
    fleet.server.go_up();
    fleet.completed(key).await;
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}

/// The broker has the event and we do not know it: it is sent again, as the same event.
#[tokio::test]
async fn an_event_whose_confirm_is_lost_comes_twice_under_one_id() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    // Heartbeats would take the lost confirms for themselves.
    fleet.settings.heartbeat = Duration::from_secs(3600);
    fleet.settings.inventory = Duration::from_secs(3600);
    fleet.movers.hang("release");
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until("the backup", |fleet| fleet.movers.published(SHARE).first().cloned()).await;
    // The last progress and the end, and the first try to send them again.
    fleet.server.lose_next_confirms(4);
    fleet.movers.unhang("release");
    let ends = |fleet: &Fleet| {
        let all = fleet.events.all().into_iter().filter(|seen| seen.routing_key.starts_with("backup.completed"));
        let ids: Vec<_> = all.map(|seen| seen.properties.message_id).collect();
        (ids.len() > 1).then_some(ids)
    };
    let ids = fleet.until("the same end again", ends).await;
    assert!(ids.iter().all(|id| *id == ids[0]));
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_event_that_nobody_listens_to_holds_up_nothing() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.events = Reader::of(MemoryServer::new().client(Default::default()).as_ref()).await;
    fleet.start().await;
    for number in 1..=2 {
        fleet.publish(&fleet.job("web")).await;
        let done = |fleet: &Fleet| (fleet.movers.published(SHARE).len() == number).then_some(());
        fleet.until("the backup", done).await;
    }
    // Which looks whether anything still waits in the outbox.
    fleet.finish().await;
}

#[tokio::test]
async fn a_letter_that_has_no_queue_waits_for_it() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.server.delete_queue(DEAD_QUEUE);
    let properties = Properties { persistent: true, ..Properties::default() };
    fleet.publish_raw(properties, b"garbage".to_vec()).await;
    let depth = |detail: HostDetail| match detail {
        HostDetail::Heartbeat(heartbeat) if heartbeat.outbox_depth == 1 => Some(()),
        _ => None,
    };
    fleet.until("a letter that waits", |fleet| fleet.events.of_host().into_iter().find_map(depth)).await;
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    assert_eq!(fleet.letters(), []);
    // Any client declares it.
    drop(fleet.server.client(Default::default()));
    tokio::time::pause();
    tokio::time::advance(LETTER_PAUSE).await;
    tokio::time::resume();
    fleet.until("the letter", |fleet| fleet.letters().first().cloned()).await;
    fleet.finish().await;
}

/// Letters that nobody takes are kept in the journal, so somebody has to stop what makes them.
#[tokio::test]
async fn no_job_is_taken_while_too_many_letters_wait_for_their_queue() {
    const MORE_THAN_ENOUGH: usize = 5000;
    let fleet = Fleet::with(&["web"]).await;
    fleet.server.limit_queue(DEAD_QUEUE, 0);
    let queue = jobs_queue(&fleet.host);
    for number in 0..MORE_THAN_ENOUGH {
        let message_id = number.to_string();
        let properties = Properties { persistent: true, message_id, ..Properties::default() };
        fleet.publish_raw(properties, b"garbage".to_vec()).await;
    }
    let kept = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
            HostDetail::Heartbeat(heartbeat) => Some(heartbeat.outbox_depth),
            _ => None,
        })
    };
    fleet.until("the bound", |fleet| (kept(fleet) >= Some(1000)).then_some(())).await;
    let before = fleet.events.of_host().len();
    fleet.until("more heartbeats", |fleet| (fleet.events.of_host().len() > before + 5).then_some(())).await;
    assert!(fleet.server.depth(&queue).unwrap().ready > 0, "it has taken all of them");
    // Over the bound comes what was on its way when it was reached.
    assert!(kept(&fleet) < Some(3000), "{:?} are kept", kept(&fleet));
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.server.limit_queue(DEAD_QUEUE, usize::MAX);
    tokio::time::pause();
    tokio::time::advance(LETTER_PAUSE).await;
    tokio::time::resume();
    fleet.completed(next).await;
    // The letters of the last ones wait for a minute yet, if they came before there was room.
    fleet.until("every letter", |fleet| (fleet.letters().len() == MORE_THAN_ENOUGH).then_some(())).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_session_that_has_gone_silent_and_jobs_that_were_un_acked_lose_nothing() {
    let fleet = Fleet::with(&["web", "db"]).await;
    let first = fleet.publish(&fleet.job("web")).await;
    fleet.completed(first).await;
    fleet.server.silence_consumers();
    let message = encoded(&fleet.job("db"));
    let routing_key = jobs_key(&fleet.host);
    let outgoing =
        Outgoing { exchange: JOBS_EXCHANGE, routing_key, properties: message.properties, body: message.body };
    fleet.broker.publisher().publish(outgoing).await.unwrap();
    fleet.until("the second backup", |fleet| (fleet.movers.published(SHARE).len() == 2).then_some(())).await;
    assert!(matches!(fleet.end_of(first).await, RunDetail::Completed(_)));
    fleet.finish().await;
}
