//! The harness that every saga has to stand, for restores to elsewhere on the fakes; then what is particular to them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod dry_run;
mod particular;
mod unfinished;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::*;
use crate::failure::Code;
use crate::host::guard::fake::FakeGuards;
use crate::host::hypervisor::Hypervisor;
use crate::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
use crate::host::mover::FakeMovers;
use crate::job::backup::PreparedBackup;
use crate::job::{Hooks, JobProgress};
use crate::model::destination::{DiskBus, MacAddresses, NewInstanceSpec};
use crate::model::id::{BackupId, InstallationId, InstanceId, JobId};
use crate::model::instance::{ImageFormat, PowerState};
use crate::model::job::{BackupSpec, Job, RestoreNewSpec, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::saga::End;
use crate::saga::harness::{self, Case, MemoryLog};

const SHARE: &str = "/share";

/// What `to` says, in the words of a publisher.
#[derive(Clone, Copy)]
enum To {
    NewInstance,
    Attached,
    File,
}

/// A host with an instance that runs, another one that a volume can be attached to, and a backup of the first.
struct World {
    hypervisor: FakeHypervisor,
    movers: FakeMovers,
    settings: JobSettings,
    web: InstanceId,
    other: InstanceId,
    attempt: Attempt,
    manifest: Manifest,
    _directory: tempfile::TempDir,
}

fn definition(id: InstanceId) -> String {
    let disk = |target: &str| {
        format!(
            "<disk type='file'><source file='/fake/web/{target}.qcow2'/><target dev='{target}' bus='virtio'/></disk>"
        )
    };
    let (vda, vdb) = (disk("vda"), disk("vdb"));
    format!(
        "<domain type='kvm'><name>web</name><uuid>{id}</uuid><os><nvram>/nvram/web_VARS.fd</nvram></os><devices>{vda}{vdb}\
         <disk device='cdrom'><source file='/images/gone.iso'/><target dev='sda'/></disk>\
         <interface type='network'><mac address='52:54:00:00:00:01'/></interface></devices></domain>"
    )
}

impl World {
    async fn new(to: To) -> Self {
        Self::of(to, "").await
    }

    /// With that definition of the instance, of another uuid; the usual one if it is empty.
    async fn of(to: To, of: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nvram = directory.path().join("VARS.fd");
        std::fs::write(&nvram, "variables").unwrap();
        let web = FakeInstance::running("web").disk("vda", 1 << 30).disk("vdb", 1 << 20).nvram(&nvram);
        let id = web.id();
        let usual = definition(id);
        let other = FakeInstance::running("other").disk("vda", 1 << 20);
        let other_id = other.id();
        let hypervisor = FakeHypervisor::new()
            .with_instance(web.definition(if of.is_empty() { &usual } else { of }))
            .with_instance(other);
        let movers = FakeMovers::new();
        let repository = movers.add_repository(SHARE);
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
            volume_roots: vec!["/images".into()],
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
        let disks = if matches!(to, To::NewInstance) { Vec::new() } else { vec!["vdb".parse().unwrap()] };
        let to = match to {
            To::NewInstance => Destination::NewInstance(NewInstanceSpec {
                name: "web-2".parse().unwrap(),
                id: None,
                mac_addresses: MacAddresses::New,
                directory: None,
                volumes: [("vdb".parse().unwrap(), "/images/data.qcow2".into())].into(),
                start: true,
            }),
            To::Attached | To::File => Destination::Volume(NewVolumeSpec {
                path: "/images/data.raw".into(),
                format: ImageFormat::Raw,
                attach: matches!(to, To::Attached).then(|| Attach {
                    instance: InstanceRef::Name("other".parse().unwrap()),
                    target: "vdb".parse().unwrap(),
                    bus: DiskBus::Virtio,
                }),
            }),
        };
        let backup_id = manifest.backup_id;
        attempt.job.work = Work::RestoreNew(RestoreNewSpec { backup_id, disks, to, dry_run: false });
        Self { hypervisor, movers, settings, web: id, other: other_id, attempt, manifest, _directory: directory }
    }

    fn doors(&self) -> Doors {
        doors(&self.hypervisor, &self.movers)
    }

    fn spec(&mut self) -> &mut RestoreNewSpec {
        match &mut self.attempt.job.work {
            Work::RestoreNew(spec) => spec,
            _ => unreachable!(),
        }
    }

    fn new_instance(&mut self) -> &mut NewInstanceSpec {
        match &mut self.spec().to {
            Destination::NewInstance(spec) => spec,
            _ => unreachable!(),
        }
    }

    fn volume(&mut self) -> &mut NewVolumeSpec {
        match &mut self.spec().to {
            Destination::Volume(spec) => spec,
            _ => unreachable!(),
        }
    }

    async fn prepare(&self) -> Result<ElsewherePlan, Failure> {
        let Work::RestoreNew(spec) = &self.attempt.job.work else { unreachable!() };
        prepare(&self.doors(), &self.settings.volume_roots, &self.attempt, spec).await
    }

    fn context(&self, plan: ElsewherePlan) -> Context {
        let (progress, _) = watch::channel(JobProgress::default());
        Context::new(&self.doors(), &self.settings, &self.attempt, plan, &progress)
    }

    async fn run(&self) -> Outcome {
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let plan = self.prepare().await.unwrap();
        run(&self.doors(), &self.settings, &self.attempt, plan, hooks, &Stop::never()).await
    }

    async fn refused(&self) -> Failure {
        match self.run().await.end {
            End::Failed { failure } => {
                assert_eq!(self.wrong(false).await, Vec::<String>::new());
                failure
            }
            other => panic!("{other:?}"),
        }
    }

    /// What stands on the host that was not there, or is held.
    async fn added(&self) -> (BTreeSet<PathBuf>, Vec<(String, PowerState)>, Vec<String>) {
        let volumes = self.movers.volumes().into_iter().collect();
        let instances = self.hypervisor.instances().await.unwrap().into_iter();
        let added = instances.filter(|one| ![self.web, self.other].contains(&one.id));
        let disks = self.hypervisor.find(&InstanceRef::Id(self.other)).await.unwrap().disks;
        let disks = disks.iter().map(|disk| disk.target.to_string()).filter(|target| target != "vda");
        (volumes, added.map(|one| (one.name.to_string(), one.state)).collect(), disks.collect())
    }

    fn held(&self) -> Vec<String> {
        let mut held: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        if self.movers.is_leased(SHARE, self.web) {
            held.push("a lease".to_owned());
        }
        held.extend(self.hypervisor.leftovers_beside(&self.movers.checkpoints()));
        held
    }

    /// What is not as it should be where the files have their names, and nobody knows whether libvirt was asked to take them.
    async fn touched(&self) -> Vec<String> {
        let mut wrong = self.held();
        let (volumes, instances, disks) = self.added().await;
        let expected = self.names();
        if (&volumes, instances.len(), disks.len()) != (&expected, 0, 0) {
            wrong.push(format!("{volumes:?} {instances:?} {disks:?}"));
        }
        wrong
    }

    /// The names of the new files.
    fn names(&self) -> BTreeSet<PathBuf> {
        let Work::RestoreNew(RestoreNewSpec { to, .. }) = &self.attempt.job.work else { unreachable!() };
        let names: &[&str] = match to {
            Destination::NewInstance(_) => &["/images/data.qcow2", "/images/web-2-vda.qcow2", "/images/web-2_VARS.fd"],
            Destination::Volume(_) => &["/images/data.raw"],
        };
        names.iter().map(PathBuf::from).collect()
    }

    /// What is not as it should be where everything has come to be, or nothing.
    async fn wrong(&self, everything: bool) -> Vec<String> {
        let mut wrong = self.held();
        let (volumes, instances, disks) = self.added().await;
        let Work::RestoreNew(RestoreNewSpec { to, .. }) = &self.attempt.job.work else { unreachable!() };
        if volumes != (if everything { self.names() } else { BTreeSet::new() }) {
            wrong.push(format!("{volumes:?}"));
        }
        let makes = |one: bool| usize::from(everything && one);
        let attaches = matches!(to, Destination::Volume(NewVolumeSpec { attach: Some(_), .. }));
        if instances.len() != makes(matches!(to, Destination::NewInstance(_))) || disks.len() != makes(attaches) {
            wrong.push(format!("{instances:?} {disks:?}"));
        }
        wrong
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
        End::Completed { value } => crate::job::backup::BackupResult::from_value(&value).unwrap().manifest,
        other => panic!("{other:?}"),
    }
}

/// A restore; the world is the one of the latest beginning.
struct Elsewhere {
    to: To,
    dry_run: bool,
    world: Mutex<(Arc<World>, ElsewherePlan)>,
}

impl Elsewhere {
    async fn new(to: To) -> Self {
        Self::of(to, false).await
    }

    async fn of(to: To, dry_run: bool) -> Self {
        let mut world = World::new(to).await;
        world.spec().dry_run = dry_run;
        let plan = world.prepare().await.unwrap();
        Self { to, dry_run, world: Mutex::new((Arc::new(world), plan)) }
    }

    fn world(&self) -> (Arc<World>, ElsewherePlan) {
        self.world.lock().unwrap().clone()
    }
}

#[async_trait]
impl Case for Elsewhere {
    type Context = Context;

    async fn begin(&self) -> Context {
        let mut world = World::new(self.to).await;
        world.spec().dry_run = self.dry_run;
        let plan = world.prepare().await.unwrap();
        let context = world.context(plan.clone());
        *self.world.lock().unwrap() = (Arc::new(world), plan);
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let (world, plan) = self.world();
        recipe(&plan, &world.attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        // Not from memory: what was chosen and written is in the records, before anything that needs it.
        let (plan, choice, made) = ((*crashed.plan).clone(), crashed.choice.clone(), crashed.made.clone());
        let told = crashed.told.clone();
        drop(crashed);
        let mut context = self.world().0.context(plan);
        (context.choice, context.made, context.told, context.place_begun) = (choice, made, told, true);
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        self.world().0.wrong(false).await
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        self.world().0.wrong(!self.dry_run).await
    }

    async fn touched(&self, _context: &mut Context) -> Option<Vec<String>> {
        (!self.dry_run && !matches!(self.to, To::File)).then_some(())?;
        Some(self.world().0.touched().await)
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_to_elsewhere_completes_and_unwinds_from_every_step() {
    for to in [To::NewInstance, To::Attached, To::File] {
        let case = Elsewhere::new(to).await;
        harness::completes(&case).await;
        harness::unwinds_from_every_step(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_restore_to_elsewhere_may_run_twice() {
    for to in [To::NewInstance, To::Attached, To::File] {
        harness::every_step_may_run_twice(&Elsewhere::new(to).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_to_elsewhere_that_is_cut_off_after_any_record_recovers() {
    for to in [To::NewInstance, To::Attached, To::File] {
        harness::stopped_after_every_record_it_recovers(&Elsewhere::new(to).await).await;
    }
}
