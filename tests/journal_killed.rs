//! A worker's journal under kill -9: what was answered as durable is there, and nothing is half there.
//!
//! This target brings its own `main`, since it starts itself as the process that is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use longshore::journal::{
    Admission, Draft, Journal, MessageKind, OutboxMessage, OutboxRow, Settlement, StoredMessage, Taken,
};
use longshore::model::id::{JobId, RepositoryId};
use longshore::model::job::{JobKind, RunKey};
use longshore::saga::Record;
use serde_json::json;

const NAME: &str = "what_was_answered_before_a_kill_is_there_after_it";
const CHILD_DIR: &str = "LONGSHORE_TEST_JOURNAL_DIR";
const ROUNDS: usize = 5;
/// Answers after which a child is killed.
const ANSWERS: usize = 300;
const CHILD_LIMIT: Duration = Duration::from_secs(60);
const WRITERS: usize = 8;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        runtime.block_on(hammer(Path::new(&dir)));
        return;
    }
    // As with other targets: names on the command line choose tests.
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|filter| NAME.contains(&filter)) {
        return;
    }
    runtime.block_on(what_was_answered_before_a_kill_is_there_after_it());
    println!("test {NAME} ... ok");
}

async fn what_was_answered_before_a_kill_is_there_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut answers = BTreeSet::new();
    for round in 0..ROUNDS {
        let new = killed_child(dir.path());
        assert!(new.len() >= ANSWERS, "round {round}: the child ended by itself after {} answers", new.len());
        answers.extend(new);
        let journal = Journal::open(dir.path()).await.unwrap();
        check(&journal, &answers).await;
        journal.close().await;
    }
}

/// Answers that a child heard and told us of before it was killed.
fn killed_child(dir: &Path) -> Vec<(String, RunKey)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts itself");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let begun = Instant::now();
    let mut answers = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let (what, key) = line.split_once(' ').unwrap();
        let (job_id, run) = key.split_once('/').unwrap();
        answers.push((what.to_owned(), RunKey { job_id: job_id.parse().unwrap(), run: run.parse().unwrap() }));
        if answers.len() == ANSWERS || begun.elapsed() > CHILD_LIMIT {
            // SIGKILL. What it has said until then is still read.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    answers
}

async fn check(journal: &Journal, answers: &BTreeSet<(String, RunKey)>) {
    let open: BTreeMap<_, _> = journal.open_runs().await.unwrap().into_iter().map(|run| (run.key, run)).collect();
    let outbox = whole_outbox(journal).await;
    let mut of_run: BTreeMap<RunKey, Vec<&str>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for row in &outbox {
        of_run.entry(row.run.unwrap()).or_default().push(row.message.routing_key.as_str());
        assert!(ids.insert(row.message.properties.to_string()), "an event id was given twice");
    }
    for (what, key) in answers {
        let rows = of_run.get(key).cloned().unwrap_or_default();
        match what.as_str() {
            "taken" => assert!(rows.contains(&"accepted"), "{key}: {rows:?}"),
            "started" => assert!(rows.contains(&"started"), "{key}: {rows:?}"),
            "recorded" => assert!(!journal.records_of(*key, 1).await.unwrap().is_empty(), "{key}: no record"),
            "settled" => assert!(!open.contains_key(key) && rows.contains(&"failed"), "{key}: {rows:?}"),
            other => panic!("the child said `{other}`"),
        }
    }
    // Also what was not answered is whole, or not there.
    for (key, rows) in &of_run {
        let count = |name| rows.iter().filter(|row| **row == name).count();
        assert_eq!(count("accepted"), 1, "{key}: {rows:?}");
        assert_eq!(count("failed"), count("letter"), "{key}: {rows:?}");
        assert_eq!(count("failed") == 0, open.contains_key(key), "{key}: {rows:?}");
        assert_eq!(journal.message(*key).await.unwrap().unwrap().body, key.to_string().into_bytes());
    }
    assert!(open.keys().all(|key| of_run.contains_key(key)));
}

async fn whole_outbox(journal: &Journal) -> Vec<OutboxRow> {
    let mut rows: Vec<OutboxRow> = Vec::new();
    loop {
        let more = journal.next_batch(rows.last().map_or(0, |row| row.id), 500).await.unwrap();
        if more.is_empty() {
            return rows;
        }
        rows.extend(more);
    }
}

/// The child: takes, starts, records and settles until it is killed, and says each answer.
async fn hammer(dir: &Path) {
    let journal = Journal::open(dir).await.unwrap();
    let writers = (0..WRITERS).map(|_| {
        let journal = journal.clone();
        tokio::spawn(async move {
            loop {
                one_run(&journal).await;
            }
        })
    });
    futures_util::future::join_all(writers.collect::<Vec<_>>()).await;
}

async fn one_run(journal: &Journal) {
    let key = RunKey { job_id: JobId::draw(), run: 1 };
    let say = |what: &str| println!("{what} {key}");
    let taken = Taken {
        key,
        message: StoredMessage { properties: json!({}), body: key.to_string().into_bytes() },
        kind: JobKind::Backup,
        instance: "web-01".into(),
        repository_id: RepositoryId::draw(),
        urgent: false,
        accepted_at: Timestamp::now(),
        rows: vec![row(MessageKind::State, "accepted")],
    };
    assert_eq!(journal.take(taken).await.unwrap(), Admission::New);
    say("taken");
    let attempt = journal.start_attempt(key, vec![row(MessageKind::State, "started")]).await.unwrap();
    say("started");
    journal.record(key, attempt, Record::Committing { step: "publish".into() }).await.unwrap();
    say("recorded");
    let settlement = Settlement::Ended { outcome: json!("failed"), at: Timestamp::now() };
    let rows = vec![row(MessageKind::Letter, "letter"), row(MessageKind::Final, "failed")];
    journal.settle(key, attempt, settlement, rows).await.unwrap();
    say("settled");
}

fn row(kind: MessageKind, name: &'static str) -> Draft {
    Draft::new(move |place| OutboxMessage {
        kind,
        exchange: "longshore.events".into(),
        routing_key: name.into(),
        properties: json!({ "message_id": place.event_id.to_string() }),
        body: Vec::new(),
    })
}
