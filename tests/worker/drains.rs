//! A controller has a host come to rest: it ends or stays, and keeps what it has not done or does not.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longshore::broker::memory::Depth;
use longshore::broker::topology::{DEAD_QUEUE, jobs_queue};
use longshore::failure::{Class, Code, Failure};
use longshore::message::event::{Draining, HostDetail};
use longshore::message::{Control, Drain, Pause, Resume};
use longshore::model::job::RunKey;
use longshore::shutdown::Stage;
use longshore::worker::Ended;
use longshore::worker::admit::Slots;

use crate::fleet::{Fleet, SHARE};

fn drain(drain: Drain) -> Control {
    Control::Drain(Drain { requested_by: Some("night shift".into()), reason: Some("upgrade".into()), ..drain })
}

async fn draining(fleet: &Fleet) -> Draining {
    let find = |detail: HostDetail| match detail {
        HostDetail::Draining(draining) => Some(draining),
        _ => None,
    };
    fleet.until("`worker.draining`", |fleet| fleet.events.of_host().into_iter().find_map(find)).await
}

/// One that runs and hangs, and one that waits for its slot.
async fn one_runs_and_one_waits(fleet: &mut Fleet) -> (RunKey, RunKey) {
    fleet.settings.slots = Slots { host: 1, repository: 1 };
    fleet.movers.hang("copy");
    fleet.start().await;
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    let waiting = fleet.publish(&fleet.job("db")).await;
    fleet.told(waiting, 0, "accepted").await;
    (running, waiting)
}

fn gave_back(fleet: &Fleet) -> bool {
    fleet.hypervisor.is_clean() && fleet.movers.running().is_empty() && fleet.movers.staging(SHARE).is_empty()
}

#[tokio::test]
async fn it_ends_with_what_ran_done_or_taken_back_and_the_next_worker_goes_on() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(0), ..Drain::default() })).await;
    let told = draining(&fleet).await;
    assert_eq!((told.running, told.waiting, told.limit_seconds, told.evict, told.stay), (1, 1, 0, false, false));
    assert_eq!((told.user.as_deref(), told.requested_by.as_deref()), (Some("ops"), Some("night shift")));
    assert_eq!(told.reason.as_deref(), Some("upgrade"));
    assert_eq!(fleet.ended().await.unwrap(), Ended { drained: true, ..Ended::default() });
    assert!(gave_back(&fleet) && fleet.letters().is_empty());
    assert_eq!(fleet.events.story(running).last(), Some(&(1, "retrying")));
    assert_eq!(fleet.events.story(waiting), [(0, "accepted")]);
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.completed(running).await;
    fleet.completed(waiting).await;
    fleet.finish().await;
}

#[tokio::test]
async fn one_that_is_in_less_of_a_hurry_lets_jobs_end_and_hears_what_else_is_wanted_meanwhile() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.movers.hang("copy");
    fleet.start().await;
    let [first, second] = [fleet.publish(&fleet.job("web")).await, fleet.publish(&fleet.job("db")).await];
    fleet.until_copying("web").await;
    fleet.until_copying("db").await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), ..Drain::default() })).await;
    draining(&fleet).await;
    fleet.cancel(first, "no longer needed").await;
    assert_eq!(fleet.end_of(first).await.word(), "cancelled");
    fleet.movers.unhang("copy");
    fleet.completed(second).await;
    fleet.ended().await.unwrap();
    fleet.finish().await;
}

/// A worker that lets a job go on for an hour, and was configured to let none.
async fn in_no_hurry() -> (Fleet, RunKey) {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.movers.hang("copy");
    fleet.settings.drain_limit = Duration::ZERO;
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), ..Drain::default() })).await;
    draining(&fleet).await;
    (fleet, key)
}

async fn has_hurried(mut fleet: Fleet, key: RunKey) {
    fleet.ended().await.unwrap();
    assert!(gave_back(&fleet));
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_second_drain_makes_it_hurry() {
    let (fleet, key) = in_no_hurry().await;
    fleet.command(&drain(Drain { limit_seconds: Some(0), ..Drain::default() })).await;
    has_hurried(fleet, key).await;
}

#[tokio::test]
async fn a_signal_makes_it_hurry() {
    let (fleet, key) = in_no_hurry().await;
    fleet.signal(Stage::Drain);
    has_hurried(fleet, key).await;
}

#[tokio::test]
async fn one_that_stays_comes_to_rest_and_goes_on_when_it_is_told_to_also_after_a_crash() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(0), stay: true, ..Drain::default() })).await;
    assert!(draining(&fleet).await.stay);
    fleet.told(running, 1, "retrying").await;
    let rests = |fleet: &Fleet| match fleet.events.of_host().pop() {
        Some(HostDetail::Heartbeat(heartbeat)) => {
            (heartbeat.running.is_empty() && heartbeat.waiting == 2 && heartbeat.paused.is_some()).then_some(())
        }
        _ => None,
    };
    fleet.until("it rests", rests).await;
    assert!(gave_back(&fleet));
    fleet.crash().await;
    fleet.start().await;
    fleet.until("the next worker rests as well", rests).await;
    fleet.movers.unhang("copy");
    fleet.command(&Control::Resume(Resume::default())).await;
    fleet.completed(running).await;
    fleet.completed(waiting).await;
    fleet.finish().await;
}

#[tokio::test]
async fn told_to_go_on_before_it_has_come_to_rest_it_goes_on() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), stay: true, ..Drain::default() })).await;
    draining(&fleet).await;
    fleet.command(&Control::Resume(Resume::default())).await;
    fleet.movers.unhang("copy");
    fleet.completed(running).await;
    fleet.completed(waiting).await;
    fleet.finish().await;
}

async fn evicted(fleet: &Fleet, key: RunKey) {
    let failure = fleet.failed(key).await;
    assert_eq!((failure.code.as_str(), failure.class), ("host_draining", Class::Transient));
    let letter = fleet.until("its letter", |fleet| fleet.letter_of(key)).await;
    assert_eq!(letter.failure, failure);
}

const EVICTED: Ended = Ended { drained: true, evicted: true, left: 0, untold: 0 };

#[tokio::test]
async fn an_eviction_keeps_nothing_and_leaves_a_letter_of_each() {
    let mut fleet = Fleet::without_worker(&["web", "db", "mail"]).await;
    fleet.movers.fail("open", 1, Failure::new(Code::MountTimedOut, "no answer"));
    fleet.start().await;
    let mut job = fleet.job("mail");
    let retry = job.retry.as_mut().unwrap();
    (retry.first_pause_seconds, retry.longest_pause_seconds) = (Some(3600), Some(3600));
    let tried = fleet.publish(&job).await;
    fleet.told(tried, 1, "retrying").await;
    fleet.stop().await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(1), evict: true, ..Drain::default() })).await;
    // At once, since nobody here will do it.
    evicted(&fleet, waiting).await;
    evicted(&fleet, tried).await;
    assert_eq!(fleet.ended().await.unwrap(), EVICTED);
    evicted(&fleet, running).await;
    assert_eq!(fleet.events.story(waiting), [(0, "accepted"), (0, "failed")]);
    assert_eq!(fleet.events.story(tried).last(), Some(&(1, "failed")));
    let ending: Vec<_> = fleet.events.story(running).into_iter().filter(|(_, word)| *word != "progress").collect();
    assert_eq!(ending, [(0, "accepted"), (1, "started"), (1, "failed")]);
    assert!(gave_back(&fleet));
    fleet.finish().await;
}

/// The broker hands them over before it hears of the drain, and the journal takes its time.
#[tokio::test]
async fn an_eviction_keeps_nothing_of_what_is_just_being_taken_either() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.until("a heartbeat", |fleet| fleet.events.of_host().iter().any(is_a_beat).then_some(())).await;
    let slow = fleet.journal_held().await;
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(fleet.publish(&fleet.job("web")).await);
    }
    let handed_over = Some(Depth { ready: 0, unacked: 10 });
    let queue = jobs_queue(&fleet.host);
    fleet.until("the deliveries", |fleet| (fleet.server.depth(&queue) == handed_over).then_some(())).await;
    fleet.command(&drain(Drain { limit_seconds: Some(0), evict: true, ..Drain::default() })).await;
    draining(&fleet).await;
    slow.let_go().await;
    assert_eq!(fleet.ended().await.unwrap(), EVICTED);
    for key in taken {
        evicted(&fleet, key).await;
    }
    fleet.finish().await;
}

fn is_a_beat(detail: &HostDetail) -> bool {
    matches!(detail, HostDetail::Heartbeat(_))
}

/// One that is evicted while its letter has no queue.
async fn evicted_without_a_letter() -> (Fleet, RunKey) {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.server.delete_queue(DEAD_QUEUE);
    fleet.command(&drain(Drain { limit_seconds: Some(0), evict: true, ..Drain::default() })).await;
    assert_eq!(fleet.failed(key).await.code, "host_draining");
    fleet.movers.unhang("copy");
    (fleet, key)
}

/// On the clock that is let run ahead.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// A letter that is not marked yet would be sent twice by the next worker.
async fn all_is_marked(fleet: &Fleet) {
    let beats = |fleet: &Fleet| fleet.events.of_host().iter().filter(|detail| is_a_beat(detail)).count();
    let before = beats(fleet);
    let is_marked = |fleet: &Fleet| match fleet.events.of_host().pop()? {
        HostDetail::Heartbeat(beat) => (beats(fleet) > before + 1 && beat.outbox_depth == 0).then_some(()),
        _ => None,
    };
    fleet.until("the letter is marked", is_marked).await;
}

#[tokio::test]
async fn one_that_keeps_nothing_and_stays_goes_on_with_that_until_it_is_resumed_also_after_a_crash() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), evict: true, stay: true, ..Drain::default() })).await;
    assert!(draining(&fleet).await.evict);
    evicted(&fleet, waiting).await;
    // A pause says nothing of it.
    let reason = Some("the racks move".to_owned());
    fleet.command(&Control::Pause(Pause { reason: reason.clone(), ..Pause::default() })).await;
    let is_obeyed = |detail: HostDetail| match detail {
        HostDetail::Paused(paused) => (paused.reason == reason).then_some(()),
        _ => None,
    };
    fleet.until("the pause", |fleet| fleet.events.of_host().into_iter().find_map(is_obeyed)).await;
    all_is_marked(&fleet).await;
    // Amid the eviction: this one would have had an hour yet.
    fleet.crash().await;
    fleet.movers.unhang("copy");
    fleet.start().await;
    evicted(&fleet, running).await;
    let resume = Control::Resume(Resume::default());
    fleet.command(&resume).await;
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_resumed_while_no_worker_is_there_is_not_evicted_by_the_next_one() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), evict: true, stay: true, ..Drain::default() })).await;
    evicted(&fleet, waiting).await;
    all_is_marked(&fleet).await;
    fleet.crash().await;
    fleet.command(&Control::Resume(Resume::default())).await;
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.completed(running).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_later_drain_that_keeps_what_waits_makes_a_pause_keep_it_too() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let (running, waiting) = one_runs_and_one_waits(&mut fleet).await;
    fleet.command(&drain(Drain { limit_seconds: Some(3600), evict: true, stay: true, ..Drain::default() })).await;
    evicted(&fleet, waiting).await;
    fleet.command(&drain(Drain { limit_seconds: Some(0), ..Drain::default() })).await;
    assert!(fleet.ended().await.unwrap().drained);
    fleet.movers.unhang("copy");
    fleet.start().await;
    fleet.command(&Control::Resume(Resume::default())).await;
    fleet.completed(running).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_eviction_does_not_end_before_its_letters_are_sent() {
    let (mut fleet, key) = evicted_without_a_letter().await;
    let beats = |fleet: &Fleet| fleet.events.of_host().iter().filter(|detail| is_a_beat(detail)).count();
    let before = beats(&fleet);
    fleet.until("it lives on", |fleet| (beats(fleet) > before + 10).then_some(())).await;
    // Any client declares the queue.
    drop(fleet.server.client(Default::default()));
    pass(Duration::from_secs(61)).await;
    assert_eq!(fleet.ended().await.unwrap(), EVICTED);
    evicted(&fleet, key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_eviction_whose_letters_nobody_takes_ends_in_the_end_and_says_how_many() {
    let (mut fleet, key) = evicted_without_a_letter().await;
    let beats = |fleet: &Fleet| fleet.events.of_host().iter().filter(|detail| is_a_beat(detail)).count();
    let before = beats(&fleet);
    fleet.until("it lives on", |fleet| (beats(fleet) > before + 10).then_some(())).await;
    pass(Duration::from_secs(151)).await;
    assert_eq!(fleet.ended().await.unwrap(), Ended { untold: 1, ..EVICTED });
    drop(fleet.server.client(Default::default()));
    fleet.start().await;
    fleet.until("its letter", |fleet| fleet.letter_of(key)).await;
    fleet.finish().await;
}

#[tokio::test]
async fn one_that_comes_too_late_or_from_a_stranger_is_not_obeyed() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.command_as("stranger", &drain(Drain::default())).await;
    let obey_before = Some(Timestamp::now() - SignedDuration::from_secs(1));
    fleet.command(&drain(Drain { obey_before, ..Drain::default() })).await;
    let refused = |detail: HostDetail| match detail {
        HostDetail::MessageRefused(refused) => Some(refused.code),
        _ => None,
    };
    let code = fleet.until("a refusal", |fleet| fleet.events.of_host().into_iter().find_map(refused)).await;
    assert_eq!(code, "control_too_late");
    fleet.letterless = 1;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}
