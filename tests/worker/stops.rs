//! Attempts that are stopped: by their deadline, or because the worker goes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longshore::message::event::{HostDetail, RunDetail};
use longshore::shutdown::Stage;
use longshore::worker::admit::Slots;

use crate::fleet::{Fleet, SHARE};

#[tokio::test]
async fn an_attempt_that_is_over_its_deadline_is_stopped_unwound_and_not_tried_again() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let mut job = fleet.job("web");
    job.deadline_seconds = Some(1);
    let key = fleet.publish(&job).await;
    assert_eq!(fleet.failed(key).await.code, "deadline_exceeded");
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "failed")]);
    fleet.movers.unhang("copy");
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_whose_time_to_start_has_passed_is_not_started() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.start_before = Some((Timestamp::now() - SignedDuration::from_secs(1)).to_string());
    let key = fleet.publish(&job).await;
    assert_eq!(fleet.failed(key).await.code, "start_before_passed");
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (0, "failed")]);
    let mut job = fleet.job("web");
    job.start_before = Some((Timestamp::now() + SignedDuration::from_hours(1)).to_string());
    let key = fleet.publish(&job).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

/// It is told when its time has passed, not when there is room for it.
#[tokio::test]
async fn a_job_that_waits_for_a_slot_beyond_its_time_to_start_is_told_of_at_once() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.settings.slots = Slots { host: 1, repository: 1 };
    fleet.movers.hang("copy");
    fleet.start().await;
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    let mut job = fleet.job("db");
    job.start_before = Some((Timestamp::now() + SignedDuration::from_millis(300)).to_string());
    let late = fleet.publish(&job).await;
    assert_eq!(fleet.failed(late).await.code, "start_before_passed");
    assert_eq!(fleet.events.story(late), [(0, "accepted"), (0, "failed")]);
    assert_eq!(fleet.events.final_of(running), None);
    fleet.movers.unhang("copy");
    fleet.completed(running).await;
    fleet.finish().await;
}

/// That it drains cannot be told, and nobody waits for that.
#[tokio::test]
async fn a_second_signal_is_heard_while_the_broker_is_away() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.publish_wait = Duration::from_secs(3600);
    fleet.movers.hang("copy");
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.server.go_down();
    fleet.signal(Stage::Drain);
    fleet.signal(Stage::Now);
    // Less than a publish is given.
    let stopped = fleet.until("the stop", |fleet| fleet.movers.running().is_empty().then_some(()));
    tokio::time::timeout(Duration::from_secs(8), stopped).await.expect("it was deaf");
    fleet.ended().await.unwrap();
    fleet.movers.unhang("copy");
    fleet.server.go_up();
    fleet.start().await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_drain_lets_run_what_runs_and_keeps_what_waits() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.settings.slots = Slots { host: 1, repository: 1 };
    fleet.movers.hang("copy");
    fleet.start().await;
    let running = fleet.publish(&fleet.job("web")).await;
    let waiting = fleet.publish(&fleet.job("db")).await;
    fleet.told(waiting, 0, "accepted").await;
    fleet.until_copying("web").await;
    fleet.signal(Stage::Drain);
    let draining = |detail: HostDetail| match detail {
        HostDetail::Draining(draining) => Some((draining.running, draining.waiting)),
        _ => None,
    };
    let told = fleet.until("`worker.draining`", |fleet| fleet.events.of_host().into_iter().find_map(draining)).await;
    assert_eq!(told, (1, 1));
    // Not for a worker that drains.
    let later = fleet.publish(&fleet.job("web")).await;
    fleet.movers.unhang("copy");
    fleet.ended().await.unwrap();
    fleet.completed(running).await;
    assert_eq!(fleet.events.story(waiting), [(0, "accepted")]);
    assert_eq!(fleet.events.story(later), []);
    fleet.start().await;
    fleet.completed(waiting).await;
    fleet.completed(later).await;
    assert_eq!(fleet.events.story(waiting), [(0, "accepted"), (1, "started"), (1, "completed")]);
    fleet.finish().await;
}

const DRAINED: [(u32, &str); 5] = [(0, "accepted"), (1, "started"), (1, "retrying"), (2, "started"), (2, "completed")];

#[tokio::test]
async fn what_runs_beyond_the_drain_limit_is_stopped_and_done_by_the_next_worker() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.settings.drain_limit = Duration::from_millis(100);
    fleet.movers.hang("copy");
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.signal(Stage::Drain);
    fleet.ended().await.unwrap();
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert_eq!(retrying.failure.code, "host_draining");
    assert!(fleet.hypervisor.is_clean() && fleet.movers.running().is_empty() && fleet.movers.staging(SHARE).is_empty());
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), DRAINED);
    fleet.finish().await;
}

#[tokio::test]
async fn a_second_signal_stops_what_runs_at_once() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.signal(Stage::Drain);
    fleet.signal(Stage::Now);
    // Well within the drain limit, which is as long as anything is waited for here.
    fleet.ended().await.unwrap();
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), DRAINED);
    fleet.finish().await;
}

#[tokio::test]
async fn a_drain_is_not_charged_to_the_retry_policy() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.settings.drain_limit = Duration::ZERO;
    fleet.movers.hang("copy");
    fleet.start().await;
    let mut job = fleet.job("web");
    job.retry.as_mut().unwrap().attempts = Some(1);
    let key = fleet.publish(&job).await;
    for attempt in 1..=6 {
        fleet.told(key, attempt, "started").await;
        fleet.until_copying("web").await;
        fleet.stop().await;
        fleet.start().await;
    }
    fleet.movers.unhang("copy");
    fleet.completed(key).await;
    fleet.finish().await;
}
