//! A journal that cannot be written for a while, holds what nobody can read, or dies.

use jiff::Timestamp;
use longshore::broker::memory::Depth;
use longshore::broker::topology::jobs_queue;
use longshore::journal::{Draft, StoredMessage, Taken};
use longshore::message::Encoded;
use longshore::message::event::{HostDetail, RunDetail};
use longshore::model::job::JobKind;
use longshore::shutdown;
use longshore::worker::{self, WorkerError};
use tokio::time::timeout;

use crate::fleet::{Fleet, PATIENCE, encoded, key};

const NO_RUNS: &str = "CREATE TRIGGER broken BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'the test says so'); END";
const NO_RECORDS: &str =
    "CREATE TRIGGER broken BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'the test says so'); END";
const MENDED: &str = "DROP TRIGGER broken";

fn heartbeats(fleet: &Fleet) -> usize {
    fleet.events.of_host().iter().filter(|detail| matches!(detail, HostDetail::Heartbeat(_))).count()
}

/// Waits until the worker has had every chance to do what it should not do.
async fn heartbeats_pass(fleet: &Fleet) {
    let before = heartbeats(fleet);
    fleet.until("more heartbeats", |fleet| (heartbeats(fleet) >= before + 10).then_some(())).await;
}

/// The order of all: written down, then acknowledged, then done.
#[tokio::test]
async fn a_job_that_cannot_be_written_down_is_not_acknowledged_and_not_done() {
    let fleet = Fleet::with(&["web"]).await;
    heartbeats_pass(&fleet).await;
    fleet.in_journal(NO_RUNS).await;
    let key = fleet.publish(&fleet.job("web")).await;
    let queue = jobs_queue(&fleet.host);
    let held = Some(Depth { ready: 0, unacked: 1 });
    fleet.until("the delivery", |fleet| (fleet.server.depth(&queue) == held).then_some(())).await;
    heartbeats_pass(&fleet).await;
    assert_eq!(fleet.server.depth(&queue), held);
    assert_eq!(fleet.events.of_run(key), []);
    fleet.in_journal(MENDED).await;
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "completed")]);
    fleet.finish().await;
}

#[tokio::test]
async fn a_step_that_cannot_be_written_down_for_a_moment_costs_no_attempt() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let mut job = fleet.job("web");
    job.retry.as_mut().unwrap().attempts = Some(1);
    let key = fleet.publish(&job).await;
    fleet.until_copying("web").await;
    fleet.in_journal(NO_RECORDS).await;
    fleet.movers.unhang("copy");
    let copied = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
            HostDetail::Heartbeat(heartbeat) => heartbeat.running.into_iter().find(|job| job.done_bytes == 1 << 30),
            _ => None,
        })
    };
    fleet.until("all bytes", copied).await;
    heartbeats_pass(&fleet).await;
    fleet.in_journal(MENDED).await;
    fleet.completed(key).await;
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "completed")]);
    fleet.finish().await;
}

/// As after the return to an earlier version, which does not know a code that the later one wrote.
#[tokio::test]
async fn an_attempt_whose_records_cannot_be_read_ends_with_a_left_over_and_holds_up_nobody() {
    let mut fleet = Fleet::with(&["web", "db"]).await;
    // Before there is anything that stays behind.
    fleet.movers.hang("open");
    let cut_off = fleet.publish(&fleet.job("web")).await;
    fleet.until("the mover", |fleet| fleet.movers.running().first().cloned()).await;
    fleet.crash().await;
    fleet.movers.unhang("open");
    drop(fleet.journal().await);
    fleet.in_journal("UPDATE records SET record = '{\"record\":\"of_a_later_version\"}'").await;
    fleet.start().await;
    let RunDetail::Failed(failed) = fleet.end_of(cut_off).await else { panic!("it did not fail") };
    assert_eq!((failed.failure.code.as_str(), failed.attempts), ("internal", 1));
    assert_eq!(failed.left_overs.len(), 1, "{failed:?}");
    for instance in ["web", "db"] {
        let next = fleet.publish(&fleet.job(instance)).await;
        fleet.completed(next).await;
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_run_whose_message_cannot_be_read_fails_with_a_letter_and_one_that_cannot_itself_is_left_alone() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    let journal = fleet.journal().await;
    let jobs = [fleet.job("web"), fleet.job("web")];
    for job in &jobs {
        let Encoded { properties, body } = encoded(job);
        let taken = Taken {
            key: key(job),
            message: StoredMessage { properties: serde_json::to_value(&properties).unwrap(), body },
            kind: JobKind::Backup,
            instance: "web".to_owned(),
            repository_id: fleet.repository_id(crate::fleet::SHARE),
            urgent: false,
            accepted_at: Timestamp::now(),
            rows: Vec::new(),
        };
        journal.take(taken).await.unwrap();
    }
    journal.close().await;
    fleet.in_journal("UPDATE runs SET repository_id = 'scribble' WHERE id = 1").await;
    fleet.in_journal("UPDATE messages SET properties = '{' WHERE run_id = 2").await;
    fleet.start().await;
    assert_eq!(fleet.failed(key(&jobs[1])).await.code, "internal");
    fleet.until("the letter", |fleet| fleet.letter_of(key(&jobs[1]))).await;
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_whose_journal_dies_ends_and_the_next_one_goes_on() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let journal = fleet.journal().await;
    let (_switch, shutdown) = shutdown::switch();
    let worker = tokio::spawn(worker::run(fleet.parts(journal.clone()), shutdown));
    fleet.until("a heartbeat", |fleet| (heartbeats(fleet) > 0).then_some(())).await;
    // Rows are finished on the writer.
    let killed = journal.post(None, vec![Draft::new(|_| panic!("the test says so"))]).await;
    assert!(killed.is_err());
    let ended = timeout(PATIENCE, worker).await.expect("it goes on").unwrap();
    assert!(matches!(ended, Err(WorkerError::JournalDied)), "{ended:?}");
    drop(journal);
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}
