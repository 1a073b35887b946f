//! The harness that every saga has to stand, for a validation on the fakes; then what is particular to it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::*;
use crate::failure::{Code, Failure};
use crate::host::guard::fake::FakeGuards;
use crate::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use crate::host::mover::{FakeMovers, Mover, Movers};
use crate::job::backup::{BackupResult, PreparedBackup};
use crate::job::{Hooks, JobProgress};
use crate::model::id::{BackupId, InstallationId, InstanceId, InstanceRef, JobId};
use crate::model::job::{BackupSpec, Job, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::model::validation::{FindingCode, Validation, ValidationLevel};
use crate::mover::protocol::{LeaseHolder, Request};
use crate::saga::End;
use crate::saga::harness::{self, Case, MemoryLog};

const SHARE: &str = "/share";
const SOON: Duration = Duration::from_secs(60);

/// A repository with one backup in it, and with what an attempt has left that was cut off.
struct World {
    movers: FakeMovers,
    hypervisor: FakeHypervisor,
    settings: JobSettings,
    instance: InstanceId,
    attempt: Attempt,
    manifest: Manifest,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(spec: ValidateSpec) -> Self {
        let instance = FakeInstance::shut_off("web").disk("vda", 1 << 30);
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance);
        let movers = FakeMovers::new();
        let repository = movers.add_repository(SHARE);
        let directory = tempfile::tempdir().unwrap();
        let settings = JobSettings {
            host: "kvm-07".parse().unwrap(),
            installation: InstallationId::draw(),
            run_dir: directory.path().to_owned(),
            scratch_dir: directory.path().to_owned(),
            scratch_limit_bytes: None,
            stall_limit: Duration::from_secs(60),
            freeze_limit: Duration::from_secs(20),
            same_device_ok: false,
            auto_push: false,
            volume_roots: Vec::new(),
        };
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
            work: Work::Backup(BackupSpec::default()),
            retry: RetryPolicy::default(),
            start_before: None,
            deadline: Job::DEFAULT_DEADLINE,
            labels: Default::default(),
            requested_by: None,
        };
        let mut attempt = Attempt { job, attempt: 1, backup_id: BackupId::draw() };
        let manifest = back_up(&doors(&hypervisor, &movers), &settings, &attempt).await;
        attempt.job.key.job_id = JobId::draw();
        (attempt.job.work, attempt.job.instance) = (Work::RepoValidate(spec), None);
        let world = Self { movers, hypervisor, settings, instance: id, attempt, manifest, _directory: directory };
        drop(world.writes("dead").await);
        world
    }

    /// A mover with a staging directory of the instance, which is a left-over once it is dropped.
    async fn writes(&self, name: &str) -> Box<dyn Mover> {
        let mut mover = self.movers.start(&name.parse().unwrap()).await.unwrap();
        let (instance, backup) = (self.instance, BackupId::draw());
        let repository = self.attempt.job.repository.clone();
        let holder = LeaseHolder {
            host: self.settings.host.clone(),
            installation: self.settings.installation,
            job: "another".into(),
        };
        for request in [
            Request::Open { repository, same_device_ok: false, need_bytes: 0, writer: None },
            Request::Lease { instance, holder },
            Request::Stage { instance, backup, suffix: "a.1".into() },
        ] {
            mover.ask(request, SOON).await.unwrap();
        }
        mover
    }

    fn plan(&self) -> ValidatePlan {
        let Work::RepoValidate(spec) = &self.attempt.job.work else { unreachable!() };
        prepare(&self.attempt, spec)
    }

    fn context(&self, plan: ValidatePlan) -> Context {
        let (progress, _) = watch::channel(JobProgress::default());
        let doors = doors(&self.hypervisor, &self.movers);
        Context::new(&doors, &self.settings, &self.attempt, plan, &progress)
    }

    async fn run(&self) -> Outcome {
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let doors = doors(&self.hypervisor, &self.movers);
        run(&doors, &self.settings, &self.attempt, self.plan(), hooks, &Stop::never()).await
    }

    /// What a job has left that has ended.
    fn stains(&self) -> Vec<String> {
        let mut stains: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        if self.movers.is_leased(SHARE, self.instance) {
            stains.push("a lease".to_owned());
        }
        if self.movers.published(SHARE).len() != 1 {
            stains.push("the backup is gone".to_owned());
        }
        stains
    }
}

fn doors(hypervisor: &FakeHypervisor, movers: &FakeMovers) -> Doors {
    let (hypervisor, guards) = (Arc::new(hypervisor.clone()), Arc::new(FakeGuards::new(hypervisor.clone())));
    Doors { hypervisor, guards, movers: Arc::new(movers.clone()) }
}

async fn back_up(doors: &Doors, settings: &JobSettings, attempt: &Attempt) -> Manifest {
    let prepared = PreparedBackup::new(doors, settings, attempt, &BackupSpec::default()).await.unwrap();
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    match prepared.run(doors, settings, attempt, hooks, &Stop::never()).await.end {
        End::Completed { value } => BackupResult::from_value(&value).unwrap().manifest,
        other => panic!("{other:?}"),
    }
}

fn spec(level: ValidationLevel, sweep: bool) -> ValidateSpec {
    ValidateSpec { level, sweep, ..ValidateSpec::default() }
}

fn validation(outcome: &Outcome) -> Validation {
    match &outcome.end {
        End::Completed { value } => ValidateResult::from_value(value).unwrap().validation,
        other => panic!("{other:?}"),
    }
}

fn codes(validation: &Validation) -> Vec<FindingCode> {
    validation.findings.iter().map(|finding| finding.code).collect()
}

/// A validation that sweeps; the world is the one of the latest beginning.
struct Sweeping {
    world: Mutex<Arc<World>>,
}

impl Sweeping {
    async fn new() -> Self {
        Self { world: Mutex::new(Arc::new(World::new(spec(ValidationLevel::Content, true)).await)) }
    }

    fn world(&self) -> Arc<World> {
        self.world.lock().unwrap().clone()
    }
}

#[async_trait]
impl Case for Sweeping {
    type Context = Context;

    async fn begin(&self) -> Context {
        let world = Arc::new(World::new(spec(ValidationLevel::Content, true)).await);
        let context = world.context(world.plan());
        *self.world.lock().unwrap() = world;
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let world = self.world();
        let text = include_str!("../../../tests/fixtures/validate-plan.json");
        recipe(&serde_json::from_str(text).unwrap(), &world.attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        // Not from memory: what was found is in the records.
        let (found, world) = (crashed.validation.clone(), self.world());
        drop(crashed);
        let mut context = world.context(world.plan());
        context.validation = found;
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        self.world().stains()
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        let world = self.world();
        let staging = world.movers.staging(SHARE).into_iter().map(|name| format!("left-over {name}"));
        world.stains().into_iter().chain(staging).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_validation_completes_and_unwinds_from_every_step() {
    let case = Sweeping::new().await;
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_validation_may_run_twice() {
    harness::every_step_may_run_twice(&Sweeping::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_validation_that_is_cut_off_after_any_record_recovers() {
    harness::stopped_after_every_record_it_recovers(&Sweeping::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_repository_is_a_completed_job_with_findings() {
    let world = World::new(spec(ValidationLevel::Content, false)).await;
    world.movers.damage(SHARE, world.manifest.backup_id);
    let found = validation(&world.run().await);
    assert_eq!(codes(&found), [FindingCode::ContentDiffers, FindingCode::StagingLeftOver]);
    let damage = &found.findings[0];
    assert_eq!((damage.backup_id, damage.offset), (Some(world.manifest.backup_id), Some(0)));
    assert_eq!((found.errors, found.warnings, found.instances, found.backups), (1, 1, 1, 1));
    assert_eq!(world.movers.staging(SHARE).len(), 1, "nothing is removed that was not to be");
    assert_eq!(world.stains(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_takes_what_is_dead_and_leaves_what_is_alive() {
    let world = World::new(spec(ValidationLevel::Catalogue, true)).await;
    let found = validation(&world.run().await);
    assert_eq!(codes(&found), [FindingCode::LeftOverRemoved]);
    assert_eq!((found.warnings, found.notes), (0, 1));
    assert!(world.movers.staging(SHARE).is_empty());

    let alive = world.writes("alive").await;
    let found = validation(&world.run().await);
    assert_eq!(codes(&found), [FindingCode::StagingInUse]);
    assert_eq!(world.movers.staging(SHARE).len(), 1);
    drop(alive);
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_cannot_be_written_to_is_looked_at_all_the_same() {
    let world = World::new(spec(ValidationLevel::Content, true)).await;
    world.movers.repository(SHARE, |repository| repository.read_only = true);
    world.movers.fail("sweep", 1, Failure::new(Code::RepositoryReadOnly, "it cannot be written to"));
    let outcome = world.run().await;
    let found = validation(&outcome);
    assert_eq!(codes(&found), [FindingCode::NotWritable, FindingCode::StagingLeftOver]);
    assert_eq!(outcome.warnings.len(), 1, "what could not be removed is told");
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_told_though_the_sweep_does_not_work() {
    let world = World::new(spec(ValidationLevel::Content, true)).await;
    let told = |outcome: &Outcome| {
        assert_eq!(codes(&validation(outcome)), [FindingCode::StagingLeftOver], "{outcome:?}");
        outcome.warnings.iter().map(|warning| warning.code).collect::<Vec<_>>()
    };
    for code in [Code::MoverDied, Code::Stalled, Code::HostIo] {
        world.movers.fail("sweep", 1, Failure::new(code, "it does not work"));
        assert!(told(&world.run().await).contains(&code), "{code}");
    }
    world.movers.hang("sweep");
    assert!(told(&world.run().await).contains(&Code::MoverUnresponsive));
    world.movers.unhang("sweep");
    assert_eq!(world.stains(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_looked_at_is_a_failure() {
    let world = World::new(spec(ValidationLevel::Content, false)).await;
    world.movers.fail("validate", 1, Failure::new(Code::RepositoryIo, "it is gone"));
    let End::Failed { failure } = world.run().await.end else { panic!() };
    assert_eq!(failure.code, Code::RepositoryIo);
    world.movers.hang("validate");
    let End::Failed { failure } = world.run().await.end else { panic!() };
    assert_eq!(failure.code, Code::Stalled);
    world.movers.unhang("validate");
    assert_eq!(world.stains(), Vec::<String>::new());
}
