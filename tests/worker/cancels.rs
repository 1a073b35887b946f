//! Runs that are cancelled: before they come, while they wait, at work, between two attempts, and when it is too late.

use longshore::failure::{Code, Failure};
use longshore::host::mover::FakeMovers;
use longshore::message::event::{Cancelled, HostDetail, RunDetail};
use longshore::model::job::RunKey;
use longshore::worker::admit::Slots;

use crate::fleet::{Fleet, SHARE};

const REASON: &str = "maintenance of the share";

/// The end of a run that was cancelled, with nothing left of it.
async fn cancelled(fleet: &Fleet, key: RunKey) {
    let end = fleet.end_of(key).await;
    let told = Cancelled { requested_by: Some("ops".into()), reason: Some(REASON.into()), left_overs: Vec::new() };
    assert_eq!(end, RunDetail::Cancelled(told));
}

fn is_clean(fleet: &Fleet, movers: &FakeMovers) -> bool {
    fleet.hypervisor.is_clean() && movers.running().is_empty() && movers.staging(SHARE).is_empty()
}

#[tokio::test]
async fn what_is_at_work_is_taken_back_and_what_waits_ends_at_once() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.settings.slots = Slots { host: 1, repository: 1 };
    fleet.movers.hang("copy");
    fleet.start().await;
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    let waiting = fleet.publish(&fleet.job("db")).await;
    fleet.told(waiting, 0, "accepted").await;
    fleet.cancel(waiting, REASON).await;
    cancelled(&fleet, waiting).await;
    assert_eq!(fleet.events.story(waiting), [(0, "accepted"), (0, "cancelled")]);
    assert_eq!(fleet.events.final_of(running), None);
    fleet.cancel(running, REASON).await;
    cancelled(&fleet, running).await;
    let ending: Vec<_> = fleet.events.story(running).into_iter().filter(|(_, word)| *word != "progress").collect();
    assert_eq!(ending, [(0, "accepted"), (1, "started"), (1, "cancelled")]);
    assert!(is_clean(&fleet, &fleet.movers) && fleet.movers.published(SHARE).is_empty());
    fleet.movers.unhang("copy");
    let again = fleet.publish(&fleet.job("web")).await;
    fleet.completed(again).await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_has_not_come_yet_ends_when_it_comes_also_after_a_crash() {
    let mut fleet = Fleet::with(&["web"]).await;
    let job = fleet.job("web");
    let key = crate::fleet::key(&job);
    fleet.cancel(key, REASON).await;
    fleet.until("the cancellation was read", |fleet| fleet.control_is_read().then_some(())).await;
    fleet.crash().await;
    fleet.start().await;
    fleet.publish(&job).await;
    cancelled(&fleet, key).await;
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (0, "cancelled")]);
    // Only that run: its replay is done.
    let mut replay = job.clone();
    replay.run = 2;
    let replay = fleet.publish(&replay).await;
    fleet.completed(replay).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_dies_while_it_takes_a_cancelled_run_back_does_not_try_it_again() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.movers.hang("discard");
    fleet.cancel(key, REASON).await;
    fleet.until("it is taken back", |fleet| fleet.movers.is_hanging("discard").then_some(())).await;
    fleet.crash().await;
    fleet.movers.unhang("copy");
    fleet.movers.unhang("discard");
    fleet.start().await;
    cancelled(&fleet, key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn between_two_attempts_there_is_no_second_one() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("open", 1, Failure::new(Code::MountTimedOut, "no answer"));
    let mut job = fleet.job("web");
    let retry = job.retry.as_mut().unwrap();
    (retry.first_pause_seconds, retry.longest_pause_seconds) = (Some(3600), Some(3600));
    let key = fleet.publish(&job).await;
    fleet.told(key, 1, "retrying").await;
    fleet.cancel(key, REASON).await;
    cancelled(&fleet, key).await;
    assert_eq!(fleet.events.story(key).last(), Some(&(1, "cancelled")));
    fleet.finish().await;
}

#[tokio::test]
async fn what_has_ended_stays_as_it_ended_and_nonsense_is_told_of() {
    let mut fleet = Fleet::with(&["web"]).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.cancel(key, REASON).await;
    fleet.cancel(RunKey { run: 0, ..key }, REASON).await;
    let refused = |detail: HostDetail| match detail {
        HostDetail::MessageRefused(refused) => Some(refused.code),
        _ => None,
    };
    let code = fleet.until("a refusal", |fleet| fleet.events.of_host().into_iter().find_map(refused)).await;
    assert_eq!((code.as_str(), fleet.letters().len()), ("invalid_field", 0));
    fleet.letterless = 1;
    let again = fleet.publish(&fleet.job("web")).await;
    fleet.completed(again).await;
    fleet.finish().await;
}
