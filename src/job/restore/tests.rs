//! The harness that every saga has to stand, for a restore on the fakes; then what is particular to it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod dry_run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

mod devices;
mod rbd;
mod refused;

use super::*;
use crate::failure::Code;
use crate::host::guard::fake::FakeGuards;
use crate::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use crate::host::mover::{FakeMovers, FakeVolume};
use crate::job::backup::{BackupResult, PreparedBackup};
use crate::job::{Hooks, JobProgress};
use crate::model::id::{BackupId, InstallationId, InstanceId, InstanceRef, JobId};
use crate::model::instance::PowerState;
use crate::model::job::{BackupSpec, Job, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::saga::End;
use crate::saga::harness::{self, Case, MemoryLog};

const SHARE: &str = "/share";
/// What the storage of volumes asks for, in base64.
const KEY: &str = "aHVudGVyMg==";

/// A host with a stopped instance and one backup of it.
struct World {
    hypervisor: FakeHypervisor,
    movers: FakeMovers,
    settings: JobSettings,
    instance: InstanceId,
    attempt: Attempt,
    manifest: Manifest,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::keeping(false).await
    }

    async fn keeping(keep_previous: bool) -> Self {
        let instance = FakeInstance::shut_off("web").disk("vda", 1 << 30).disk("vdb", 1 << 20);
        let mut world = Self::of(instance).await;
        world.spec().keep_previous = keep_previous;
        for disk in ["vda", "vdb"] {
            world.movers.add_volume(&volume(disk));
        }
        world
    }

    /// With no volumes yet.
    async fn of(instance: FakeInstance) -> Self {
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance).with_secret(rbd::secret(), KEY);
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
            volume_roots: vec!["/fake".into()],
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
        attempt.job.work = Work::Restore(RestoreSpec {
            backup_id: manifest.backup_id,
            disks: Vec::new(),
            onto: Default::default(),
            keep_previous: false,
            dry_run: false,
            overwrite: false,
        });
        Self { hypervisor, movers, settings, instance: id, attempt, manifest, _directory: directory }
    }

    fn doors(&self) -> Doors {
        doors(&self.hypervisor, &self.movers)
    }

    fn spec(&mut self) -> &mut RestoreSpec {
        match &mut self.attempt.job.work {
            Work::Restore(spec) => spec,
            _ => unreachable!(),
        }
    }

    async fn plan(&self) -> RestorePlan {
        let Work::Restore(spec) = &self.attempt.job.work else { unreachable!() };
        prepare(&self.doors(), &self.attempt, spec).await.unwrap()
    }

    fn context(&self, plan: RestorePlan) -> Context {
        let (progress, _) = watch::channel(JobProgress::default());
        Context::new(&self.doors(), &self.settings, &self.attempt, plan, &progress)
    }

    async fn run(&self) -> Outcome {
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        run(&self.doors(), &self.settings, &self.attempt, self.plan().await, hooks, &Stop::never()).await
    }

    /// What stands where it should not, once a restore has ended with these in the volumes' places.
    fn wrong(&self, expected: &FakeVolume) -> Vec<String> {
        let mut wrong: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        if self.movers.is_leased(SHARE, self.instance) {
            wrong.push("a lease".to_owned());
        }
        wrong.extend(self.hypervisor.leftovers());
        for (path, found) in self.standing() {
            let expected = match expected {
                FakeVolume::Restored { backup, .. } if path == volume("vda") => {
                    FakeVolume::Restored { backup: *backup, disk: "vda".parse().unwrap() }
                }
                other => other.clone(),
            };
            if found != expected || ![volume("vda"), volume("vdb")].contains(&path) {
                wrong.push(format!("{} is {found:?}", path.display()));
            }
        }
        wrong.extend((self.standing().len() < 2).then(|| "a volume is missing".to_owned()));
        wrong
    }

    /// Every volume there is.
    fn standing(&self) -> BTreeMap<PathBuf, FakeVolume> {
        let paths = self.movers.volumes().into_iter();
        paths.filter_map(|path| self.movers.volume(&path).map(|volume| (path, volume))).collect()
    }

    fn restored(&self) -> FakeVolume {
        FakeVolume::Restored { backup: self.manifest.backup_id, disk: "vdb".parse().unwrap() }
    }
}

fn volume(disk: &str) -> PathBuf {
    Path::new("/fake/web").join(disk).with_extension("qcow2")
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

/// A restore; the world is the one of the latest beginning.
struct InPlace {
    dry_run: bool,
    world: Mutex<Arc<World>>,
}

impl InPlace {
    async fn new() -> Self {
        Self::of(false).await
    }

    async fn of(dry_run: bool) -> Self {
        Self { dry_run, world: Mutex::new(Arc::new(World::new().await)) }
    }

    fn world(&self) -> Arc<World> {
        self.world.lock().unwrap().clone()
    }
}

#[async_trait]
impl Case for InPlace {
    type Context = Context;

    async fn begin(&self) -> Context {
        let mut world = World::new().await;
        world.spec().dry_run = self.dry_run;
        let context = world.context(world.plan().await);
        *self.world.lock().unwrap() = Arc::new(world);
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let world = self.world();
        let text = include_str!("../../../tests/fixtures/restore-plan.json");
        let plan = RestorePlan { dry_run: self.dry_run, ..serde_json::from_str(text).unwrap() };
        recipe(&plan, &world.attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        // Not from memory: what was chosen and written is in the records, before anything that needs it.
        let (plan, choice, copied) = ((*crashed.plan).clone(), crashed.choice.clone(), crashed.copied.clone());
        let told = crashed.told.clone();
        drop(crashed);
        let mut context = self.world().context(plan);
        (context.choice, context.copied, context.told) = (choice, copied, told);
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        self.world().wrong(&FakeVolume::Old)
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        let world = self.world();
        world.wrong(&if self.dry_run { FakeVolume::Old } else { world.restored() })
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_completes_and_unwinds_from_every_step() {
    let case = InPlace::new().await;
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_restore_may_run_twice() {
    harness::every_step_may_run_twice(&InPlace::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_cut_off_after_any_record_recovers() {
    harness::stopped_after_every_record_it_recovers(&InPlace::new().await).await;
}

fn result(outcome: &Outcome) -> RestoreResult {
    match &outcome.end {
        End::Completed { value } => serde_json::from_value(value.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: &Outcome) -> &Failure {
    match &outcome.end {
        End::Failed { failure } => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_result_says_what_stands_where() {
    let world = World::keeping(true).await;
    let outcome = world.run().await;
    let result = result(&outcome);
    assert_eq!((result.backup_id, result.number), (world.manifest.backup_id, world.manifest.number));
    let targets: Vec<_> = result.volumes.iter().map(|one| (one.target.as_str(), one.volume.clone())).collect();
    assert_eq!(targets, [("vda", volume("vda")), ("vdb", volume("vdb"))]);
    let standing = world.standing();
    for kept in &result.volumes {
        assert_eq!(standing.get(kept.previous.as_ref().unwrap()), Some(&FakeVolume::Old));
    }
    assert_eq!((standing.len(), outcome.warnings.len(), result.warnings.len()), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_disk_is_restored_and_the_other_named_as_left() {
    let mut world = World::new().await;
    world.spec().disks = vec!["vdb".parse().unwrap()];
    let result = result(&world.run().await);
    let standing = world.standing();
    assert_eq!((standing.len(), standing.get(&volume("vda"))), (2, Some(&FakeVolume::Old)));
    assert_eq!(standing.get(&volume("vdb")), Some(&world.restored()));
    assert_eq!(result.warnings, ["disk `vda` of the instance was left as it is"]);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_shut_off_is_restored() {
    for state in [PowerState::Running, PowerState::Paused, PowerState::PausedByIoError, PowerState::ShuttingDown] {
        let world = World::new().await;
        world.hypervisor.set_state(world.instance, state);
        let Work::Restore(spec) = &world.attempt.job.work else { unreachable!() };
        let refused = prepare(&world.doors(), &world.attempt, spec).await.unwrap_err();
        assert_eq!(refused.code, Code::InstanceRunning, "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_be_resumed_or_laid_over_another_chain_is_not_restored() {
    let world = World::new().await;
    let stopped = || FakeInstance::shut_off("web").with_id(world.instance).disk("vda", 1 << 30).disk("vdb", 1 << 20);
    world.hypervisor.add(stopped().saved_memory());
    let Work::Restore(spec) = &world.attempt.job.work else { unreachable!() };
    let refused = prepare(&world.doors(), &world.attempt, spec).await.unwrap_err();
    assert_eq!(refused.code, Code::InstanceStateUnsupported);

    world.hypervisor.add(stopped().pinned_chains());
    let refused = failed(&world.run().await).clone();
    assert_eq!(refused.code, Code::DiskUnsupported);
    assert!(refused.text.contains("backing chain"), "{refused:#}");
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_started_meanwhile_has_its_old_volumes() {
    let world = World::new().await;
    world.movers.hang("compare");
    let (run, start) = (world.run(), async {
        // The new volumes stand beside the old ones.
        while world.standing().len() < 4 {
            sleep(Duration::from_millis(100)).await;
        }
        world.hypervisor.set_state(world.instance, PowerState::Running);
    });
    let (outcome, ()) = tokio::join!(run, start);
    assert_eq!(failed(&outcome).code, Code::InstanceStarted);
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_dies_while_it_exchanges_is_followed_by_another() {
    let world = World::new().await;
    world.movers.fail_after("exchange", 1, Failure::new(Code::MoverDied, "the mover ended"));
    result(&world.run().await);
    // One that died before it began is not begun by another.
    let world = World::new().await;
    world.movers.fail("exchange", 1, Failure::new(Code::MoverDied, "the mover ended"));
    assert_eq!(failed(&world.run().await).code, Code::Interrupted);
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
    let world = World::new().await;
    world.movers.not_known("exchange", 1, Failure::new(Code::VolumeIo, "it does not answer"));
    assert_eq!(failed(&world.run().await).code, Code::Interrupted);
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
    let world = World::new().await;
    world.movers.fail_after("exchange", 1, Failure::new(Code::MoverUnresponsive, "it does not answer"));
    result(&world.run().await);
    assert_eq!(world.wrong(&world.restored()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_changed_before_the_exchange_keeps_its_volumes() {
    let world = World::new().await;
    let instance = FakeInstance::shut_off("web").with_id(world.instance).disk("vda", 1 << 30);
    world.movers.hang("compare");
    let (run, change) = (world.run(), async {
        while world.standing().len() < 4 {
            sleep(Duration::from_millis(100)).await;
        }
        let _one_disk_less = world.hypervisor.clone().with_instance(instance);
        world.movers.unhang("compare");
    });
    let (outcome, ()) = tokio::join!(run, change);
    assert_eq!(failed(&outcome).code, Code::SourceChanged);
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
}

/// Needs no lease and nothing that can be written to, and the instance may run.
#[tokio::test(start_paused = true)]
async fn a_dry_run_says_what_would_be_and_does_nothing() {
    let mut world = World::new().await;
    world.spec().dry_run = true;
    world.movers.repository(SHARE, |share| share.read_only = true).unwrap();
    for state in [PowerState::ShutOff, PowerState::Running] {
        world.hypervisor.set_state(world.instance, state);
        let outcome = world.run().await;
        let End::Completed { value } = &outcome.end else { panic!("{outcome:?}") };
        let RestoreValue::DryRun(DryRun { would, warnings }) = RestoreValue::from_value(value).unwrap() else {
            panic!("{value}")
        };
        assert_eq!((would.backup_id, would.number), (world.manifest.backup_id, world.manifest.number));
        let told: Vec<_> = would.volumes.iter().map(|one| (one.target.as_str(), one.path.as_str())).collect();
        assert_eq!(told, [("vda", "/fake/web/vda.qcow2"), ("vdb", "/fake/web/vdb.qcow2")]);
        assert!(would.volumes.iter().all(|volume| volume.replaces));
        assert_eq!(would.data_bytes, world.manifest.disks.iter().map(|disk| disk.data_bytes).sum::<u64>());
        match state {
            PowerState::ShutOff => assert_eq!(warnings, Vec::<String>::new()),
            _ => assert!(warnings.len() == 1 && warnings[0].contains("is not shut off"), "{warnings:?}"),
        }
        assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
    }
}

/// Cut off where the exchange may have begun: what was chosen is known from the records alone.
#[tokio::test(start_paused = true)]
async fn a_later_worker_brings_an_exchange_to_its_end_and_begins_none() {
    for begun in [false, true] {
        let world = World::new().await;
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let plan = world.plan().await;
        let orders = if begun { "remove_previous" } else { "exchange" };
        world.movers.hang(orders);
        world.movers.warn("restore", "it has another read-ahead");
        let (doors, never) = (world.doors(), Stop::never());
        let running = run(&doors, &world.settings, &world.attempt, plan.clone(), hooks, &never);
        assert!(timeout(Duration::from_secs(60), running).await.is_err(), "it hangs in `{orders}`, and is dropped");
        world.movers.unhang(orders);
        let committing = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
        let records = &log.records()[..=committing];
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let outcome = unwind(&world.doors(), &world.settings, &world.attempt, plan, records, hooks).await;
        if begun {
            let result = result(&outcome);
            assert_eq!(result.volumes.len(), 2);
            assert_eq!(result.warnings, ["it has another read-ahead"], "told by whoever brings it to its end");
            assert_eq!(world.wrong(&world.restored()), Vec::<String>::new());
        } else {
            assert_eq!(failed(&outcome).code, Code::Interrupted);
            assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_of_which_nobody_learns_is_never_tried_anew_and_names_the_volumes() {
    let world = World::new().await;
    world.movers.hang("exchange");
    let outcome = world.run().await;
    let failure = failed(&outcome);
    assert_eq!((failure.code, failure.class()), (Code::RestoreUnfinished, crate::failure::Class::Permanent));
    let said: Vec<_> = outcome.warnings.iter().map(|warning| format!("{warning:#}")).collect();
    for disk in ["vda", "vdb"] {
        let fresh = format!("{}.longshore-", volume(disk).display());
        assert!(said.iter().any(|line| line.contains(&fresh) && line.contains(".previous")), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_backup_leaves_everything_as_it_was() {
    let world = World::new().await;
    world.movers.fail("restore", 1, Failure::new(Code::BackupDamaged, "disk `vda` at offset 0"));
    assert_eq!(failed(&world.run().await).code, Code::BackupDamaged);
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
}
