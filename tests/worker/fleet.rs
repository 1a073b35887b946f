//! A broker, a host with instances, a share and one worker after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::memory::{MemoryServer, MemorySettings};
use longshore::broker::topology::{
    CONTROL_EXCHANGE, DEAD_QUEUE, JOBS_EXCHANGE, control_key, control_queue, jobs_key, jobs_queue, urgent_jobs_key,
    urgent_jobs_queue,
};
use longshore::broker::{Broker, EventMessage, Outgoing, Properties};
use longshore::host::guard::fake::FakeGuards;
use longshore::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use longshore::host::mover::FakeMovers;
use longshore::job::{Doors, JobSettings};
use longshore::journal::{Journal, JournalError, Keep};
use longshore::message::event::{FailureReport, RunDetail};
use longshore::message::job::{BackupPart, InstancePart, RepositoryPart, RetryPart};
use longshore::message::{
    Cancel, Control, DeadLetter, Encoded, Encoding, JobMessage, Superseded, decode_dead_letter, decode_superseded,
    encode_control, encode_job,
};
use longshore::model::id::{HostId, InstanceId, JobId, RepositoryId};
use longshore::model::job::RunKey;
use longshore::shutdown::{self, ShutdownSwitch, Stage};
use longshore::supervisor::Supervisor;
use longshore::worker::admit::Slots;
use longshore::worker::jobs::Jobs;
use longshore::worker::{self, Ended, Parts, Settings, WorkerError};
use sqlx::{ConnectOptions, Connection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::events::Reader;
use crate::panics::Panics;
use crate::supervised::Stuck;
use crate::witness::Witness;

/// Address of the share that jobs name unless told otherwise.
pub const SHARE: &str = "/share";
/// Longest wait for anything that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Longest time, on the clock that is let run ahead, until guards have seen that all is well.
const GUARDS_DONE: Duration = Duration::from_secs(600);

struct Worker {
    task: JoinHandle<Result<Ended, WorkerError>>,
    switch: ShutdownSwitch,
}

/// A journal that nobody can write.
pub struct HeldJournal {
    connection: sqlx::SqliteConnection,
}

impl HeldJournal {
    pub async fn let_go(mut self) {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await.unwrap();
        self.connection.close().await.unwrap();
    }
}

pub struct Fleet {
    pub server: MemoryServer,
    pub broker: Arc<dyn Broker>,
    pub events: Reader,
    pub hypervisor: FakeHypervisor,
    pub guards: FakeGuards,
    pub movers: FakeMovers,
    pub settings: Settings,
    pub panics: Panics,
    pub witness: Witness,
    /// Addresses of the repositories there are.
    pub shares: Vec<&'static str>,
    pub host: HostId,
    directory: tempfile::TempDir,
    instances: BTreeMap<String, InstanceId>,
    /// Deliveries of each job queue that the worker has on their way at a time.
    pub prefetch: usize,
    /// How long the worker's publishes wait for a broker that is away.
    pub publish_wait: Duration,
    /// Refused messages that leave no letter: control messages.
    pub letterless: usize,
    /// Where whoever started the worker listens, and how long it bears silence.
    pub listens: Option<(std::path::PathBuf, Duration)>,
    /// Where the worker runs, if not where the test does.
    pub threads: Option<tokio::runtime::Handle>,
    /// In front of the broker.
    pub stuck: Option<Stuck>,
    worker: Option<Worker>,
    finished: bool,
}

impl Fleet {
    /// A host with these running instances of one disk each, and its worker.
    pub async fn with(instances: &[&str]) -> Self {
        let mut fleet = Self::without_worker(instances).await;
        fleet.start().await;
        fleet
    }

    /// The same before its worker is started.
    pub async fn without_worker(instances: &[&str]) -> Self {
        let host: HostId = "kvm-07".parse().unwrap();
        let server = MemoryServer::new();
        server.enrol(&host);
        let broker = server.client(MemorySettings::default());
        let directory = tempfile::tempdir().unwrap();
        let hypervisor = FakeHypervisor::new();
        let mut ids = BTreeMap::new();
        for name in instances {
            let instance = FakeInstance::running(name).disk("vda", 1 << 30);
            ids.insert((*name).to_owned(), instance.id());
            hypervisor.add(instance);
        }
        let fleet = Self {
            events: Reader::of(broker.as_ref()).await,
            guards: FakeGuards::new(hypervisor.clone()),
            movers: FakeMovers::new(),
            settings: settings(&host, directory.path()),
            panics: Panics::default(),
            witness: Witness::of(&ids),
            shares: vec![SHARE],
            prefetch: MemorySettings::default().prefetch,
            // Impatient, so that an outage is felt.
            publish_wait: Duration::from_millis(200),
            letterless: 0,
            listens: None,
            threads: None,
            stuck: None,
            worker: None,
            finished: false,
            instances: ids,
            server,
            broker,
            hypervisor,
            host,
            directory,
        };
        for folder in ["run", "scratch"] {
            std::fs::create_dir(fleet.directory.path().join(folder)).unwrap();
        }
        fleet.movers.add_repository(SHARE);
        fleet
    }

    pub fn journal_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("journal")
    }

    pub fn run_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("run")
    }

    /// The journal, as soon as nobody else has it.
    pub async fn journal(&self) -> Journal {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Journal::open(&self.journal_dir()).await {
                Ok(journal) => return journal,
                Err(JournalError::InUse { .. }) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Runs statements on the journal's file behind the worker's back.
    pub async fn in_journal(&self, sql: &'static str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.journal_dir().join("journal.sqlite"));
        let mut connection = options.busy_timeout(PATIENCE).connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Keeps the worker's journal from being written until it is let go.
    pub async fn journal_held(&self) -> HeldJournal {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.journal_dir().join("journal.sqlite"));
        let mut connection = options.busy_timeout(PATIENCE).connect().await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
        HeldJournal { connection }
    }

    /// Starts a worker on the journal that the last one left.
    pub async fn start(&mut self) {
        assert!(self.worker.is_none(), "there is a worker already");
        let journal = self.journal().await;
        let parts = self.parts(journal);
        let (switch, shutdown) = shutdown::switch();
        let running = worker::run(parts, shutdown);
        let task = match &self.threads {
            Some(threads) => threads.spawn(running),
            None => tokio::spawn(running),
        };
        self.worker = Some(Worker { task, switch });
    }

    /// What a worker is made of, on some journal.
    pub fn parts(&self, journal: Journal) -> Parts {
        let hypervisor = Arc::new(self.hypervisor.clone());
        let doors = Doors {
            hypervisor: hypervisor.clone(),
            guards: Arc::new(self.guards.clone()),
            movers: Arc::new(self.movers.clone()),
        };
        let settings = JobSettings {
            host: self.host.clone(),
            installation: journal.installation(),
            run_dir: self.directory.path().join("run"),
            scratch_dir: self.settings.scratch_dir.clone(),
            scratch_limit_bytes: None,
            stall_limit: PATIENCE,
            freeze_limit: Duration::from_secs(20),
            same_device_ok: false,
            auto_push: false,
            volume_roots: vec!["/images".into()],
        };
        let (publish_wait, prefetch) = (self.publish_wait, self.prefetch);
        let broker = MemorySettings { publish_wait, prefetch, ..MemorySettings::default() };
        let broker = self.server.client(broker);
        Parts {
            settings: self.settings.clone(),
            broker: match &self.stuck {
                Some(stuck) => stuck.before(broker),
                None => broker,
            },
            work: Arc::new(self.witness.beside(self.panics.around(Jobs::new(doors, settings)))),
            journal,
            hypervisor,
            supervisor: self.supervisor(),
        }
    }

    fn supervisor(&self) -> Supervisor {
        let Some((path, limit)) = &self.listens else { return Supervisor::default() };
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into_os_string()),
            "WATCHDOG_USEC" => Some(limit.as_micros().to_string().into()),
            _ => None,
        };
        Supervisor::of(variable, std::process::id()).unwrap()
    }

    /// Ends the worker without a word, as kill -9 does.
    pub async fn crash(&mut self) {
        let Worker { task, .. } = self.worker.take().expect("a worker");
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()), "the worker had ended before");
    }

    pub fn signal(&self, stage: Stage) {
        self.worker.as_ref().expect("a worker").switch.raise(stage);
    }

    /// The end of a worker that was told to stop, or that stops by itself.
    pub async fn ended(&mut self) -> Result<Ended, WorkerError> {
        let Worker { task, .. } = self.worker.take().expect("a worker");
        timeout(PATIENCE, task).await.expect("the worker does not end").unwrap()
    }

    pub async fn stop(&mut self) {
        self.signal(Stage::Drain);
        assert_eq!(self.ended().await.unwrap().trouble(), None);
    }

    pub fn id_of(&self, name: &str) -> InstanceId {
        self.instances[name]
    }

    pub fn repository_id(&self, address: &str) -> RepositoryId {
        self.movers.repository(address, |repository| repository.id).unwrap()
    }

    /// A backup of the instance, to be retried at once.
    pub fn job(&self, instance: &str) -> JobMessage {
        JobMessage {
            job_id: JobId::draw().to_string(),
            run: 1,
            kind: "backup".to_owned(),
            host: self.host.to_string(),
            instance: Some(InstancePart { id: None, name: Some(instance.to_owned()) }),
            repository: RepositoryPart {
                id: self.repository_id(SHARE).to_string(),
                repository_type: "directory".to_owned(),
                address: SHARE.to_owned(),
                options: String::new(),
                credentials: None,
            },
            backup: Some(BackupPart::default()),
            restore: None,
            restore_new: None,
            validate: None,
            delete: None,
            retry: Some(RetryPart { attempts: Some(3), first_pause_seconds: Some(0), longest_pause_seconds: Some(0) }),
            start_before: None,
            deadline_seconds: None,
            labels: [("ticket".to_owned(), "4711".to_owned())].into(),
            requested_by: Some("tests".to_owned()),
        }
    }

    pub async fn publish(&self, job: &JobMessage) -> RunKey {
        self.send(jobs_key(&self.host), encoded(job)).await;
        key(job)
    }

    pub async fn publish_urgent(&self, job: &JobMessage) -> RunKey {
        self.send(urgent_jobs_key(&self.host), encoded(job)).await;
        key(job)
    }

    /// Anything, into the queue of jobs.
    pub async fn publish_raw(&self, properties: Properties, body: Vec<u8>) {
        self.send(jobs_key(&self.host), Encoded { properties, body }).await;
    }

    /// Asks for the end of a run, as the controller `ops` does.
    pub async fn cancel(&self, key: RunKey, reason: &str) {
        let (requested_by, reason) = (Some("ops".to_owned()), Some(reason.to_owned()));
        let (job_id, run) = (key.job_id, key.run);
        self.command(&Control::Cancel(Cancel { job_id, run, requested_by, reason, remember_seconds: None })).await;
    }

    /// Tells the host what the controller `ops` wants.
    pub async fn command(&self, control: &Control) {
        self.command_as("ops", control).await;
    }

    /// The same of somebody else.
    pub async fn command_as(&self, user: &str, control: &Control) {
        let Encoded { properties, body } = encode_control(control, Encoding::Json, Timestamp::now()).unwrap();
        let properties = Properties { user_id: Some(user.to_owned()), ..properties };
        let routing_key = control_key(&self.host, control.command());
        let outgoing = Outgoing { exchange: CONTROL_EXCHANGE, routing_key, properties, body };
        self.broker.publisher().publish(outgoing).await.unwrap();
    }

    /// What was sent to the control queue has been read, and acknowledged.
    pub fn control_is_read(&self) -> bool {
        self.server.depth(&control_queue(&self.host)) == Some(Default::default())
    }

    async fn send(&self, routing_key: String, message: Encoded) {
        let Encoded { properties, body } = message;
        let outgoing = Outgoing { exchange: JOBS_EXCHANGE, routing_key, properties, body };
        self.broker.publisher().publish(outgoing).await.unwrap();
    }

    /// Waits until a look at the world shows something.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&Fleet) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what} does not come about; events: {:#?}", self.events.once());
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits for that event of the run, in that attempt.
    pub async fn told(&self, key: RunKey, attempt: u32, word: &str) -> RunDetail {
        let wanted = format!("`{word}` of {key} in attempt {attempt}");
        let find = |fleet: &Fleet| {
            let mut events = fleet.events.of_run(key).into_iter();
            events.find(|event| event.attempt == attempt && event.detail.word() == word).map(|event| event.detail)
        };
        self.until(&wanted, find).await
    }

    pub async fn end_of(&self, key: RunKey) -> RunDetail {
        self.until(&format!("the end of {key}"), |fleet| fleet.events.final_of(key)).await
    }

    pub async fn completed(&self, key: RunKey) {
        let end = self.end_of(key).await;
        assert!(matches!(end, RunDetail::Completed(_)), "{end:?}");
    }

    pub async fn failed(&self, key: RunKey) -> FailureReport {
        match self.end_of(key).await {
            RunDetail::Failed(failed) => failed.failure,
            end => panic!("{end:?}"),
        }
    }

    /// Waits until the copy of the instance hangs, every record of what was before it written down.
    pub async fn until_copying(&self, instance: &str) {
        let id = self.id_of(instance);
        let hangs = |fleet: &Fleet| fleet.hypervisor.job(id).filter(|_| fleet.movers.is_hanging("copy"));
        self.until(&format!("the copy of {instance}"), hangs).await;
    }

    /// The dead letters that wait, each once: one whose confirm was lost is there twice.
    pub fn letters(&self) -> Vec<DeadLetter> {
        let mut known = BTreeSet::new();
        let messages = self.server.ready_messages(DEAD_QUEUE).into_iter();
        let letters = messages.filter(|message| message.properties.message_type == DeadLetter::MESSAGE_TYPE);
        let letters = letters.filter(|message| known.insert(message.properties.message_id.clone()));
        letters.map(|message| decode_dead_letter(&message.properties, &message.body).unwrap()).collect()
    }

    /// Of each dead letter that waits the run and the message id.
    pub fn letter_ids(&self) -> Vec<(RunKey, String)> {
        let of = |message: &EventMessage| {
            let letter = decode_dead_letter(&message.properties, &message.body).ok()?;
            let key = RunKey { job_id: letter.job_id?, run: letter.run? };
            Some((key, message.properties.message_id.clone()))
        };
        self.server.ready_messages(DEAD_QUEUE).iter().filter_map(of).collect()
    }

    /// The marks on them.
    pub fn marks(&self) -> Vec<Superseded> {
        let messages = self.server.ready_messages(DEAD_QUEUE);
        messages.iter().filter_map(|message| decode_superseded(&message.properties, &message.body).ok()).collect()
    }

    pub fn letter_of(&self, key: RunKey) -> Option<DeadLetter> {
        self.letters().into_iter().find(|letter| letter.job_id == Some(key.job_id) && letter.run == Some(key.run))
    }

    /// Stops the worker and looks at what is left: nothing, but backups that were published and letters.
    pub async fn finish(mut self) {
        if self.worker.is_some() {
            self.stop().await;
        }
        self.finished = true;
        let journal = self.journal().await;
        assert_eq!(journal.open_runs().await.unwrap(), [], "open runs in the journal");
        assert_eq!(journal.outbox_depth().await.unwrap(), 0, "messages were not sent");
        journal.close().await;
        self.until("everything has been read", |fleet| {
            let read = fleet.events.runs_ended() && fleet.letters_fit();
            read.then_some(())
        })
        .await;
        self.events.assert_consistent();
        for queue in [control_queue(&self.host), jobs_queue(&self.host), urgent_jobs_queue(&self.host)] {
            assert_eq!(self.server.depth(&queue), Some(Default::default()), "{queue}");
        }
        // A guard whose worker is gone looks on for a while. Nobody else is left whose time could pass too fast.
        tokio::time::pause();
        let deadline = Instant::now() + GUARDS_DONE;
        while !self.left_behind().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", self.left_behind());
            sleep(LOOK_AGAIN * 20).await;
        }
    }

    /// Each failed run and each refused message has its letter, and there are no others.
    fn letters_fit(&self) -> bool {
        self.events.failures() == self.letters().len() + self.letterless
    }

    /// What no job leaves, but for backups and their checkpoints.
    pub fn left_behind(&self) -> Vec<String> {
        let mut found = self.hypervisor.leftovers_beside(&self.movers.checkpoints());
        found.extend(self.movers.running().into_iter().map(|name| format!("mover {name}")));
        found.extend(self.movers.exposed().into_iter().map(|place| format!("a mount at {}", place.display())));
        for share in &self.shares {
            found.extend(self.movers.staging(share).into_iter().map(|name| format!("staging {name}")));
            let leased = self.instances.iter().filter(|(_, id)| self.movers.is_leased(share, **id));
            found.extend(leased.map(|(name, _)| format!("the lease of {name}")));
        }
        found.extend((self.guards.standing() > 0).then(|| "a guard".to_owned()));
        found.extend(files(&self.directory.path().join("run")));
        found.extend(files(&self.settings.scratch_dir));
        found
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        assert!(self.finished || std::thread::panicking(), "the test did not look at what was left behind");
    }
}

fn settings(host: &HostId, directory: &Path) -> Settings {
    Settings {
        host: host.clone(),
        slots: Slots { host: 4, repository: 4 },
        open_runs_max: 100,
        host_key: None,
        controllers: vec!["ops".to_owned()],
        drain_limit: PATIENCE,
        heartbeat: Duration::from_millis(50),
        inventory: Duration::from_millis(200),
        scratch_dir: directory.join("scratch"),
        keep: Keep::default(),
    }
}

fn files(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect()
}

pub fn encoded(job: &JobMessage) -> Encoded {
    encode_job(job, Encoding::MessagePack, Timestamp::now()).unwrap()
}

pub fn key(job: &JobMessage) -> RunKey {
    RunKey { job_id: job.job_id.parse().unwrap(), run: job.run }
}
