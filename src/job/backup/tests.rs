//! The harness that every saga has to stand, for the three recipes of a backup on the fakes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::*;
use crate::host::guard::fake::FakeGuards;
use crate::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use crate::host::mover::FakeMovers;
use crate::job::JobProgress;
use crate::model::id::{BackupId, InstallationId, InstanceRef, JobId};
use crate::model::instance::PowerState;
use crate::model::job::{Job, Quiesce, RetryPolicy, RunKey, Transfer, Work};
use crate::model::repository::{Repository, RepositoryType};
use crate::saga::harness::{self, Case};

const SHARE: &str = "/share";

/// Longest time, on the paused clock, until a guard that fired believes that all is well.
const GUARD_SECONDS_MAX: u64 = 120;

struct World {
    hypervisor: FakeHypervisor,
    guards: FakeGuards,
    movers: FakeMovers,
    directory: tempfile::TempDir,
    settings: JobSettings,
    attempt: Attempt,
}

impl World {
    fn new(state: PowerState, transfer: Transfer) -> Self {
        let instance = match state {
            PowerState::ShutOff => FakeInstance::shut_off("web"),
            _ => FakeInstance::running("web"),
        };
        let instance = instance.disk("vda", 1 << 30).disk("vdb", 1 << 20);
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance);
        let movers = FakeMovers::new();
        let repository = movers.add_repository(SHARE);
        let directory = tempfile::tempdir().unwrap();
        let settings = JobSettings {
            host: "kvm-07".parse().unwrap(),
            installation: InstallationId::draw(),
            run_dir: directory.path().join("run"),
            scratch_dir: directory.path().to_owned(),
            scratch_limit_bytes: None,
            stall_limit: Duration::from_secs(60),
            freeze_limit: Duration::from_secs(20),
            same_device_ok: false,
            auto_push: false,
            volume_roots: Vec::new(),
        };
        std::fs::create_dir(&settings.run_dir).unwrap();
        let job = Job {
            key: RunKey { job_id: JobId::draw(), run: 1 },
            host: settings.host.clone(),
            instance: Some(InstanceRef::Id(id)),
            repository: Repository {
                id: repository,
                repository_type: RepositoryType::Directory,
                address: SHARE.into(),
                options: Vec::new(),
                credentials: None,
            },
            work: Work::Backup(BackupSpec { transfer, ..spec() }),
            retry: RetryPolicy::default(),
            start_before: None,
            deadline: Job::DEFAULT_DEADLINE,
            labels: Default::default(),
            requested_by: None,
        };
        let attempt = Attempt { job, attempt: 1, backup_id: BackupId::draw() };
        Self { guards: FakeGuards::new(hypervisor.clone()), hypervisor, movers, directory, settings, attempt }
    }

    fn doors(&self) -> Doors {
        Doors {
            hypervisor: Arc::new(self.hypervisor.clone()),
            guards: Arc::new(self.guards.clone()),
            movers: Arc::new(self.movers.clone()),
        }
    }

    async fn prepare(&self) -> PreparedBackup {
        let Work::Backup(spec) = &self.attempt.job.work else { unreachable!() };
        PreparedBackup::new(&self.doors(), &self.settings, &self.attempt, spec).await.unwrap()
    }

    fn context(&self, plan: BackupPlan) -> Context {
        let (progress, _) = watch::channel(JobProgress::default());
        Context::new(&self.doors(), &self.settings, &self.attempt, plan, &progress)
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found = self.hypervisor.leftovers_beside(&self.movers.checkpoints());
        found.extend(self.movers.running().into_iter().map(|name| format!("mover {name}")));
        found.extend(self.movers.staging(SHARE).into_iter().map(|name| format!("staging {name}")));
        if self.movers.is_leased(SHARE, instance_of(&self.attempt)) {
            found.push("a lease".to_owned());
        }
        if self.guards.standing() > 0 {
            found.push("a guard".to_owned());
        }
        found.extend(self.movers.exposed().into_iter().map(|place| format!("shown at {}", place.display())));
        found.extend(files(&self.settings.run_dir));
        found.extend(files(self.directory.path()).into_iter().filter(|file| !file.ends_with("/run")));
        found
    }
}

fn spec() -> BackupSpec {
    BackupSpec { quiesce: Quiesce::Prefer, ..BackupSpec::default() }
}

fn instance_of(attempt: &Attempt) -> crate::model::id::InstanceId {
    match attempt.job.its_instance() {
        Ok(InstanceRef::Id(id)) => *id,
        other => panic!("the test names its instance by id, not as {other:?}"),
    }
}

fn files(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect()
}

/// A backup of an instance in that state. The world is the one of the latest beginning.
struct Backup {
    state: PowerState,
    transfer: Transfer,
    world: Mutex<World>,
}

impl Backup {
    fn of(state: PowerState) -> Self {
        Self::by(state, Transfer::Pull)
    }

    fn by(state: PowerState, transfer: Transfer) -> Self {
        Self { state, transfer, world: Mutex::new(World::new(state, transfer)) }
    }

    fn plan_of(context: &Context) -> BackupPlan {
        (*context.plan).clone()
    }

    /// After a crash the guard and the recovery clear up side by side.
    async fn settled(&self) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(GUARD_SECONDS_MAX);
        loop {
            let found = self.world.lock().unwrap().leftovers();
            if found.is_empty() || Instant::now() >= until {
                return found;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[async_trait]
impl Case for Backup {
    type Context = Context;

    async fn begin(&self) -> Context {
        let world = World::new(self.state, self.transfer);
        let prepared = world.prepare().await;
        let mut context = world.context(prepared.plan);
        context.facts = Some(prepared.facts);
        *self.world.lock().unwrap() = world;
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let world = self.world.lock().unwrap();
        // The form of the recipe hangs on nothing but how the bytes travel.
        let source = match (self.state, self.transfer) {
            (PowerState::ShutOff, _) => plan::SourcePlan::Stopped,
            (_, Transfer::Push) => plan::SourcePlan::Push(plan::PushPlan {
                place: Default::default(),
                images: Vec::new(),
                qemu_owner: None,
            }),
            _ => plan::SourcePlan::Pull(plan::PullPlan {
                socket_dir: Default::default(),
                socket: Default::default(),
                scratch_dir: Default::default(),
                scratch: Vec::new(),
                scratch_limit_bytes: 0,
                qemu_owner: None,
            }),
        };
        let text = include_str!("../../../tests/fixtures/backup-plan.json");
        let plan = BackupPlan { source, ..serde_json::from_str(text).unwrap() };
        recipe(&plan, &world.settings, &world.attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        let plan = Self::plan_of(&crashed);
        // Not from memory: a begun commit has the manifest in the records before it, and a begin its step.
        let (manifest, begin_asked) = (crashed.manifest.clone(), crashed.begin_asked);
        drop(crashed);
        let mut context = self.world.lock().unwrap().context(plan);
        context.manifest = manifest;
        context.begin_asked = begin_asked;
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        let mut found = self.settled().await;
        let published = self.world.lock().unwrap().movers.published(SHARE).len();
        found.extend((published > 0).then(|| format!("{published} published")));
        found
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        let mut found = self.settled().await;
        let published = self.world.lock().unwrap().movers.published(SHARE).len();
        found.extend((published != 1).then(|| format!("{published} published")));
        found
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_a_running_instance_unwinds_from_every_step() {
    let case = Backup::of(PowerState::Running);
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_backup_of_a_running_instance_may_run_twice() {
    harness::every_step_may_run_twice(&Backup::of(PowerState::Running)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_a_running_instance_stopped_after_every_record_recovers() {
    harness::stopped_after_every_record_it_recovers(&Backup::of(PowerState::Running)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_a_stopped_instance_stands_the_harness() {
    let case = Backup::of(PowerState::ShutOff);
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::every_step_may_run_twice(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_qemu_pushes_unwinds_from_every_step() {
    let case = Backup::by(PowerState::Running, Transfer::Push);
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_backup_that_qemu_pushes_may_run_twice() {
    harness::every_step_may_run_twice(&Backup::by(PowerState::Running, Transfer::Push)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_qemu_pushes_stopped_after_every_record_recovers() {
    harness::stopped_after_every_record_it_recovers(&Backup::by(PowerState::Running, Transfer::Push)).await;
}
