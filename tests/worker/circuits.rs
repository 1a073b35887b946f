//! A repository that fails job after job: who is held back, who is not, and what is told of it.

use longshore::failure::{Code, Failure};
use longshore::message::event::{FailingRepository, HostDetail, RunDetail};
use longshore::message::job::RetryPart;
use longshore::message::{Control, Drain, Event};
use longshore::model::job::RunKey;
use longshore::worker::admit::Slots;

use crate::fleet::{Fleet, SHARE};

/// A worker whose share fails three times, and five jobs for it with two attempts each. Answers them once the second one, whose failure
/// is the third, is held back.
async fn with_a_dead_share() -> (Fleet, Vec<RunKey>) {
    let mut fleet = Fleet::without_worker(&["a", "b", "c", "d", "e", "u"]).await;
    fleet.settings.slots = Slots { host: 10, repository: 1 };
    fleet.movers.fail("open", 3, Failure::new(Code::MountTimedOut, "the share does not answer"));
    fleet.start().await;
    let mut keys = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let mut job = fleet.job(name);
        job.retry = Some(RetryPart { attempts: Some(2), first_pause_seconds: Some(0), longest_pause_seconds: Some(0) });
        keys.push(fleet.publish(&job).await);
        fleet.told(keys[keys.len() - 1], 0, "accepted").await;
    }
    assert_eq!(fleet.failed(keys[0]).await.code, "mount_timed_out");
    let RunDetail::Retrying(retrying) = fleet.told(keys[1], 1, "retrying").await else { panic!() };
    assert!(retrying.warnings.iter().any(|words| words.contains("not charged")), "{:?}", retrying.warnings);
    (fleet, keys)
}

/// What the latest heartbeat says.
fn failing(fleet: &Fleet) -> Option<Vec<FailingRepository>> {
    fleet.events.once().into_iter().rev().find_map(|seen| match seen.event {
        Event::Host(event) => match event.detail {
            HostDetail::Heartbeat(heartbeat) => Some(heartbeat.failing_repositories),
            _ => None,
        },
        _ => None,
    })
}

fn started(fleet: &Fleet, key: RunKey) -> bool {
    fleet.events.story(key).iter().any(|(_, word)| *word == "started")
}

#[tokio::test]
async fn the_jobs_of_a_dead_share_wait_and_go_on_when_one_has_succeeded() {
    let (fleet, keys) = with_a_dead_share().await;
    let told = fleet.until("the heartbeat", |fleet| failing(fleet).filter(|told| !told.is_empty())).await;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].repository_id, told[0].failures), (fleet.repository_id(SHARE), 3));
    assert_eq!((told[0].failure.code.as_str(), told[0].tried_by), ("mount_timed_out", None));
    assert!(told[0].next_try_at.is_some());
    assert!(!keys[2..].iter().any(|key| started(&fleet, *key)), "one tries, after the pause");
    for key in &keys[1..] {
        fleet.completed(*key).await;
    }
    assert!(fleet.events.story(keys[1]).contains(&(2, "completed")), "it did not wait for its own moment");
    fleet.until("no more of it", |fleet| failing(fleet).filter(Vec::is_empty)).await;
    assert_eq!(fleet.letters().len(), 1, "that before it was known");
    fleet.finish().await;
}

#[tokio::test]
async fn an_urgent_job_is_not_held_back_and_helps_all_the_others() {
    let (fleet, keys) = with_a_dead_share().await;
    assert!(!started(&fleet, keys[2]));
    let urgent = fleet.publish_urgent(&fleet.job("u")).await;
    fleet.completed(urgent).await;
    for key in &keys[1..] {
        fleet.completed(*key).await;
    }
    fleet.finish().await;
}

/// What is known of the repository is lost with the worker; who is held back for its sake is not.
#[tokio::test]
async fn jobs_that_are_held_back_over_a_restart_go_on_when_one_has_succeeded() {
    let (mut fleet, keys) = with_a_dead_share().await;
    let RunDetail::Retrying(retrying) = fleet.told(keys[1], 1, "retrying").await else { panic!() };
    fleet.stop().await;
    fleet.start().await;
    for key in &keys[1..] {
        fleet.completed(*key).await;
    }
    assert!(jiff::Timestamp::now() < retrying.next_attempt_at, "it waited for its own moment");
    fleet.finish().await;
}

/// They wait for their repository, and a host that keeps nothing does not wait with them.
#[tokio::test]
async fn a_host_that_is_evicted_does_not_keep_those_that_are_held_back() {
    let (mut fleet, keys) = with_a_dead_share().await;
    let drain = Drain { limit_seconds: Some(0), evict: true, ..Drain::default() };
    fleet.command(&Control::Drain(drain)).await;
    let ended = fleet.ended().await.unwrap();
    assert_eq!((ended.drained, ended.trouble()), (true, None));
    for key in &keys[1..] {
        assert_eq!(fleet.failed(*key).await.code, "host_draining");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_that_becomes_too_late_meanwhile_says_why_it_was_not_started() {
    let (fleet, keys) = with_a_dead_share().await;
    let mut job = fleet.job("u");
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    job.start_before = Some(soon.to_string());
    let late = fleet.publish(&job).await;
    let failure = fleet.failed(late).await;
    assert_eq!(failure.code, "start_before_passed");
    assert!(failure.causes.iter().any(|cause| cause.contains("does not answer")), "{:?}", failure.causes);
    for key in &keys[1..] {
        fleet.cancel(*key, "nobody waits for it").await;
        fleet.end_of(*key).await;
    }
    fleet.finish().await;
}
