//! The worker dies without a word. The next one finds the journal, the host and the share as they are.

use jiff::{SignedDuration, Timestamp};
use longshore::host::hypervisor::Hypervisor;
use longshore::journal::{Admission, Journal, StoredMessage, Taken};
use longshore::message::event::RunDetail;
use longshore::message::{Encoded, JobMessage};
use longshore::model::job::{JobKind, RunKey};
use longshore::worker::settle::INTERRUPTIONS_MAX;
use longshore::worker::{self, Parts, Unwound, UnwoundEnd};
use serde_json::json;

use crate::fleet::{Fleet, SHARE, encoded, key};

const INTERRUPTED: [(u32, &str); 5] =
    [(0, "accepted"), (1, "started"), (1, "retrying"), (2, "started"), (2, "completed")];

/// A backup of `web` whose worker died while the bytes were on their way.
async fn cut_off_while_copying() -> (Fleet, RunKey) {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.crash().await;
    fleet.movers.unhang("copy");
    (fleet, key)
}

#[tokio::test]
async fn a_crash_while_copying_is_unwound_told_and_made_good() {
    let (mut fleet, key) = cut_off_while_copying().await;
    fleet.start().await;
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert_eq!(retrying.failure.code, "interrupted");
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), INTERRUPTED);
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}

/// Without a worker, and with the next one's start still to come.
#[tokio::test]
async fn what_a_crash_cut_off_can_be_taken_back_before_there_is_another_worker() {
    let mut fleet = Fleet::with(&["web", "db"]).await;
    fleet.movers.hang("copy");
    let keys = [fleet.publish(&fleet.job("web")).await, fleet.publish(&fleet.job("db")).await];
    for name in ["web", "db"] {
        fleet.until_copying(name).await;
    }
    fleet.crash().await;
    fleet.movers.unhang("copy");
    for (only, taken_back) in [(Some(keys[1].job_id), vec![keys[1]]), (None, vec![keys[0]]), (None, vec![])] {
        let journal = fleet.journal().await;
        let Parts { settings, work, journal, hypervisor, .. } = fleet.parts(journal);
        let unwound = worker::unwind(settings, journal.clone(), work, hypervisor, only).await.unwrap();
        journal.close().await;
        let whole = |run: &Unwound| matches!(run.end, Ok(UnwoundEnd::Waits)) && run.left_overs.is_empty();
        assert!(unwound.iter().all(whole), "{unwound:?}");
        assert_eq!(unwound.iter().map(|run| run.key).collect::<Vec<_>>(), taken_back);
    }
    fleet.start().await;
    for key in keys {
        fleet.completed(key).await;
        assert_eq!(fleet.events.story(key), INTERRUPTED);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_run_of_a_host_that_has_another_name_now_is_left_as_it_is() {
    let (mut fleet, key) = cut_off_while_copying().await;
    let journal = fleet.journal().await;
    let Parts { settings, work, journal, hypervisor, .. } = fleet.parts(journal);
    let settings = longshore::worker::Settings { host: "kvm-08".parse().unwrap(), ..settings };
    let unwound = worker::unwind(settings, journal.clone(), work, hypervisor, None).await.unwrap();
    journal.close().await;
    assert!(
        matches!(&unwound[..], [Unwound { end: Err(failure), .. }] if failure.text.contains("kvm-08")),
        "{unwound:?}"
    );
    fleet.start().await;
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), INTERRUPTED);
    fleet.finish().await;
}

#[tokio::test]
async fn a_crash_while_the_guest_is_frozen_leaves_it_to_the_guard() {
    let mut fleet = Fleet::with(&["web"]).await;
    let web = fleet.id_of("web");
    fleet.hypervisor.hang("begin_pull");
    let mut job = fleet.job("web");
    job.backup.as_mut().unwrap().quiesce = Some("require".to_owned());
    fleet.publish(&job).await;
    fleet.until("the freeze", |fleet| fleet.hypervisor.frozen(web).then_some(())).await;
    fleet.crash().await;
    fleet.hypervisor.let_go("begin_pull");
    fleet.until("the thaw", |fleet| fleet.hypervisor.guest_can_write(web).then_some(())).await;
    fleet.start().await;
    fleet.completed(key(&job)).await;
    assert_eq!(fleet.events.story(key(&job)), INTERRUPTED);
    assert_eq!(fleet.hypervisor.latest_moment_was_frozen(web), Some(true));
    fleet.finish().await;
}

#[tokio::test]
async fn a_crash_right_after_the_commit_completes_the_attempt_that_it_hit() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("release");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until("the commit", |fleet| fleet.movers.published(SHARE).first().cloned()).await;
    fleet.crash().await;
    fleet.movers.unhang("release");
    fleet.start().await;
    let RunDetail::Completed(completed) = fleet.end_of(key).await else { panic!() };
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "completed")]);
    let published = fleet.movers.published(SHARE);
    assert_eq!(
        published.iter().map(|manifest| manifest.backup_id).collect::<Vec<_>>(),
        [completed.backup.unwrap().backup_id]
    );
    fleet.finish().await;
}

#[tokio::test]
async fn a_crash_after_the_commit_leaves_no_checkpoint_of_an_earlier_backup() {
    let mut fleet = Fleet::with(&["web"]).await;
    let web = fleet.id_of("web");
    let first = fleet.publish(&fleet.job("web")).await;
    fleet.completed(first).await;
    let kept = fleet.hypervisor.checkpoints(web).await.unwrap();
    fleet.hypervisor.hang("delete_checkpoint");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until("the commit", |fleet| (fleet.movers.published(SHARE).len() == 2).then_some(())).await;
    fleet.crash().await;
    assert_eq!(fleet.hypervisor.checkpoints(web).await.unwrap().len(), 2);
    fleet.hypervisor.let_go("delete_checkpoint");
    fleet.start().await;
    fleet.completed(key).await;
    let now = fleet.hypervisor.checkpoints(web).await.unwrap();
    assert!(now.len() == 1 && now != kept, "{now:?}, and before it {kept:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_that_no_worker_survives_is_given_up() {
    let mut fleet = Fleet::with(&["web", "db"]).await;
    fleet.movers.hang("copy");
    let key = fleet.publish(&fleet.job("web")).await;
    for attempt in 1..=INTERRUPTIONS_MAX {
        fleet.told(key, attempt, "started").await;
        fleet.until_copying("web").await;
        fleet.crash().await;
        fleet.start().await;
    }
    let RunDetail::Failed(failed) = fleet.end_of(key).await else { panic!() };
    assert_eq!((failed.failure.code.as_str(), failed.attempts), ("crash_loop", INTERRUPTIONS_MAX));
    fleet.movers.unhang("copy");
    let next = fleet.publish(&fleet.job("db")).await;
    fleet.completed(next).await;
    fleet.finish().await;
}

/// Crashes at moments that nobody chose: whatever had been written, each run has one end and one backup.
#[tokio::test]
async fn jobs_under_a_worker_that_dies_again_and_again_are_each_done_once() {
    const INSTANCES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let mut fleet = Fleet::with(&INSTANCES).await;
    let jobs: Vec<_> = INSTANCES.iter().map(|name| fleet.job(name)).collect();
    for (number, job) in jobs.iter().enumerate() {
        let message = encoded(job);
        fleet.publish_raw(message.properties, message.body).await;
        // After so many events, that is at another place of the work each time.
        let before = fleet.events.all().len();
        fleet.until("some events", |fleet| (fleet.events.all().len() > before + number).then_some(())).await;
        fleet.crash().await;
        fleet.start().await;
    }
    for job in &jobs {
        fleet.completed(key(job)).await;
    }
    assert_eq!(fleet.movers.published(SHARE).len(), INSTANCES.len());
    fleet.finish().await;
}

async fn cancel(journal: &Journal, job: &JobMessage) {
    let until = Timestamp::now() + SignedDuration::from_hours(1);
    let reason = json!({ "requested_by": "an operator", "reason": "wrong instance" });
    journal.tombstone(key(job), until, reason).await.unwrap();
}

async fn assert_cancelled(fleet: &Fleet, job: &JobMessage) {
    let RunDetail::Cancelled(cancelled) = fleet.end_of(key(job)).await else { panic!() };
    assert_eq!(cancelled.requested_by.as_deref(), Some("an operator"));
    let story = fleet.events.story(key(job));
    assert!(story.ends_with(&[(0, "cancelled")]) && !story.iter().any(|(_, word)| *word == "started"), "{story:?}");
    assert_eq!(fleet.movers.published(SHARE), []);
}

#[tokio::test]
async fn a_run_that_was_cancelled_before_it_came_is_told_and_not_started() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let job = fleet.job("web");
    let journal = fleet.journal().await;
    cancel(&journal, &job).await;
    journal.close().await;
    fleet.start().await;
    fleet.publish(&job).await;
    assert_cancelled(&fleet, &job).await;
    fleet.finish().await;
}

/// The worker died after it had taken the run and before it had settled it.
#[tokio::test]
async fn a_cancelled_run_that_a_crash_left_open_is_not_started_by_the_next_worker() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let job = fleet.job("web");
    let Encoded { properties, body } = encoded(&job);
    let journal = fleet.journal().await;
    cancel(&journal, &job).await;
    let taken = Taken {
        key: key(&job),
        message: StoredMessage { properties: serde_json::to_value(&properties).unwrap(), body },
        kind: JobKind::Backup,
        instance: "web".to_owned(),
        repository_id: fleet.repository_id(SHARE),
        urgent: false,
        accepted_at: Timestamp::now(),
        rows: Vec::new(),
    };
    assert!(matches!(journal.take(taken).await.unwrap(), Admission::Tombstoned { .. }));
    journal.close().await;
    fleet.start().await;
    assert_cancelled(&fleet, &job).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_running_job_that_was_cancelled_before_its_worker_died_is_unwound_and_not_tried_again() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let job = fleet.job("web");
    let key = fleet.publish(&job).await;
    fleet.until_copying("web").await;
    fleet.crash().await;
    fleet.movers.unhang("copy");
    let journal = fleet.journal().await;
    cancel(&journal, &job).await;
    journal.close().await;
    fleet.start().await;
    let RunDetail::Cancelled(cancelled) = fleet.end_of(key).await else { panic!("it was not cancelled") };
    assert_eq!(cancelled.reason.as_deref(), Some("wrong instance"));
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "cancelled")]);
    assert_eq!(fleet.movers.published(SHARE), []);
    fleet.finish().await;
}
