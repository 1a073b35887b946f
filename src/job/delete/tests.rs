//! The harness that every saga has to stand, for deletions on the fakes; then what is particular to them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::*;
use crate::failure::Code;
use crate::host::guard::fake::FakeGuards;
use crate::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use crate::host::mover::FakeMovers;
use crate::job::JobProgress;
use crate::job::backup::{BackupResult, PreparedBackup};
use crate::model::deletion::DeleteMode;
use crate::model::id::{BackupId, InstallationId, InstanceId, JobId};
use crate::model::job::{BackupSpec, Job, RetryPolicy, RunKey, Work};
use crate::model::manifest::{BasedOn, ChangesFoundBy, Manifest};
use crate::model::repository::{Repository, RepositoryType};
use crate::saga::harness::{self, Case, MemoryLog};
use crate::saga::{End, Stopper};

const SHARE: &str = "/share";

/// A repository with a chain of three backups of an instance that is on no host any more.
struct World {
    hypervisor: FakeHypervisor,
    movers: FakeMovers,
    settings: JobSettings,
    attempt: Attempt,
    /// From the full one up.
    chain: Vec<Manifest>,
}

impl World {
    /// The backup of that place in the chain is to be deleted.
    async fn new(place: usize, mode: DeleteMode) -> Self {
        let instance = FakeInstance::shut_off("web").disk("vda", 1 << 30).disk("vdb", 1 << 20);
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance);
        let movers = FakeMovers::new();
        let repository = movers.add_repository(SHARE);
        let settings = JobSettings {
            host: "kvm-07".parse().unwrap(),
            installation: InstallationId::draw(),
            run_dir: "/run".into(),
            scratch_dir: "/run".into(),
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
        let full = back_up(&doors(&hypervisor, &movers), &settings, &attempt).await;
        let mut chain = vec![full];
        for number in 2..=3 {
            chain.push(child_of(chain.last().unwrap(), number));
        }
        movers.repository(SHARE, |share| chain.iter().for_each(|manifest| share.put(manifest.clone())));
        attempt.job.key.job_id = JobId::draw();
        attempt.job.work = Work::Delete(DeleteSpec { backup_id: chain[place].backup_id, mode, dry_run: false });
        Self { hypervisor: FakeHypervisor::new(), movers, settings, attempt, chain }
    }

    fn instance(&self) -> InstanceId {
        self.chain[0].instance_id
    }

    fn doors(&self) -> Doors {
        doors(&self.hypervisor, &self.movers)
    }

    fn spec(&self) -> DeleteSpec {
        let Work::Delete(spec) = self.attempt.job.work else { unreachable!() };
        spec
    }

    async fn plan(&self) -> DeletePlan {
        prepare(&self.doors(), &self.settings, &self.attempt, &self.spec()).await.unwrap()
    }

    fn context(&self, plan: DeletePlan) -> Context {
        let (progress, _) = watch::channel(JobProgress::default());
        Context::new(&self.doors(), &self.settings, &self.attempt, plan, &progress)
    }

    async fn run(&self) -> Outcome {
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        run(&self.doors(), &self.settings, &self.attempt, self.plan().await, hooks, &Stop::never()).await
    }

    /// What stands where it should not, where those of these places in the chain should be left, each with what it is based on.
    fn wrong(&self, left: &[(usize, Option<usize>)]) -> Vec<String> {
        let mut wrong: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        if self.movers.is_leased(SHARE, self.instance()) {
            wrong.push("a lease".to_owned());
        }
        wrong.extend(self.movers.staging(SHARE));
        let deleted = self.movers.repository(SHARE, |share| share.deleted()).unwrap();
        wrong.extend(deleted.iter().map(|backup| format!("files of {backup}")));
        let found: Vec<_> =
            self.movers.published(SHARE).iter().map(|found| (found.backup_id, found.parent())).collect();
        let id = |place: &usize| self.chain[*place].backup_id;
        let wanted: Vec<_> = left.iter().map(|(place, parent)| (id(place), parent.as_ref().map(id))).collect();
        if found != wanted {
            wrong.push(format!("{found:?} and not {wanted:?}"));
        }
        wrong
    }
}

const UNTOUCHED: &[(usize, Option<usize>)] = &[(0, None), (1, Some(0)), (2, Some(1))];

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

/// An incremental backup on top of that one.
fn child_of(parent: &Manifest, number: u64) -> Manifest {
    let mut child = Manifest { backup_id: BackupId::draw(), number, ..parent.clone() };
    for disk in &mut child.disks {
        disk.based_on = Some(BasedOn {
            backup_id: parent.backup_id,
            content_root: disk.content_root.clone(),
            found_by: ChangesFoundBy::Hashes,
        });
    }
    child
}

/// A deletion; the world is the one of the latest beginning.
struct Deletion {
    place: usize,
    mode: DeleteMode,
    dry_run: bool,
    left: &'static [(usize, Option<usize>)],
    world: Mutex<Option<Arc<World>>>,
}

impl Deletion {
    fn new(place: usize, mode: DeleteMode, left: &'static [(usize, Option<usize>)]) -> Self {
        Self { place, mode, dry_run: false, left, world: Mutex::default() }
    }

    /// Every way in which a backup can go, and a dry run.
    fn all() -> [Self; 5] {
        [
            Self { dry_run: true, ..Self::new(1, DeleteMode::Only, UNTOUCHED) },
            Self::new(1, DeleteMode::Only, &[(0, None), (2, Some(0))]),
            Self::new(0, DeleteMode::Only, &[(1, None), (2, Some(1))]),
            Self::new(2, DeleteMode::LeafOnly, &[(0, None), (1, Some(0))]),
            Self::new(1, DeleteMode::Chain, &[(0, None)]),
        ]
    }

    async fn world(&self) -> Arc<World> {
        let known = self.world.lock().unwrap().clone();
        match known {
            Some(world) => world,
            None => Arc::new(World::new(self.place, self.mode).await),
        }
    }
}

#[async_trait]
impl Case for Deletion {
    type Context = Context;

    async fn begin(&self) -> Context {
        let mut world = World::new(self.place, self.mode).await;
        world.attempt.job.work = Work::Delete(DeleteSpec { dry_run: self.dry_run, ..world.spec() });
        let context = world.context(world.plan().await);
        *self.world.lock().unwrap() = Some(Arc::new(world));
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let text = include_str!("../../../tests/fixtures/delete-plan.json");
        let attempt = self.world.lock().unwrap().as_ref().map(|world| world.attempt.clone());
        let plan = DeletePlan { dry_run: self.dry_run, ..serde_json::from_str(text).unwrap() };
        recipe(&plan, &attempt.unwrap())
    }

    async fn reopen(&self, crashed: Context) -> Context {
        // Not from memory: what was chosen and merged is in the records, before anything that needs it.
        let (plan, chosen, merged) = ((*crashed.plan).clone(), crashed.chosen.clone(), crashed.merged);
        drop(crashed);
        let mut context = self.world().await.context(plan);
        (context.chosen, context.merged) = (chosen, merged);
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        self.world().await.wrong(UNTOUCHED)
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        self.world().await.wrong(self.left)
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_completes_and_unwinds_from_every_step() {
    for case in Deletion::all() {
        case.begin().await;
        harness::completes(&case).await;
        harness::unwinds_from_every_step(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_deletion_may_run_twice() {
    for case in Deletion::all() {
        case.begin().await;
        harness::every_step_may_run_twice(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_cut_off_after_any_record_recovers() {
    for case in Deletion::all() {
        case.begin().await;
        harness::stopped_after_every_record_it_recovers(&case).await;
    }
}

fn result(outcome: &Outcome) -> DeleteResult {
    match &outcome.end {
        End::Completed { value } => DeleteResult::from_value(value).unwrap(),
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
async fn the_result_says_what_went_and_what_is_free_again() {
    let world = World::new(1, DeleteMode::Chain).await;
    let told = result(&world.run().await);
    let gone: Vec<_> = told.plan.deleted.iter().map(|deleted| deleted.backup_id).collect();
    assert_eq!(gone, [world.chain[2].backup_id, world.chain[1].backup_id]);
    assert_eq!(told.freed_bytes, world.chain[1].stored_bytes() + world.chain[2].stored_bytes());
    assert_eq!((told.plan.merged, told.dry_run), (None, false));

    let world = World::new(1, DeleteMode::Only).await;
    let told = result(&world.run().await);
    let images: u64 = world.chain[1].disks.iter().map(|disk| disk.file_bytes).sum();
    assert_eq!(told.freed_bytes, world.chain[1].stored_bytes() - images, "the child has taken over all of the images");
    assert_eq!(told.plan.merged.unwrap().backup_id, world.chain[2].backup_id);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_the_same_changes_nothing_and_needs_no_lease() {
    for (place, mode) in [(1, DeleteMode::Only), (1, DeleteMode::Chain), (2, DeleteMode::LeafOnly)] {
        let mut world = World::new(place, mode).await;
        world.attempt.job.work = Work::Delete(DeleteSpec { dry_run: true, ..world.spec() });
        world.movers.lose_lease(SHARE, world.instance());
        let told = result(&world.run().await);
        assert!(told.dry_run && told.plan.deleted.last().unwrap().backup_id == world.chain[place].backup_id);
        assert_eq!(told.plan.merged.is_some(), mode == DeleteMode::Only);
        assert_eq!(world.wrong(UNTOUCHED), ["a lease"], "that of the other worker");
    }
}

/// The worker that comes after a crash has no mover. One that is asked to stop does not wait for an answer.
#[tokio::test(start_paused = true)]
async fn a_dry_run_that_is_cut_off_says_the_same_and_hears_a_stop() {
    let mut world = World::new(1, DeleteMode::Only).await;
    world.attempt.job.work = Work::Delete(DeleteSpec { dry_run: true, ..world.spec() });
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = || Hooks { log: &log, progress: &progress };
    let (doors, plan) = (world.doors(), world.plan().await);
    let told = run(&doors, &world.settings, &world.attempt, plan.clone(), hooks(), &Stop::never()).await;
    assert!(result(&told).dry_run);
    let committing = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
    let records = &log.records()[..=committing];
    assert_eq!(unwind(&doors, &world.settings, &world.attempt, plan.clone(), records, hooks()).await, told);

    world.movers.hang("chains");
    let (stopper, stop) = Stopper::new();
    let running = run(&doors, &world.settings, &world.attempt, plan, hooks(), &stop);
    let somebody = async {
        while !world.movers.is_hanging("chains") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stopper.stop(Failure::new(Code::Cancelled, "not wanted any more"));
    };
    let (outcome, ()) = tokio::join!(running, somebody);
    assert!(matches!(&outcome.end, End::Stopped { failure } if failure.code == Code::Cancelled), "{outcome:?}");
    assert_eq!(world.wrong(UNTOUCHED), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_may_not_go_stays() {
    let world = World::new(0, DeleteMode::LeafOnly).await;
    assert_eq!(failed(&world.run().await).code, Code::BackupHasChildren);
    assert_eq!(world.wrong(UNTOUCHED), Vec::<String>::new());

    let world = World::new(1, DeleteMode::Chain).await;
    world.movers.repository(SHARE, |share| share.pin(world.chain[2].backup_id, true));
    assert_eq!(failed(&world.run().await).code, Code::BackupPinned);
    assert_eq!(world.wrong(UNTOUCHED), Vec::<String>::new());

    let world = World::new(2, DeleteMode::Only).await;
    world.movers.lose_lease(SHARE, world.instance());
    assert_eq!(failed(&world.run().await).code, Code::LeaseHeld);

    let world = World::new(1, DeleteMode::Only).await;
    world.movers.damage(SHARE, world.chain[1].backup_id);
    assert_eq!(failed(&world.run().await).code, Code::BackupDamaged);
    assert_eq!(world.wrong(UNTOUCHED), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_went_in_an_earlier_run_is_not_found() {
    let world = World::new(2, DeleteMode::Only).await;
    result(&world.run().await);
    assert_eq!(failed(&world.run().await).code, Code::BackupNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_went_in_an_earlier_attempt_is_deleted_and_it_is_told() {
    let mut world = World::new(1, DeleteMode::Only).await;
    world.movers.fail_after("delete", 3, Failure::new(Code::RepositoryIo, "nobody heard that it was done"));
    assert_eq!(failed(&world.run().await).code, Code::RepositoryIo);
    world.attempt.attempt = 2;
    let told = result(&world.run().await);
    assert_eq!((told.plan.deleted.len(), told.plan.merged, told.freed_bytes), (0, None, 0));
    assert!(told.warnings.iter().any(|warning| warning.contains("an earlier attempt")), "{:?}", told.warnings);
    assert_eq!(world.wrong(&[(0, None), (2, Some(0))]), Vec::<String>::new());
    world.attempt.job.work = Work::Delete(DeleteSpec { dry_run: true, ..world.spec() });
    assert_eq!(failed(&world.run().await).code, Code::BackupNotFound, "a dry run deletes nothing in any attempt");
}

#[tokio::test(start_paused = true)]
async fn no_two_attempts_give_merged_images_the_same_names() {
    let mut world = World::new(1, DeleteMode::Only).await;
    let mut names = std::collections::BTreeSet::new();
    for job_id in [JobId::draw(), JobId::draw()] {
        for run in [1, u32::MAX] {
            for attempt in [1, u32::MAX] {
                (world.attempt.job.key, world.attempt.attempt) = (RunKey { job_id, run }, attempt);
                let suffix = world.plan().await.suffix;
                assert!(suffix.len() <= 100, "what a mover takes: {suffix}");
                assert!(names.insert(suffix));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_named_has_to_be_here() {
    let mut world = World::new(2, DeleteMode::Only).await;
    world.attempt.job.instance = Some(InstanceRef::Name("web".parse().unwrap()));
    let refused = prepare(&world.doors(), &world.settings, &world.attempt, &world.spec()).await.unwrap_err();
    assert_eq!(refused.code, Code::InstanceNotHere);
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_dies_while_it_deletes_is_followed_by_another() {
    // It was done, and nobody heard so.
    for (place, left) in [(1, &[(0, None), (2, Some(0))]), (2, &[(0, None), (1, Some(0))])] {
        let world = World::new(place, DeleteMode::Only).await;
        world.movers.fail_after("delete", 1, Failure::new(Code::MoverDied, "the mover ended"));
        result(&world.run().await);
        assert_eq!(world.wrong(left), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_a_warning() {
    let world = World::new(2, DeleteMode::Only).await;
    world.movers.fail("remove_deleted", 1, Failure::new(Code::RepositoryIo, "scripted"));
    let outcome = world.run().await;
    result(&outcome);
    assert_eq!(outcome.warnings[0].code, Code::RepositoryIo);
}
