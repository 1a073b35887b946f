//! A restore of an instance with a file and an RBD image whose cluster asks for a key: each mover that needs it gets it.

use super::*;
use crate::failure::Remains;
use crate::host::hypervisor::Hypervisor;
use crate::job::look_at_images;
use crate::model::instance::{Disk, DiskSource};
use crate::model::network::{NetworkAccess, SecretRef};
use crate::saga::LeftOver;

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

#[tokio::test(start_paused = true)]
async fn an_old_image_that_could_not_be_removed_is_named_and_looked_at() {
    let world = world().await;
    world.movers.fail("remove_previous", u32::MAX, Failure::new(Code::VolumeIo, "it was cut off"));
    let outcome = world.run().await;
    let [left] = &outcome.left_over[..] else { panic!("{outcome:?}") };
    let Some(Remains::Images { files, images, .. }) = left.failure.remains.as_deref() else { panic!("{outcome:?}") };
    let image = Path::new(&images[0].image);
    assert!(world.standing().contains_key(image) && files.len() == 1, "{left:?}");
    let refused = async || look_at_images(&world.doors(), images).await.unwrap_err();
    world.hypervisor.fail("secret", 1, Failure::new(Code::CredentialsUnreadable, "there is none"));
    assert_eq!(refused().await.code, Code::CredentialsUnreadable);
    assert_eq!(world.movers.running(), Vec::<String>::new());
    // A mover that stays is known, whatever it has seen.
    let stuck = Remains::Process { pid: std::process::id(), started: 0, directories: Vec::new() };
    let stays = Failure::new(Code::MoverUnresponsive, "it did not die").leaving(stuck.clone());
    world.movers.fail("stop", 1, stays);
    assert_eq!(refused().await.remains.as_deref(), Some(&stuck));
    for _again in 0..2 {
        assert_eq!(look_at_images(&world.doors(), images).await.unwrap(), [images[0].image.as_str()]);
        assert!(world.standing().contains_key(image));
    }
    world.movers.rename_volume(image, Path::new("volumes/kept"));
    assert_eq!(look_at_images(&world.doors(), images).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_image_is_looked_at_though_it_may_be_needed_and_not_where_it_is_kept() {
    for (keeps, code) in [(false, Code::Internal), (true, Code::VolumeIo)] {
        let world = world().await;
        world.movers.fail("remove_previous", u32::MAX, Failure::new(code, "not every new volume is in its place"));
        let plan = RestorePlan { keep_previous: keeps, ..world.plan().await };
        let (progress, _) = watch::channel(JobProgress::default());
        let hooks = Hooks { log: &MemoryLog::default(), progress: &progress };
        let outcome = run(&world.doors(), &world.settings, &world.attempt, plan, hooks, &Stop::never()).await;
        let images = |left: &&LeftOver| matches!(left.failure.remains.as_deref(), Some(Remains::Images { .. }));
        assert_eq!(outcome.left_over.iter().find(images).is_none(), keeps, "{outcome:?}");
        assert!(!format!("{outcome:?}").contains("rbd rm"), "any of them may be needed: {outcome:?}");
        assert_eq!(world.standing().len(), 4, "both old ones are there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_a_new_image_cannot_have_is_a_warning() {
    let world = world().await;
    world.movers.warn("compare", "a setting is missing");
    assert_eq!(result(&world.run().await).warnings, ["a setting is missing"]);
    assert_eq!(world.wrong_on_rbd(true), Vec::<String>::new());
}
