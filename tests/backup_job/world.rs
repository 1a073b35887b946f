//! A host in memory with one instance and one repository, and a backup of the one onto the other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore::failure::Failure;
use longshore::host::guard::fake::FakeGuards;
use longshore::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use longshore::host::mover::FakeMovers;
use longshore::job::backup::BackupResult;
use longshore::job::{self, Attempt, Doors, Hooks, JobProgress, JobSettings};
use longshore::model::id::{BackupId, InstallationId, InstanceId, InstanceRef, JobId};
use longshore::model::job::{BackupSpec, Job, RetryPolicy, RunKey, Work};
use longshore::model::repository::{Repository, RepositoryType};
use longshore::saga::harness::MemoryLog;
use longshore::saga::{End, Outcome, Record, Stop};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub const SHARE: &str = "/share";

/// Longest time, on the paused clock, to wait for something to become true.
const WAIT_SECONDS_MAX: u64 = 600;

pub fn running() -> FakeInstance {
    FakeInstance::running("web").disk("vda", 1 << 30).disk("vdb", 1 << 20)
}

pub fn stopped() -> FakeInstance {
    FakeInstance::shut_off("web").disk("vda", 1 << 30).disk("vdb", 1 << 20)
}

pub struct World {
    pub hypervisor: FakeHypervisor,
    pub guards: FakeGuards,
    pub movers: FakeMovers,
    pub instance: InstanceId,
    pub settings: JobSettings,
    pub progress: watch::Receiver<JobProgress>,
    progress_in: watch::Sender<JobProgress>,
    attempt: Attempt,
    log: MemoryLog,
    directory: tempfile::TempDir,
}

/// What a worker that died has left in its journal.
pub struct Crashed {
    plan: Value,
    records: Vec<Record>,
}

impl World {
    pub fn of(instance: FakeInstance, spec: BackupSpec) -> Self {
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance);
        let movers = FakeMovers::new();
        let repository = Repository {
            id: movers.add_repository(SHARE),
            repository_type: RepositoryType::Directory,
            address: SHARE.into(),
            options: Vec::new(),
            credentials: None,
        };
        let directory = tempfile::tempdir().unwrap();
        let settings = JobSettings {
            host: "kvm-07".parse().unwrap(),
            installation: InstallationId::draw(),
            run_dir: directory.path().join("run"),
            scratch_dir: directory.path().join("scratch"),
            scratch_limit_bytes: None,
            stall_limit: Duration::from_secs(60),
            freeze_limit: Duration::from_secs(20),
            same_device_ok: false,
            auto_push: false,
            volume_roots: Vec::new(),
        };
        std::fs::create_dir(&settings.run_dir).unwrap();
        std::fs::create_dir(&settings.scratch_dir).unwrap();
        let job = Job {
            key: RunKey { job_id: JobId::draw(), run: 1 },
            host: settings.host.clone(),
            instance: Some(InstanceRef::Id(id)),
            repository,
            work: Work::Backup(spec),
            retry: RetryPolicy::default(),
            start_before: None,
            deadline: Job::DEFAULT_DEADLINE,
            labels: Default::default(),
            requested_by: None,
        };
        let (progress_in, progress) = watch::channel(JobProgress::default());
        Self {
            guards: FakeGuards::new(hypervisor.clone()),
            hypervisor,
            movers,
            instance: id,
            settings,
            progress,
            progress_in,
            attempt: Attempt { job, attempt: 1, backup_id: BackupId::draw() },
            log: MemoryLog::default(),
            directory,
        }
    }

    fn doors(&self) -> Doors {
        Doors {
            hypervisor: Arc::new(self.hypervisor.clone()),
            guards: Arc::new(self.guards.clone()),
            movers: Arc::new(self.movers.clone()),
        }
    }

    fn hooks(&self) -> Hooks<'_> {
        Hooks { log: &self.log, progress: &self.progress_in }
    }

    pub async fn run(&self) -> Outcome {
        self.run_until(&Stop::never()).await
    }

    pub async fn run_until(&self, stop: &Stop) -> Outcome {
        let prepared = job::prepare(&self.doors(), &self.settings, &self.attempt).await.unwrap();
        prepared.run(&self.doors(), &self.settings, &self.attempt, self.hooks(), stop).await
    }

    /// Runs until the worker dies, at the first moment that `when` is true of the world.
    pub async fn crash_when(&self, when: impl Fn(&World) -> bool) -> Crashed {
        let prepared = job::prepare(&self.doors(), &self.settings, &self.attempt).await.unwrap();
        let plan = prepared.plan().unwrap();
        let (doors, stop) = (self.doors(), Stop::never());
        tokio::select! {
            outcome = prepared.run(&doors, &self.settings, &self.attempt, self.hooks(), &stop) => {
                panic!("it ended before the crash: {outcome:?}")
            }
            () = self.until(when) => {}
        }
        Crashed { plan, records: self.log.records() }
    }

    pub async fn unwind(&self, crashed: &Crashed) -> Outcome {
        self.unwind_with(&crashed.plan, &crashed.records).await.unwrap()
    }

    pub async fn unwind_with(&self, plan: &Value, records: &[Record]) -> Result<Outcome, Failure> {
        job::unwind(&self.doors(), &self.settings, &self.attempt, plan, records, self.hooks()).await
    }

    pub async fn until(&self, when: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(WAIT_SECONDS_MAX);
        while !when(self) {
            assert!(Instant::now() < deadline, "what the test waits for does not come about");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until the step of that name has begun, which for one that the test lets hang means that it hangs.
    pub async fn until_asked(&self, wanted: &str) {
        let begun = |record: &Record| match record {
            Record::Began { step, .. } | Record::Committing { step } => step == wanted,
            _ => false,
        };
        self.until(|world| world.log.records().iter().any(begun)).await;
    }

    pub async fn until_copying(&self) {
        self.until_asked("copy").await;
    }

    /// The next thing that is asked of the same instance and repository.
    pub fn next(mut self, work: BackupSpec) -> Self {
        self.attempt.job.key.job_id = JobId::draw();
        self.attempt.job.work = Work::Backup(work);
        self.attempt.backup_id = BackupId::draw();
        self.log = MemoryLog::default();
        self
    }

    /// As a later attempt.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt.attempt = attempt;
        self
    }

    pub fn assert_nothing_published(&self) {
        assert_eq!(self.movers.published(SHARE), []);
    }

    /// The host and the share are as they were, but for what was published. A guard that fired may still be looking on.
    pub async fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(WAIT_SECONDS_MAX);
        while !self.leftovers().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", self.leftovers());
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found = self.hypervisor.leftovers_beside(&self.movers.checkpoints());
        found.extend(self.movers.running().into_iter().map(|name| format!("mover {name}")));
        found.extend(self.movers.staging(SHARE).into_iter().map(|name| format!("staging {name}")));
        found.extend(self.movers.is_leased(SHARE, self.instance).then(|| "a lease".to_owned()));
        found.extend((self.guards.standing() > 0).then(|| "a guard".to_owned()));
        found.extend(self.movers.exposed().into_iter().map(|place| format!("shown at {}", place.display())));
        found.extend(files(&self.settings.run_dir));
        found.extend(files(&self.settings.scratch_dir));
        assert_eq!(files(self.directory.path()).len(), 2);
        found
    }
}

fn files(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect()
}

pub fn completed(outcome: &Outcome) -> BackupResult {
    match &outcome.end {
        End::Completed { value } => BackupResult::from_value(value).unwrap(),
        _ => panic!("{outcome:?}"),
    }
}

pub fn failed(outcome: &Outcome) -> Failure {
    match &outcome.end {
        End::Failed { failure } => failure.clone(),
        _ => panic!("{outcome:?}"),
    }
}
