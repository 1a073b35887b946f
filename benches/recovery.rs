//! How long a worker that follows a killed one takes until a new job's work begins: the journal has a thousand runs that have ended and
//! twenty that have not, ten of them cut off amid their work. Beside it the same on an empty journal.
//!
//! `cargo bench --bench recovery [folder]`, with `LONGSHORE_BENCH_ROUNDS` (default 5): the folder decides on which disk the journal is.
//! What is unwound does nothing, so that the figure is the worker's own; the broker is in memory.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "fleet/jobs.rs"]
mod jobs;
#[path = "fleet/spread.rs"]
mod spread;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore::broker::Outgoing;
use longshore::broker::memory::{MemoryServer, MemorySettings};
use longshore::broker::topology::{JOBS_EXCHANGE, jobs_key, jobs_queue};
use longshore::failure::{Failure, RbdRemains};
use longshore::host::hypervisor::fake::FakeHypervisor;
use longshore::job::{Attempt, JobProgress};
use longshore::journal::{Journal, JournalError, Keep};
use longshore::message::Encoded;
use longshore::model::id::HostId;
use longshore::saga::{End, Outcome, Record, Stop};
use longshore::shutdown::switch;
use longshore::supervisor::Supervisor;
use longshore::worker::admit::Slots;
use longshore::worker::work::{AttemptRecord, Work};
use longshore::worker::{Parts, Settings};
use serde_json::Value;
use spread::Spread;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Runs that have ended, and that have not; of those, that were at work.
const ENDED: usize = 1000;
const OPEN: usize = 20;
const CUT_OFF: usize = 10;
/// What each writes down, as many as a backup does.
const RECORDS: usize = 30;
/// Rounds, where the environment doesn't say.
const ROUNDS: usize = 5;
/// Longest time for anything.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let rounds = std::env::var("LONGSHORE_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = given.map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut full, mut empty) = (Spread::default(), Spread::default());
    for _ in 0..rounds {
        for (spread, ended, open) in [(&mut full, ENDED, OPEN), (&mut empty, 0, 0)] {
            let folder = tempfile::tempdir_in(&parent).unwrap();
            spread.add(runtime.block_on(recovery(folder.path(), ended, open)).as_secs_f64() * 1e3);
        }
    }
    let (full, empty, ratio) = (full.show("ms"), empty.show("ms"), full.median() / empty.median());
    println!(
        "| start to a new job's work, {ENDED} ended and {OPEN} open runs | {full} | empty journal {empty} | {ratio:.2} | ≤ 1000 ms |"
    );
}

/// From before the journal is opened until the work of a job begins that the dead worker never saw.
async fn recovery(folder: &Path, ended: usize, open: usize) -> Duration {
    let host: HostId = "bench".parse().unwrap();
    let server = MemoryServer::new();
    server.enrol(&host);
    let (begun, mut heard) = mpsc::unbounded_channel();
    let worker = tokio::spawn(work_on(folder.to_owned(), server.clone(), host.clone(), Steps { begun, stands: false }));
    publish(&server, &host, ended).await;
    for _ in 0..ended {
        next(&mut heard).await;
    }
    stop(worker).await;
    let (begun, mut heard) = mpsc::unbounded_channel();
    let worker = tokio::spawn(work_on(folder.to_owned(), server.clone(), host.clone(), Steps { begun, stands: true }));
    publish(&server, &host, open).await;
    for _ in 0..open.min(CUT_OFF) {
        next(&mut heard).await;
    }
    while server.depth(&jobs_queue(&host)) != Some(Default::default()) {
        tokio::task::yield_now().await;
    }
    stop(worker).await;

    let new = publish(&server, &host, 1).await.remove(0);
    let (begun, mut heard) = mpsc::unbounded_channel();
    let from = Instant::now();
    let worker = tokio::spawn(work_on(folder.to_owned(), server.clone(), host.clone(), Steps { begun, stands: false }));
    while next(&mut heard).await != new {}
    let took = from.elapsed();
    stop(worker).await;
    took
}

/// As kill -9 does.
async fn stop(worker: tokio::task::JoinHandle<()>) {
    worker.abort();
    assert!(worker.await.is_err_and(|error| error.is_cancelled()), "the worker had ended before");
}

async fn next(heard: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(PATIENCE, heard.recv()).await.unwrap().unwrap()
}

/// Job ids of so many new jobs.
async fn publish(server: &MemoryServer, host: &HostId, count: usize) -> Vec<String> {
    let broker = server.client(MemorySettings::default());
    let messages = jobs::messages(host, count);
    let ids = messages.iter().filter_map(|message| message.properties.correlation_id.clone()).collect();
    for Encoded { properties, body } in messages {
        let outgoing = Outgoing { exchange: JOBS_EXCHANGE, routing_key: jobs_key(host), properties, body };
        broker.publisher().publish(outgoing).await.unwrap();
    }
    ids
}

async fn work_on(folder: PathBuf, server: MemoryServer, host: HostId, work: Steps) {
    let journal = loop {
        match Journal::open(&folder).await {
            Ok(journal) => break journal,
            // The dead one's writer has not ended yet.
            Err(JournalError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => unreachable!("{error}"),
        }
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let slots = if work.stands { CUT_OFF + 1 } else { 64 };
    let parts = Parts {
        settings: Settings {
            host,
            slots: Slots { host: slots, repository: slots },
            open_runs_max: 2 * ENDED,
            host_key: None,
            controllers: Vec::new(),
            drain_limit: day,
            heartbeat: day,
            inventory: day,
            scratch_dir: folder,
            keep: Keep::default(),
        },
        broker: server.client(MemorySettings::default()),
        journal,
        work: Arc::new(work),
        hypervisor: Arc::new(FakeHypervisor::new()),
        supervisor: Supervisor::default(),
    };
    let (_switch, shutdown) = switch();
    longshore::worker::run(parts, shutdown).await.unwrap();
}

/// Work that writes down its steps and does nothing else, and may stand still then.
struct Steps {
    begun: mpsc::UnboundedSender<String>,
    stands: bool,
}

#[async_trait]
impl Work for Steps {
    async fn run(
        &self,
        attempt: &Attempt,
        record: &dyn AttemptRecord,
        _progress: watch::Sender<JobProgress>,
        _stop: &Stop,
    ) -> Outcome {
        if !self.stands {
            let _nobody_waits = self.begun.send(attempt.job.key.job_id.to_string());
        }
        record.keep_plan(Value::Null).await.unwrap();
        for number in 0..RECORDS {
            record.record(Record::Done { step: format!("step-{number}"), value: Value::Null }).await.unwrap();
        }
        if self.stands {
            let _nobody_waits = self.begun.send(attempt.job.key.job_id.to_string());
            std::future::pending::<()>().await;
        }
        done()
    }

    async fn unwind(
        &self,
        _attempt: &Attempt,
        _plan: Option<Value>,
        _records: &[Record],
        _record: &dyn AttemptRecord,
    ) -> Outcome {
        done()
    }

    async fn look_at_images(&self, _images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
        Ok(Vec::new())
    }
}

fn done() -> Outcome {
    Outcome { end: End::Completed { value: Value::Null }, warnings: Vec::new(), left_over: Vec::new() }
}
