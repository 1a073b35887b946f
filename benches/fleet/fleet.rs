//! The worker as it is, journal and real broker and all, with work that does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore::broker::settings::BrokerSettings;
use longshore::broker::tls::TlsFiles;
use longshore::broker::topology::{JOBS_EXCHANGE, jobs_key};
use longshore::failure::{Failure, RbdRemains};
use longshore::host::hypervisor::fake::FakeHypervisor;
use longshore::job::{Attempt, JobProgress};
use longshore::journal::{Journal, Keep};
use longshore::model::id::HostId;
use longshore::saga::{End, Outcome, Record, Stop};
use longshore::shutdown::{ShutdownSwitch, Stage, switch};
use longshore::supervisor::Supervisor;
use longshore::worker::admit::Slots;
use longshore::worker::work::{AttemptRecord, Work};
use longshore::worker::{Parts, Settings};
use serde_json::Value;
use tokio::sync::watch;

use super::bare::latencies;
use super::rabbit::Rabbit;
use super::wire::{Listener, Target, Wire};
use super::{MANY, PACE, PACED, jobs};

const EVENTS: &str = "bench-events";
const ONLINE: &str = "longshore.event.worker.online.v1";
const STARTED: &str = "longshore.event.started.v1";
const COMPLETED: &str = "longshore.event.completed.v1";
/// So many that nothing waits for a slot, a place in the journal or the broker.
const SLOTS: usize = 512;
const OPEN_RUNS_MAX: usize = 2048;
const PREFETCH: u16 = 512;
/// As many as the real worker's runtime has.
const THREADS: usize = 2;

/// How the worker comes to the broker; publisher and listener always come in plain.
pub struct Way {
    /// In a word.
    pub name: &'static str,
    /// The broker.
    pub uri: String,
    /// Whom it is believed from.
    pub tls: TlsFiles,
}

/// From the moment at which each job was to be published.
pub struct Paced {
    /// Until its work began: it is in the journal, acked, and its attempt is in the journal.
    pub begun: Vec<Duration>,
    /// Until a listener had its `started`.
    pub told: Vec<Duration>,
}

/// Publishes jobs at their pace to a worker that is idle otherwise.
pub async fn paced(rabbit: &Rabbit, way: &Way, round: usize) -> Paced {
    let host: HostId = format!("paced-{round}").parse().unwrap();
    let (wire, mut listener) = (Wire::open(rabbit).await, Listener::open(rabbit, EVENTS, &["#"]).await);
    let worker = Worker::start(way, &host);
    until(&mut listener, ONLINE).await;
    let messages = jobs::messages(&host, PACED);
    let listen = async {
        let (mut started, mut completed) = (BTreeMap::new(), 0);
        while completed < PACED {
            let next = listener.next().await;
            completed += usize::from(next.message_type == COMPLETED);
            if next.message_type == STARTED {
                started.insert(next.correlation_id, next.at);
            }
        }
        started
    };
    let target = target(&host);
    let (intended, told) = tokio::join!(wire.publish_paced(&target, &messages, PACE), listen);
    let begun = worker.begun.lock().unwrap().clone();
    worker.stop();
    listener.close().await;
    Paced { begun: latencies(&messages, &intended, &begun), told: latencies(&messages, &intended, &told) }
}

/// Jobs a second of a worker that finds its queue full: from the moment at which it takes jobs until a listener that hears
/// all events has the last final one.
pub async fn rate(rabbit: &Rabbit, way: &Way, round: usize) -> f64 {
    let host: HostId = format!("rate-{}-{round}", way.name).parse().unwrap();
    let (wire, mut listener) = (Wire::open(rabbit).await, Listener::open(rabbit, EVENTS, &["#"]).await);
    // The first start of a host's worker makes its queues.
    let worker = Worker::start(way, &host);
    until(&mut listener, ONLINE).await;
    worker.stop();
    wire.publish_all(&target(&host), &jobs::messages(&host, MANY)).await;
    let worker = Worker::start(way, &host);
    until(&mut listener, ONLINE).await;
    let begun = Instant::now();
    let mut completed = BTreeSet::new();
    while completed.len() < MANY {
        let next = listener.next().await;
        if next.message_type == COMPLETED {
            assert!(completed.insert(next.correlation_id), "a job has ended twice");
        }
    }
    let elapsed = begun.elapsed();
    worker.stop();
    listener.close().await;
    MANY as f64 / elapsed.as_secs_f64()
}

fn target(host: &HostId) -> Target {
    Target { exchange: JOBS_EXCHANGE, routing_key: jobs_key(host) }
}

async fn until(listener: &mut Listener, message_type: &str) {
    while listener.next().await.message_type != message_type {}
}

/// When the work of each job began, by job id.
type Begun = Arc<Mutex<BTreeMap<String, Instant>>>;

/// A worker on threads of its own.
struct Worker {
    switch: ShutdownSwitch,
    thread: JoinHandle<u64>,
    begun: Begun,
    _folder: tempfile::TempDir,
}

impl Worker {
    fn start(way: &Way, host: &HostId) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (path, host) = (folder.path().to_owned(), host.clone());
        let mut broker = BrokerSettings::new(way.uri.parse().unwrap(), host.as_str());
        (broker.prefetch, broker.tls) = (PREFETCH, way.tls.clone());
        let (switch, shutdown) = switch();
        let begun = Begun::default();
        let work = NoWork { begun: begun.clone() };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
            runtime.unwrap().block_on(async {
                let journal = Journal::open(&path).await.unwrap();
                longshore::worker::run(parts(broker, host, journal.clone(), path, work), shutdown).await.unwrap();
                let unsent = journal.outbox_depth().await.unwrap();
                journal.close().await;
                unsent
            })
        });
        Self { switch, thread, begun, _folder: folder }
    }

    /// Ends it. Every event has to be confirmed by then.
    fn stop(self) {
        self.switch.raise(Stage::Drain);
        assert_eq!(self.thread.join().unwrap(), 0, "events that the broker has not confirmed");
    }
}

fn parts(broker: BrokerSettings, host: HostId, journal: Journal, scratch_dir: PathBuf, work: NoWork) -> Parts {
    let day = Duration::from_secs(24 * 60 * 60);
    Parts {
        settings: Settings {
            host,
            slots: Slots { host: SLOTS, repository: SLOTS },
            open_runs_max: OPEN_RUNS_MAX,
            host_key: None,
            controllers: Vec::new(),
            drain_limit: day,
            heartbeat: day,
            inventory: day,
            scratch_dir,
            keep: Keep::default(),
        },
        broker: longshore::broker::connect(broker).unwrap(),
        journal,
        work: Arc::new(work),
        hypervisor: Arc::new(FakeHypervisor::new()),
        supervisor: Supervisor::default(),
    }
}

struct NoWork {
    begun: Begun,
}

#[async_trait]
impl Work for NoWork {
    async fn run(
        &self,
        attempt: &Attempt,
        _record: &dyn AttemptRecord,
        _progress: watch::Sender<JobProgress>,
        _stop: &Stop,
    ) -> Outcome {
        self.begun.lock().unwrap().insert(attempt.job.key.job_id.to_string(), Instant::now());
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
