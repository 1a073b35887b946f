//! What goes along in a dead letter, and which of them a later success supersedes.

use longshore::broker::topology::{DEAD_QUEUE, jobs_queue};
use longshore::failure::{Code, Failure};
use longshore::message::JobMessage;
use longshore::message::job::RetryPart;
use longshore::message::told::ToldEvent;
use longshore::model::job::{RunKey, SCHEDULE_LABEL};

use crate::fleet::{Fleet, SHARE};

fn full() -> Failure {
    Failure::new(Code::RepositoryFull, "no space left")
}

fn denied() -> Failure {
    Failure::new(Code::RepositoryReadOnly, "read-only")
}

fn story(events: &[ToldEvent]) -> Vec<(u32, &str)> {
    events.iter().map(|told| (told.attempt, told.event.as_str())).collect()
}

fn scheduled(fleet: &Fleet, instance: &str, schedule: Option<&str>) -> JobMessage {
    let mut job = fleet.job(instance);
    job.labels.extend(schedule.map(|name| (SCHEDULE_LABEL.to_owned(), name.to_owned())));
    job
}

/// A job that fails for good at once.
async fn dies(fleet: &Fleet, job: &JobMessage) -> RunKey {
    fleet.movers.fail("open", 1, denied());
    let key = fleet.publish(job).await;
    fleet.failed(key).await;
    fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    key
}

async fn succeeds(fleet: &Fleet, job: &JobMessage) -> RunKey {
    let key = fleet.publish(job).await;
    fleet.completed(key).await;
    key
}

fn marked(fleet: &Fleet) -> Vec<(RunKey, RunKey)> {
    let marks = fleet.marks().into_iter();
    let pair = |job_id, run| RunKey { job_id, run };
    marks.map(|mark| (pair(mark.job_id, mark.run), pair(mark.by_job_id, mark.by_run))).collect()
}

async fn until_marked(fleet: &Fleet, wanted: &[(RunKey, RunKey)]) {
    fleet.until("the marks", |fleet| (marked(fleet) == wanted).then_some(())).await;
}

#[tokio::test]
async fn a_letter_holds_what_its_last_attempt_told_as_it_was_told() {
    let fleet = Fleet::with(&["web"]).await;
    // All bytes have been copied by then.
    fleet.movers.fail("publish", 9, full());
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.failed(key).await;
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    let told: Vec<_> = story(&letter.events).into_iter().filter(|(_, event)| *event != "progress").collect();
    assert_eq!(told, [(0, "accepted"), (1, "retrying"), (2, "retrying"), (3, "started"), (3, "failed")]);
    let progress = letter.events.iter().find(|told| told.event == "progress").expect("how far it came");
    assert_eq!((progress.attempt, progress.step.is_some()), (3, true));
    assert!(progress.total_bytes > Some(0) && progress.done_bytes == progress.total_bytes, "{progress:?}");
    let failure = letter.events[1].failure.as_ref().unwrap();
    assert_eq!((failure.code.as_str(), failure.step.is_some()), ("repository_full", true));
    // Each is an event that was told, in its place and at its time.
    let events = fleet.events.of_run(key);
    for told in &letter.events {
        let same = |event: &&longshore::message::RunEvent| {
            (event.attempt, event.sequence, event.detail.word()) == (told.attempt, told.sequence, told.event.as_str())
        };
        // Progress may have been overtaken on its way.
        let found = events.iter().find(same);
        assert!(found.is_some() || told.event == "progress", "{told:?}");
        assert!(found.is_none_or(|event| event.time == told.time), "{told:?}");
    }
    assert!(letter.events.is_sorted_by_key(|told| (told.attempt, told.sequence)));
    fleet.finish().await;
}

#[tokio::test]
async fn what_an_earlier_worker_told_is_in_the_letter_too() {
    let mut fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.retry = Some(RetryPart { attempts: Some(2), first_pause_seconds: Some(5), longest_pause_seconds: Some(5) });
    fleet.movers.fail("copy", 9, full());
    let key = fleet.publish(&job).await;
    fleet.told(key, 1, "retrying").await;
    fleet.crash().await;
    fleet.start().await;
    fleet.failed(key).await;
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    let told: Vec<_> = story(&letter.events).into_iter().filter(|(_, event)| *event != "progress").collect();
    assert_eq!(told, [(0, "accepted"), (1, "retrying"), (2, "started"), (2, "failed")]);
    fleet.finish().await;
}

#[tokio::test]
async fn a_later_success_marks_the_letters_of_its_schedule_once_and_no_others() {
    let fleet = Fleet::with(&["web", "db"]).await;
    let mut dead = Vec::new();
    for (instance, schedule) in [
        ("web", Some("nightly")),
        ("web", Some("nightly")),
        ("web", Some("weekly")),
        ("web", None),
        ("db", Some("nightly")),
    ] {
        dead.push(dies(&fleet, &scheduled(&fleet, instance, schedule)).await);
    }
    let by = succeeds(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    until_marked(&fleet, &[(dead[0], by), (dead[1], by)]).await;
    let ids: Vec<_> = fleet.letter_ids();
    for mark in fleet.marks() {
        let of = RunKey { job_id: mark.job_id, run: mark.run };
        assert!(ids.contains(&(of, mark.letter_id.to_string())), "it names its letter: {mark:?} of {ids:?}");
    }
    // They are marked now, and another success says nothing more of them.
    let later = dies(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    let again = succeeds(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    until_marked(&fleet, &[(dead[0], by), (dead[1], by), (later, again)]).await;
    assert_eq!(fleet.letters().len(), 6, "the letters stay until somebody has looked");
    fleet.finish().await;
}

#[tokio::test]
async fn only_the_same_wish_is_the_same_without_a_schedule() {
    only_the_same_wish_is_the_same(None).await;
}

#[tokio::test]
async fn only_the_same_wish_is_the_same_with_a_schedule() {
    only_the_same_wish_is_the_same(Some("nightly")).await;
}

async fn only_the_same_wish_is_the_same(schedule: Option<&str>) {
    let fleet = Fleet::with(&["web"]).await;
    let mut other = scheduled(&fleet, "web", schedule);
    other.backup.as_mut().unwrap().mode = Some("full".to_owned());
    let dead = dies(&fleet, &other).await;
    let same = dies(&fleet, &scheduled(&fleet, "web", schedule)).await;
    let by = succeeds(&fleet, &scheduled(&fleet, "web", schedule)).await;
    until_marked(&fleet, &[(same, by)]).await;
    let by_other = succeeds(&fleet, &JobMessage { job_id: fleet.job("web").job_id, ..other }).await;
    until_marked(&fleet, &[(same, by), (dead, by_other)]).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_later_run_supersedes_the_letters_of_earlier_ones_once_it_has_ended_well_and_not_before() {
    let fleet = Fleet::with(&["web"]).await;
    let job = scheduled(&fleet, "web", Some("nightly"));
    let first = dies(&fleet, &job).await;
    // Asked for again with another wish, which is no success yet.
    let mut again = JobMessage { run: 2, ..job.clone() };
    again.backup.as_mut().unwrap().mode = Some("full".to_owned());
    let second = dies(&fleet, &again).await;
    // What goes out goes in the order in which it was written, and the letter is out.
    assert_eq!(marked(&fleet), [], "both letters may lie there still");
    let third = succeeds(&fleet, &JobMessage { run: 3, ..again }).await;
    until_marked(&fleet, &[(first, third), (second, third)]).await;
    succeeds(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    dies(&fleet, &scheduled(&fleet, "web", Some("weekly"))).await;
    assert_eq!(marked(&fleet).len(), 2, "nothing is marked twice");
    fleet.finish().await;
}

#[tokio::test]
async fn a_letter_that_was_written_while_the_successful_attempt_was_at_work_is_not_superseded() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let first = fleet.publish(&scheduled(&fleet, "web", Some("nightly"))).await;
    fleet.until_copying("web").await;
    // It waits for the instance until its moment has passed.
    let soon = jiff::Timestamp::now() + std::time::Duration::from_millis(300);
    let late = JobMessage { start_before: Some(soon.to_string()), ..scheduled(&fleet, "web", Some("nightly")) };
    let late = fleet.publish(&late).await;
    fleet.failed(late).await;
    fleet.movers.unhang("copy");
    fleet.completed(first).await;
    let by = succeeds(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    until_marked(&fleet, &[(late, by)]).await;
    fleet.finish().await;
}

#[tokio::test]
async fn the_mark_and_the_end_are_one_thing_for_a_worker_that_dies_right_after() {
    let mut fleet = Fleet::with(&["web"]).await;
    let dead = dies(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    let letter = fleet.letter_of(dead).unwrap();
    // Nobody takes marks for now.
    fleet.server.delete_queue(DEAD_QUEUE);
    let by = succeeds(&fleet, &scheduled(&fleet, "web", Some("nightly"))).await;
    fleet.crash().await;
    assert_eq!(fleet.server.depth(&jobs_queue(&fleet.host)).unwrap().ready, 0);
    // The next worker's client declares the queue of dead letters.
    fleet.start().await;
    until_marked(&fleet, &[(dead, by)]).await;
    // A letter that was lost with its queue is the broker's loss; what is looked for at the end is one for each failure.
    fleet.letterless += 1;
    assert_eq!(letter.run, Some(1));
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}
