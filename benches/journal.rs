//! How many runs a second the journal takes and settles durably, and how long one alone has to wait.
//!
//! `cargo bench --bench journal [folder]`: the folder decides which disk is measured.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use longshore::journal::{Draft, Journal, MessageKind, OutboxMessage, Settlement, StoredMessage, Taken};
use longshore::model::id::{JobId, RepositoryId};
use longshore::model::job::{JobKind, RunKey};
use serde_json::json;

const ALONE: usize = 2_000;
const TOGETHER: usize = 50_000;
const CALLERS: usize = 256;
const BODY_BYTES: usize = 512;

#[tokio::main]
async fn main() {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = given.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();

    let mut waits = Vec::with_capacity(ALONE);
    for _ in 0..ALONE {
        let key = RunKey { job_id: JobId::draw(), run: 1 };
        let begun = Instant::now();
        journal.take(taken(key)).await.unwrap();
        waits.push(begun.elapsed());
    }
    waits.sort();
    println!("| journal: one take alone, p50 and p99 | {:?}, {:?} | | | |", at(&waits, 50), at(&waits, 99));

    let begun = Instant::now();
    let callers = (0..CALLERS).map(|_| {
        let journal = journal.clone();
        tokio::spawn(async move {
            for _ in 0..TOGETHER / CALLERS {
                let key = RunKey { job_id: JobId::draw(), run: 1 };
                journal.take(taken(key)).await.unwrap();
                let ended = Settlement::Ended { outcome: json!("completed"), at: Timestamp::now() };
                journal.settle(key, 0, ended, vec![row(MessageKind::Final)]).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let pairs = (TOGETHER / CALLERS * CALLERS) as f64;
    let rate = pairs / begun.elapsed().as_secs_f64();
    println!("| journal: runs taken and settled by {CALLERS} callers | {rate:.0} /s | | | |");
    journal.close().await;
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}

fn taken(key: RunKey) -> Taken {
    Taken {
        key,
        message: StoredMessage { properties: json!({ "type": "longshore.job.v1" }), body: vec![b'x'; BODY_BYTES] },
        kind: JobKind::Backup,
        instance: "web-01".into(),
        repository_id: RepositoryId::draw(),
        urgent: false,
        accepted_at: Timestamp::now(),
        rows: vec![row(MessageKind::State)],
    }
}

fn row(kind: MessageKind) -> Draft {
    Draft::new(move |place| OutboxMessage {
        kind,
        exchange: "longshore.events".into(),
        routing_key: "backup.event.kvm-07".into(),
        properties: json!({ "message_id": place.event_id.to_string() }),
        body: vec![b'x'; BODY_BYTES],
    })
}
