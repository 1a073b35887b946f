//! A restore of an instance with a file and an RBD image whose cluster asks for a key: each mover that needs it gets it.

use super::*;
use crate::host::hypervisor::Hypervisor;
use crate::model::instance::{Disk, DiskSource};
use crate::model::network::{NetworkAccess, SecretRef};

const IMAGE: &str = "volumes/web";

pub(super) fn secret() -> SecretRef {
    SecretRef::Usage("client.instances".to_owned())
}

/// A host with an instance whose second disk is there.
async fn world_with(source: &str) -> World {
    let source: DiskSource = serde_json::from_str(source).unwrap();
    let instance = FakeInstance::shut_off("web").disk("vda", 1 << 30).disk_at("vdb", 1 << 20, source);
    let world = World::of(instance).await;
    world.movers.add_volume(&volume("vda"));
    world.movers.add_volume(Path::new(IMAGE));
    world
}

pub(super) async fn world() -> World {
    world_with(&source(&NetworkAccess { secret: Some(secret()), ..NetworkAccess::default() }, "raw")).await
}

fn source(access: &NetworkAccess, format: &str) -> String {
    let access = serde_json::to_string(access).unwrap();
    format!(r#"{{"network":{{"protocol":"rbd","name":"{IMAGE}","format":"{format}","access":{access}}}}}"#)
}

impl World {
    fn wrong_on_rbd(&self, restored: bool) -> Vec<String> {
        let mut wrong: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        wrong.extend(self.movers.is_leased(SHARE, self.instance).then(|| "a lease".to_owned()));
        let backup = self.manifest.backup_id;
        let expected = |disk: &str| match restored {
            true => FakeVolume::Restored { backup, disk: disk.parse().unwrap() },
            false => FakeVolume::Old,
        };
        let wanted = BTreeMap::from([(volume("vda"), expected("vda")), (IMAGE.into(), expected("vdb"))]);
        let standing = self.standing();
        wrong.extend((standing != wanted).then(|| format!("{standing:?}")));
        wrong
    }
}

/// Such a restore; the world is the one of the latest beginning.
struct OnRbd(Mutex<Arc<World>>);

impl OnRbd {
    fn world(&self) -> Arc<World> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Case for OnRbd {
    type Context = Context;

    async fn begin(&self) -> Context {
        let world = Arc::new(world().await);
        let context = world.context(world.plan().await);
        *self.0.lock().unwrap() = world;
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let text = include_str!("../../../../tests/fixtures/restore-plan.json");
        recipe(&serde_json::from_str(text).unwrap(), &self.world().attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        let (plan, choice, copied) = ((*crashed.plan).clone(), crashed.choice.clone(), crashed.copied.clone());
        drop(crashed);
        let mut context = self.world().context(plan);
        (context.choice, context.copied) = (choice, copied);
        context
    }

    async fn stains(&self, _context: &mut Context) -> Vec<String> {
        self.world().wrong_on_rbd(false)
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        self.world().wrong_on_rbd(true)
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_onto_rbd_stands_the_harness() {
    let case = OnRbd(Mutex::new(Arc::new(world().await)));
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::every_step_may_run_twice(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

#[tokio::test(start_paused = true)]
async fn the_key_is_in_no_record_and_its_name_is() {
    let world = world().await;
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let plan = world.plan().await;
    let written = serde_json::to_string(&plan).unwrap();
    let outcome = run(&world.doors(), &world.settings, &world.attempt, plan, hooks, &Stop::never()).await;
    assert_eq!(result(&outcome).volumes[1].volume, Path::new(IMAGE));
    let records = format!("{written} {:?} {outcome:?}", log.records());
    assert!(records.contains("client.instances") && !records.contains(KEY), "{records}");
}

#[tokio::test(start_paused = true)]
async fn without_the_key_nothing_is_made_and_another_mover_fetches_it_anew() {
    let world = world().await;
    let missing = Failure::new(Code::CredentialsUnreadable, "there is none");
    world.hypervisor.fail("secret", 1, missing);
    assert_eq!(failed(&world.run().await).code, Code::CredentialsUnreadable);
    assert_eq!(world.wrong_on_rbd(false), Vec::<String>::new());
    // The one that is asked after the first has died.
    world.movers.fail_after("exchange", 1, Failure::new(Code::MoverDied, "the mover ended"));
    result(&world.run().await);
    assert_eq!(world.wrong_on_rbd(true), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_no_new_image_can_take_the_place_of_is_refused() {
    let at_monday = NetworkAccess { snapshot: Some("monday".into()), ..NetworkAccess::default() };
    for source in [source(&NetworkAccess::default(), "qcow2"), source(&at_monday, "raw")] {
        let disk = Disk { source: Some(serde_json::from_str(&source).unwrap()), ..on_file().await };
        assert!(plan::fixed(&disk).is_some(), "{source}");
    }
    let other = r#"{"network":{"protocol":"iscsi","name":"iqn.x/1"}}"#;
    let disk = Disk { source: Some(serde_json::from_str(other).unwrap()), ..on_file().await };
    assert!(plan::fixed(&disk).unwrap().contains("iscsi"));
}

async fn on_file() -> Disk {
    let world = World::new().await;
    let instance = world.hypervisor.find(&InstanceRef::Id(world.instance)).await.unwrap();
    instance.disks.into_iter().next().unwrap()
}
