//! Failed attempts: which are followed by another, when, and what is told when none is.

use longshore::broker::topology::DEAD_QUEUE;
use longshore::failure::{Code, Failure};
use longshore::message::Event;
use longshore::message::event::RunDetail;
use longshore::message::job::RetryPart;

use crate::fleet::{Fleet, SHARE};

fn full() -> Failure {
    Failure::new(Code::RepositoryFull, "no space left")
}

#[tokio::test]
async fn a_transient_failure_is_told_and_followed_by_another_attempt() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("copy", 2, full());
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    let story = [
        (0, "accepted"),
        (1, "started"),
        (1, "retrying"),
        (2, "started"),
        (2, "retrying"),
        (3, "started"),
        (3, "completed"),
    ];
    assert_eq!(fleet.events.story(key), story);
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert_eq!((retrying.failure.code.as_str(), retrying.failure.step.as_deref()), ("repository_full", Some("copy")));
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}

#[tokio::test]
async fn when_the_attempts_are_used_up_the_end_and_the_letter_come_together() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("copy", 9, full());
    let key = fleet.publish(&fleet.job("web")).await;
    let RunDetail::Failed(failed) = fleet.end_of(key).await else { panic!() };
    assert_eq!((failed.failure.code.as_str(), failed.attempts), ("repository_full", 3));
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    assert_eq!((letter.failure, letter.attempts), (failed.failure, 3));
    assert_eq!(letter.origin.queue, "longshore.jobs.kvm-07");
    assert_eq!(fleet.movers.published(SHARE), []);
    fleet.finish().await;
}

#[tokio::test]
async fn the_letter_and_the_end_are_one_thing_for_a_worker_that_dies_right_after() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.server.delete_queue(DEAD_QUEUE);
    let mut job = fleet.job("web");
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    fleet.movers.fail("copy", 1, full());
    let key = fleet.publish(&job).await;
    fleet.failed(key).await;
    fleet.crash().await;
    // The next worker's client declares the queue of dead letters.
    fleet.start().await;
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    assert_eq!(letter.failure.code, "repository_full");
    fleet.finish().await;
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("open", 1, Failure::new(Code::RepositoryReadOnly, "read-only"));
    let key = fleet.publish(&fleet.job("web")).await;
    assert_eq!(fleet.failed(key).await.code, "repository_read_only");
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "failed")]);
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_left_of_a_retry_survives_the_worker() {
    let mut fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.retry = Some(RetryPart { attempts: Some(2), first_pause_seconds: Some(2), longest_pause_seconds: Some(2) });
    fleet.movers.fail("copy", 9, full());
    let key = fleet.publish(&job).await;
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    fleet.crash().await;
    fleet.start().await;
    let RunDetail::Failed(failed) = fleet.end_of(key).await else { panic!() };
    assert_eq!(failed.attempts, 2, "the failure before the crash was counted");
    let started = fleet.events.once().into_iter().find_map(|seen| match seen.event {
        Event::Run(event) if event.attempt == 2 => Some(event.time),
        _ => None,
    });
    assert!(started.unwrap() >= retrying.next_attempt_at, "the pause was kept");
    assert_eq!(fleet.events.story(key).len(), 5, "nothing was interrupted: {:?}", fleet.events.story(key));
    fleet.finish().await;
}
