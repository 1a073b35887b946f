//! The journal on a real file: what is taken, what is refused, what is there after it was opened again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::model::id::{JobId, RepositoryId};
use crate::model::job::JobKind;

async fn journal() -> (TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    (dir, journal)
}

async fn reopened(dir: &TempDir, journal: Journal) -> Journal {
    journal.close().await;
    Journal::open(dir.path()).await.unwrap()
}

#[tokio::test]
async fn who_looks_sees_what_is_there_and_keeps_nobody_from_working() {
    let nothing = tempfile::tempdir().unwrap();
    let missing = JournalLook::open(nothing.path()).await.err().expect("there is none");
    assert!(matches!(missing, JournalError::File { action: "find", .. }));
    assert_eq!(std::fs::read_dir(nothing.path()).unwrap().count(), 0, "a look makes none");

    let (dir, journal) = journal().await;
    let [open, done] = [key(1), key(2)];
    for key in [open, done] {
        journal.take(taken(key, "body")).await.unwrap();
        journal.start_attempt(key, vec![]).await.unwrap();
    }
    let mut look = JournalLook::open(dir.path()).await.unwrap();
    assert_eq!(look.installation(), journal.installation());
    let keys = |runs: Vec<SeenRun>| runs.iter().map(|seen| seen.run.key).collect::<Vec<_>>();
    assert_eq!(keys(look.runs(false, 10).await.unwrap()), [open, done]);
    // Written while it looks.
    let ended = Settlement::Ended { outcome: json!("completed"), at: now() };
    journal.settle(done, 1, ended, vec![]).await.unwrap();
    journal.keep(open, "backup_id", json!("x")).await.unwrap();
    assert_eq!(keys(look.runs(false, 10).await.unwrap()), [open]);
    assert_eq!(keys(look.runs(true, 1).await.unwrap()), [done], "the last one");
    let seen = look.run(done.job_id, Some(done.run)).await.unwrap().unwrap();
    assert_eq!((seen.run.state, seen.ended_at), (RunState::Ended { outcome: json!("completed") }, Some(now())));
    assert_eq!(look.run(done.job_id, None).await.unwrap().map(|seen| seen.run.key), Some(done), "its latest");
    assert_eq!(look.kept(open).await.unwrap()["backup_id"], "x");
    assert!(look.run(key(1).job_id, None).await.unwrap().is_none());
    assert!(look.message(open).await.unwrap().is_some());
    journal.close().await;
    // And after the worker's end.
    assert_eq!(keys(JournalLook::open(dir.path()).await.unwrap().runs(false, 10).await.unwrap()), [open]);
}

fn now() -> Timestamp {
    Timestamp::from_second(1_750_000_000).unwrap()
}

fn key(run: u32) -> RunKey {
    RunKey { job_id: JobId::draw(), run }
}

/// A row whose body says where it stands.
fn row(kind: MessageKind, name: &'static str) -> Draft {
    Draft::new(move |place| OutboxMessage {
        kind,
        exchange: "longshore.events".into(),
        routing_key: format!("backup.{name}.kvm-07"),
        properties: json!({ "message_id": place.event_id.to_string() }),
        body: format!("{name} {}.{}", place.attempt, place.sequence).into_bytes(),
    })
}

fn taken(key: RunKey, body: &str) -> Taken {
    Taken {
        key,
        message: StoredMessage { properties: json!({ "content_type": "application/json" }), body: body.into() },
        kind: JobKind::Backup,
        instance: "web-01".into(),
        repository_id: RepositoryId::draw(),
        urgent: false,
        accepted_at: now(),
        rows: vec![row(MessageKind::State, "accepted")],
    }
}

fn ended(outcome: &str) -> Settlement {
    Settlement::Ended { outcome: json!(outcome), at: now() }
}

async fn texts(journal: &Journal) -> Vec<String> {
    let rows = journal.next_batch(0, 1000).await.unwrap();
    rows.into_iter().map(|row| String::from_utf8(row.message.body).unwrap()).collect()
}

#[tokio::test]
async fn a_taken_run_is_there_with_its_message_after_a_reopening() {
    let (dir, journal) = journal().await;
    let key = key(1);
    let request = taken(key, "the body");
    let repository_id = request.repository_id;
    assert_eq!(journal.take(request).await.unwrap(), Admission::New);
    let installation = journal.installation();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.installation(), installation);
    let open = journal.open_runs().await.unwrap();
    let expected = OpenRun {
        key,
        kind: JobKind::Backup,
        instance: "web-01".into(),
        repository_id,
        urgent: false,
        accepted_at: now(),
        state: RunState::Waiting { not_before: None, held: false },
        attempt: 0,
        failures: 0,
        crashes: 0,
        cancelled: None,
    };
    assert_eq!(open, [expected]);
    assert_eq!(journal.message(key).await.unwrap().unwrap().body, b"the body");
    assert_eq!(texts(&journal).await, ["accepted 0.1"]);
}

#[tokio::test]
async fn the_same_run_again_is_a_duplicate_and_with_another_body_refused() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    let state = RunState::Waiting { not_before: None, held: false };
    assert_eq!(journal.take(taken(key, "a")).await.unwrap(), Admission::Duplicate { state });
    assert_eq!(journal.take(taken(key, "b")).await.unwrap(), Admission::BodyDiffers);
    assert_eq!(texts(&journal).await.len(), 1, "nothing is accepted twice");
}

#[tokio::test]
async fn a_run_lower_than_one_known_is_refused_and_a_higher_one_taken() {
    let (_dir, journal) = journal().await;
    let second = key(2);
    journal.take(taken(second, "a")).await.unwrap();
    assert_eq!(
        journal.take(taken(RunKey { run: 1, ..second }, "a")).await.unwrap(),
        Admission::Superseded { known_run: 2 }
    );
    assert_eq!(journal.take(taken(RunKey { run: 3, ..second }, "a")).await.unwrap(), Admission::New);
    let state = RunState::Waiting { not_before: None, held: false };
    assert_eq!(journal.take(taken(second, "a")).await.unwrap(), Admission::Duplicate { state });
}

#[tokio::test]
async fn many_deliveries_of_one_run_at_once_start_it_once() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    let all = (0..50).map(|_| journal.take(taken(key, "a")));
    let admissions = futures_util::future::try_join_all(all).await.unwrap();
    assert_eq!(admissions.iter().filter(|admission| **admission == Admission::New).count(), 1);
    assert_eq!(texts(&journal).await, ["accepted 0.1"]);
}

#[tokio::test]
async fn a_run_that_was_cancelled_before_it_came_is_taken_as_cancelled() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.tombstone(key, now(), json!("not needed")).await.unwrap();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.take(taken(key, "a")).await.unwrap(), Admission::Tombstoned { reason: json!("not needed") });
    assert_eq!(journal.open_runs().await.unwrap().first().unwrap().cancelled, Some(json!("not needed")));
    journal.settle(key, 0, ended("cancelled"), vec![row(MessageKind::Final, "cancelled")]).await.unwrap();
    assert_eq!(texts(&journal).await, ["accepted 0.1", "cancelled 0.2"]);
}

#[tokio::test]
async fn sequence_numbers_begin_again_with_each_attempt_and_letters_take_none() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    assert_eq!(journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap(), 1);
    let waiting = Settlement::Waiting { not_before: Some(now()), counted: Counted::Failure };
    journal.settle(key, 1, waiting, vec![row(MessageKind::State, "retrying")]).await.unwrap();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap(), 2);
    let last = vec![row(MessageKind::Letter, "letter"), row(MessageKind::Final, "failed")];
    journal.settle(key, 2, ended("failed"), last).await.unwrap();
    let expected = ["accepted 0.1", "started 1.1", "retrying 1.2", "started 2.1", "letter 2.2", "failed 2.2"];
    assert_eq!(texts(&journal).await, expected);
}

#[tokio::test]
async fn an_unsent_message_keeps_its_id_over_every_reading() {
    let (dir, journal) = journal().await;
    journal.take(taken(key(1), "a")).await.unwrap();
    let before = journal.next_batch(0, 10).await.unwrap();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.next_batch(0, 10).await.unwrap(), before);
    journal.delivered(before.iter().map(|row| row.id).collect()).await.unwrap();
    assert_eq!(journal.outbox_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_duplicate_has_the_last_state_announced_again_by_the_same_event() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap();
    journal.settle(key, 1, ended("completed"), vec![row(MessageKind::Final, "completed")]).await.unwrap();
    let sent = journal.next_batch(0, 10).await.unwrap();
    let last = sent.last().unwrap();
    journal.delivered(sent.iter().map(|row| row.id).collect()).await.unwrap();
    let outcome = json!("completed");
    let expected = Admission::Duplicate { state: RunState::Ended { outcome } };
    assert_eq!(journal.take(taken(key, "a")).await.unwrap(), expected);
    let again = journal.next_batch(last.id, 10).await.unwrap();
    assert_eq!(again.iter().map(|row| &row.message).collect::<Vec<_>>(), [&last.message]);
}

#[tokio::test]
async fn a_run_ends_once_and_only_its_last_attempt_is_written_to() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    let record = || Record::Committing { step: "publish".into() };
    assert_eq!(journal.record(key, 1, record()).await.unwrap_err().code, Code::Internal, "never taken");
    journal.take(taken(key, "a")).await.unwrap();
    assert_eq!(journal.record(key, 0, record()).await.unwrap_err().code, Code::Internal, "not started");
    journal.start_attempt(key, vec![]).await.unwrap();
    assert!(journal.start_attempt(key, vec![]).await.is_err(), "one attempt at a time");
    let again = Settlement::Waiting { not_before: None, counted: Counted::Nothing };
    journal.settle(key, 1, again.clone(), vec![]).await.unwrap();
    journal.start_attempt(key, vec![]).await.unwrap();
    assert!(journal.record(key, 1, record()).await.is_err(), "an earlier attempt");
    assert!(journal.settle(key, 1, again.clone(), vec![]).await.is_err(), "an earlier attempt");
    journal.settle(key, 2, ended("completed"), vec![row(MessageKind::Final, "completed")]).await.unwrap();
    let second = journal.settle(key, 2, ended("failed"), vec![row(MessageKind::Final, "failed")]).await;
    assert!(second.is_err());
    assert!(journal.start_attempt(key, vec![]).await.is_err());
    assert_eq!(texts(&journal).await, ["accepted 0.1", "completed 2.1"]);
    assert_eq!(journal.open_runs().await.unwrap(), []);
}

#[tokio::test]
async fn failures_crashes_and_orderly_stops_are_counted_apart() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    for counted in [Counted::Failure, Counted::Nothing, Counted::Nothing, Counted::Failure] {
        let attempt = journal.start_attempt(key, vec![]).await.unwrap();
        if attempt == 2 {
            // Twice: the unwinding was cut off as well.
            assert_eq!(journal.cut_off(key, attempt).await.unwrap(), 1);
            assert_eq!(journal.cut_off(key, attempt).await.unwrap(), 2);
        }
        journal.settle(key, attempt, Settlement::Waiting { not_before: None, counted }, vec![]).await.unwrap();
    }
    let open = journal.open_runs().await.unwrap();
    let run = open.first().unwrap();
    assert_eq!((run.attempt, run.failures, run.crashes), (4, 2, 2));
    assert!(journal.cut_off(key, 4).await.is_err(), "not running");
}

#[tokio::test]
async fn only_the_latest_progress_of_a_run_waits_in_the_outbox() {
    let (_dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap();
    for _ in 0..20 {
        journal.progress(key, 1, row(MessageKind::Progress, "progress"));
    }
    journal.settle(key, 1, ended("completed"), vec![row(MessageKind::Final, "completed")]).await.unwrap();
    journal.progress(key, 1, row(MessageKind::Progress, "late"));
    journal.post(None, vec![row(MessageKind::Host, "beat")]).await.unwrap();
    assert_eq!(texts(&journal).await, ["accepted 0.1", "started 1.1", "progress 1.21", "completed 1.22", "beat 0.0"]);
}

#[tokio::test]
async fn a_record_is_read_back_in_order_for_its_attempt_alone() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    let records = |name: &str| {
        let step = name.to_owned();
        [Record::Committing { step }, Record::Committed { value: json!({ "backup": name }) }]
    };
    for name in ["first", "second"] {
        let attempt = journal.start_attempt(key, vec![]).await.unwrap();
        for record in records(name) {
            journal.record(key, attempt, record).await.unwrap();
        }
        let again = Settlement::Waiting { not_before: None, counted: Counted::Failure };
        journal.settle(key, attempt, again, vec![]).await.unwrap();
    }
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.records_of(key, 1).await.unwrap(), records("first"));
    assert_eq!(journal.records_of(key, 2).await.unwrap(), records("second"));
}

#[tokio::test]
async fn what_is_drawn_once_per_run_stays_what_it_was() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    let both = tokio::join!(journal.keep(key, "backup", json!("x")), journal.keep(key, "backup", json!("y")));
    assert_eq!((both.0.unwrap(), both.1.unwrap()), (json!("x"), json!("x")));
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.keep(key, "backup", json!("z")).await.unwrap(), json!("x"));
    assert_eq!(journal.kept(key).await.unwrap(), BTreeMap::from([("backup".to_owned(), json!("x"))]));
}

#[tokio::test]
async fn pruning_keeps_the_key_and_whatever_was_not_sent() {
    let (_dir, journal) = journal().await;
    let (sent, unsent) = (key(1), key(1));
    for key in [sent, unsent] {
        journal.take(taken(key, "a")).await.unwrap();
        journal.settle(key, 0, ended("cancelled"), vec![row(MessageKind::Final, "cancelled")]).await.unwrap();
    }
    let rows = journal.next_batch(0, 10).await.unwrap();
    let of_sent = rows.iter().filter(|row| row.run == Some(sent)).map(|row| row.id).collect();
    journal.delivered(of_sent).await.unwrap();
    let keep = Keep { rows: Duration::from_secs(60), keys: Duration::from_secs(600) };
    let after = |seconds| now() + SignedDuration::from_secs(seconds);
    assert_eq!(journal.prune(after(59), keep).await.unwrap(), Pruned::default());
    assert_eq!(journal.prune(after(61), keep).await.unwrap(), Pruned { runs: 1, keys: 0, tombstones: 0 });
    assert_eq!(journal.message(sent).await.unwrap(), None);
    assert!(journal.message(unsent).await.unwrap().is_some());
    assert!(matches!(journal.take(taken(sent, "a")).await.unwrap(), Admission::Duplicate { .. }));
    assert_eq!(journal.prune(after(700), keep).await.unwrap().keys, 1);
    assert_eq!(journal.take(taken(sent, "a")).await.unwrap(), Admission::New);
}

#[tokio::test]
async fn a_cancellation_is_remembered_for_as_long_as_its_run_is_open() {
    let (_dir, journal) = journal().await;
    let (open, absent) = (key(1), key(1));
    journal.take(taken(open, "a")).await.unwrap();
    for key in [open, absent] {
        journal.tombstone(key, now(), json!("not needed")).await.unwrap();
    }
    let after = now() + SignedDuration::from_secs(1);
    assert_eq!(journal.prune(after, Keep::default()).await.unwrap().tombstones, 1);
    assert_eq!(journal.cancellation(open).await.unwrap(), Some(json!("not needed")));
    assert_eq!(journal.cancellation(absent).await.unwrap(), None);
    journal.settle(open, 0, ended("cancelled"), Vec::new()).await.unwrap();
    assert_eq!(journal.prune(after, Keep::default()).await.unwrap().tombstones, 1);
}

fn letter_of(subject: &str) -> LettersAtEnd {
    LettersAtEnd { written: Some(subject.to_owned()), superseded: Vec::new() }
}

async fn dies(journal: &Journal, key: RunKey, subject: &str, at: Timestamp) {
    journal.take(taken(key, "body")).await.unwrap();
    let settlement = Settlement::Ended { outcome: json!("failed"), at };
    journal
        .settle_with(key, 0, settlement, vec![row(MessageKind::Letter, "letter")], letter_of(subject))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_letter_is_known_by_its_subject_and_its_job_until_it_is_superseded_or_pruned() {
    let (dir, journal) = journal().await;
    let [first, second, again, other, last] = [key(1), key(1), key(1), key(1), key(1)];
    let after = |seconds| now() + Duration::from_secs(seconds);
    for (key, subject, at) in [
        (first, "web", now()),
        (second, "web", after(1)),
        (again, "web", after(2)),
        (other, "db", now()),
        (last, "web", after(3)),
    ] {
        dies(&journal, key, subject, at).await;
    }
    let journal = reopened(&dir, journal).await;
    let success = key(1);
    let of = async |journal: &Journal, subject: &str, by, before, limit| {
        let letters = journal.letters_of(subject, by, before, limit).await.unwrap();
        letters.into_iter().map(|letter| letter.key).collect::<Vec<_>>()
    };
    assert_eq!(of(&journal, "web", success, after(3), 2).await, [first, second], "the oldest, of those before");
    // Each by the id that its message has.
    let sent: Vec<_> = journal.next_batch(0, 99).await.unwrap().into_iter().map(|row| row.message).collect();
    let ids: Vec<_> = sent.iter().filter(|message| message.kind == MessageKind::Letter).collect();
    let letters = journal.letters_of("web", success, after(3), 2).await.unwrap();
    let id = |letter: &WrittenLetter| json!({ "message_id": letter.letter_id.to_string() });
    assert_eq!(letters.iter().map(id).collect::<Vec<_>>(), [ids[0].properties.clone(), ids[1].properties.clone()]);
    // That it was asked for again does not say that its letter has gone; its success does away with both letters of the job.
    let [second_run, third_run] = [2, 3].map(|run| RunKey { run, ..again });
    dies(&journal, second_run, "web with other disks", after(3)).await;
    assert_eq!(of(&journal, "web", success, after(3), 9).await, [first, second, again]);
    assert_eq!(of(&journal, "web still otherwise", third_run, after(9), 9).await, [again, second_run]);
    assert_eq!(of(&journal, "web still otherwise", second_run, after(9), 9).await, [again], "not its own");
    journal.take(taken(success, "body")).await.unwrap();
    let superseded = LettersAtEnd { written: None, superseded: vec![first, again] };
    journal.settle_with(success, 0, ended("completed"), vec![], superseded).await.unwrap();
    assert_eq!(of(&journal, "web", success, after(9), 9).await, [second, last]);
    assert_eq!(of(&journal, "", third_run, after(9), 9).await, [second_run], "another run of it");
    journal.prune(after(10), Keep { rows: Duration::from_secs(8), keys: Duration::from_secs(8) }).await.unwrap();
    assert_eq!(of(&journal, "web", success, after(9), 9).await, [last]);
    assert_eq!(of(&journal, "db", success, after(9), 9).await, []);
}

#[tokio::test]
async fn a_journal_of_before_there_were_letters_in_it_gets_room_for_them() {
    let (dir, journal) = journal().await;
    journal.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join(open::DATABASE));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql("DROP TABLE letters").execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    let key = key(1);
    dies(&journal, key, "web", now()).await;
    let letters = journal.letters_of("web", key, now() + Duration::from_secs(1), 9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.key).collect::<Vec<_>>(), [key]);
}

#[tokio::test]
async fn what_an_open_run_told_can_be_read_until_it_ends() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "body")).await.unwrap();
    journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap();
    let ids = journal.next_batch(0, 9).await.unwrap().iter().map(|row| row.id).collect();
    journal.delivered(ids).await.unwrap();
    journal.progress(key, 1, row(MessageKind::Progress, "progress"));
    let told = async |journal: &Journal, limit| {
        let told = journal.told(key, limit).await.unwrap();
        told.into_iter().map(|message| String::from_utf8(message.body).unwrap()).collect::<Vec<_>>()
    };
    let journal = reopened(&dir, journal).await;
    assert_eq!(told(&journal, 9).await, ["accepted 0.1", "started 1.1", "progress 1.2"]);
    assert_eq!(told(&journal, 2).await, ["started 1.1", "progress 1.2"], "the last ones");
}
