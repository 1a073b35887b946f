//! A restore of an instance on a block device that is written over and a logical volume that is exchanged.

use super::*;
use crate::failure::{Class, LogicalName, Remains};
use crate::host::mover::User;
use crate::model::instance::{DiskSource, ImageFormat};
use crate::mover::protocol::{BlockDevice, DeviceNumbers};
use crate::saga::Stopper;

pub(super) const DEVICE: &str = "/dev/sdx";
pub(super) const NUMBERS: DeviceNumbers = DeviceNumbers { device: 0x840, whole: 0x840, sequence: None };
pub(super) const LOGICAL: &str = "/dev/vg/web";

fn qemu() -> Option<User> {
    Some(User::Process("process 1 (`qemu`)".to_owned()))
}

/// A host with such an instance, whose device is only written over where the job asks for that.
pub(super) async fn world(overwrite: bool) -> World {
    let block = |path: &str| DiskSource::Block { path: path.into(), format: ImageFormat::Raw };
    let instance = FakeInstance::shut_off("web").disk_at("vda", 1 << 30, block(DEVICE));
    let mut world = World::of(instance.disk_at("vdb", 1 << 20, block(LOGICAL))).await;
    world.spec().overwrite = overwrite;
    world.movers.add_device(Path::new(DEVICE), BlockDevice::Bare { numbers: NUMBERS, bytes: 2 << 30 });
    let logical = BlockDevice::Logical { group: "vg".to_owned(), name: "web".to_owned(), uuid: None, bytes: 1 << 20 };
    world.movers.add_device(Path::new(LOGICAL), logical);
    world
}

impl World {
    /// What stands at each path but what should; none for what may hold anything.
    fn wrong_on_devices(&self, device: Option<&FakeVolume>, logical: &FakeVolume) -> Vec<String> {
        let mut wrong: Vec<_> = self.movers.running().into_iter().map(|name| format!("mover {name}")).collect();
        wrong.extend(self.movers.is_leased(SHARE, self.instance).then(|| "a lease".to_owned()));
        wrong.extend(self.hypervisor.leftovers());
        let mut standing = self.standing();
        let found = standing.remove(Path::new(DEVICE));
        wrong.extend(device.filter(|wanted| found.as_ref() != Some(wanted)).map(|_| format!("{DEVICE} is {found:?}")));
        let found = standing.remove(Path::new(LOGICAL));
        wrong.extend((found.as_ref() != Some(logical)).then(|| format!("{LOGICAL} is {found:?}")));
        wrong.extend(standing.into_keys().map(|path| format!("{} is there", path.display())));
        wrong
    }

    fn restored_as(&self, disk: &str) -> FakeVolume {
        FakeVolume::Restored { backup: self.manifest.backup_id, disk: disk.parse().unwrap() }
    }

    fn all_old(&self) -> Vec<String> {
        self.wrong_on_devices(Some(&FakeVolume::Old), &FakeVolume::Old)
    }
}

/// Such a restore; the world is the one of the latest beginning.
struct WithDevices(Mutex<Arc<World>>);

impl WithDevices {
    async fn new() -> Self {
        Self(Mutex::new(Arc::new(world(true).await)))
    }

    fn world(&self) -> Arc<World> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Case for WithDevices {
    type Context = Context;

    async fn begin(&self) -> Context {
        let world = Arc::new(world(true).await);
        let context = world.context(world.plan().await);
        *self.0.lock().unwrap() = world;
        context
    }

    fn steps(&self) -> Vec<Step<Context>> {
        let plan = serde_json::from_str(include_str!("../../../../tests/fixtures/restore-plan.json")).unwrap();
        recipe(&RestorePlan { overwrite: true, ..plan }, &self.world().attempt)
    }

    async fn reopen(&self, crashed: Context) -> Context {
        let (plan, choice, copied) = ((*crashed.plan).clone(), crashed.choice.clone(), crashed.copied.clone());
        let overwriting = crashed.overwriting;
        drop(crashed);
        let mut context = self.world().context(plan);
        (context.choice, context.copied, context.overwriting) = (choice, copied, overwriting);
        context
    }

    /// What is written over has no way back.
    async fn stains(&self, context: &mut Context) -> Vec<String> {
        let device = Some(&FakeVolume::Old).filter(|_| !context.overwriting);
        self.world().wrong_on_devices(device, &FakeVolume::Old)
    }

    async fn shortcomings(&self, _context: &mut Context) -> Vec<String> {
        let world = self.world();
        world.wrong_on_devices(Some(&world.restored_as("vda")), &world.restored_as("vdb"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_onto_devices_stands_the_harness() {
    let case = WithDevices::new().await;
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::every_step_may_run_twice(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

/// The run has failed for good, and names the device.
fn unfinished(outcome: &Outcome, cause: &str) {
    let failure = failed(outcome);
    assert_eq!((failure.code, failure.class()), (Code::RestoreUnfinished, Class::Permanent), "{failure:#}");
    assert!(failure.text.contains(DEVICE) && !failure.text.contains(LOGICAL), "{failure:#}");
    assert!(format!("{failure:#}").contains(cause), "{failure:#}");
    let warned = outcome.warnings.iter().any(|warning| warning.text.contains(DEVICE));
    assert!(warned && outcome.left_over.is_empty(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn the_device_is_written_over_and_the_logical_volume_exchanged() {
    let world = world(true).await;
    let outcome = world.run().await;
    let result = result(&outcome);
    let volumes: Vec<_> = result.volumes.iter().map(|one| (one.volume.to_str().unwrap(), &one.previous)).collect();
    assert_eq!(volumes, [(DEVICE, &None), (LOGICAL, &None)]);
    assert_eq!(world.wrong_on_devices(Some(&world.restored_as("vda")), &world.restored_as("vdb")), [""; 0]);
    assert_eq!(
        result.warnings,
        ["disk `vda` had 1073741824 bytes at the backup and has 2147483648: those beyond are left as they are"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_device_alone_needs_no_exchange() {
    let mut world = world(true).await;
    world.spec().disks = vec!["vda".parse().unwrap()];
    result(&world.run().await);
    assert_eq!(world.wrong_on_devices(Some(&world.restored_as("vda")), &FakeVolume::Old), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_may_not_be_written_over_is_refused_and_named() {
    let world = world(false).await;
    let outcome = world.run().await;
    let failure = failed(&outcome);
    assert_eq!(failure.code, Code::DiskUnsupported);
    assert!(failure.text.contains("`overwrite`") && failure.text.contains("`vda`"), "{failure:#}");
    assert_eq!(world.all_old(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn until_the_writing_begins_everything_can_be_taken_back() {
    let damaged = || Failure::new(Code::BackupDamaged, "disk `vda` at offset 0");
    for word in ["look_at_devices", "restore", "compare", "claim"] {
        let world = world(true).await;
        world.movers.fail(word, 1, damaged());
        assert_eq!(failed(&world.run().await).code, Code::BackupDamaged, "{word}");
        assert_eq!(world.all_old(), [""; 0], "{word}");
    }
    let world = world(true).await;
    world.movers.use_device(NUMBERS.device, qemu());
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::InUseElsewhere);
    assert!(failed(&outcome).text.contains("process 1 (`qemu`)"), "{outcome:?}");
    assert_eq!(world.all_old(), [""; 0]);
    world.movers.use_device(NUMBERS.device, Some(User::Device("the loop device `loop3`".to_owned())));
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::InUseElsewhere);
    assert!(failed(&outcome).text.contains("the loop device `loop3` is on top of `/dev/sdx`"), "{outcome:?}");
    assert_eq!(world.all_old(), [""; 0]);
    // Nobody is not what an error says.
    let world = self::world(true).await;
    world.movers.fail("usage", 1, Failure::new(Code::HostIo, "`/proc` cannot be read"));
    assert_eq!(failed(&world.run().await).code, Code::HostIo);
    assert_eq!(world.all_old(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_could_not_be_looked_at_is_told_once() {
    let world = world(true).await;
    world.movers.hide("2 processes");
    let outcome = world.run().await;
    let warnings = result(&outcome).warnings;
    let said = "it cannot be seen whether 2 processes of this host use `/dev/sdx`";
    assert_eq!(warnings.iter().filter(|warning| warning.as_str() == said).count(), 1, "{warnings:?}");
}

/// A logical volume is looked for by its name in its group, as it may not be active.
#[tokio::test(start_paused = true)]
async fn a_new_logical_volume_that_could_not_be_removed_is_left_over_by_its_name() {
    let world = world(true).await;
    world.movers.fail("compare", 1, Failure::new(Code::ContentMismatch, "here it ends"));
    world.movers.fail("remove_fresh", u32::MAX, Failure::new(Code::VolumeIo, "lvm2 does not answer"));
    let outcome = world.run().await;
    let [left] = &outcome.left_over[..] else { panic!("{outcome:?}") };
    let name = format!("web.longshore-{}.new", world.plan().await.mover_name);
    let logical = vec![LogicalName { group: "vg".to_owned(), name }];
    assert_eq!(left.failure.remains.as_deref(), Some(&Remains::Volumes { files: Vec::new(), logical }));
}

/// An old one is told of with the run that completed, once it was tried as often as one that is taken back.
#[tokio::test(start_paused = true)]
async fn an_old_logical_volume_that_could_not_be_removed_is_left_over() {
    for (times, is_left) in [(2, false), (3, true)] {
        let world = world(true).await;
        world.movers.fail("remove_previous", times, Failure::new(Code::InUseElsewhere, "somebody has it open"));
        let outcome = world.run().await;
        result(&outcome);
        let name = format!("web.longshore-{}.previous", world.plan().await.mover_name);
        let logical = vec![LogicalName { group: "vg".to_owned(), name }];
        let left: Vec<_> = outcome.left_over.iter().map(|left| left.failure.remains.as_deref()).collect();
        let all = [Some(&Remains::Volumes { files: Vec::new(), logical })];
        assert_eq!(left, if is_left { &all[..] } else { &[] }, "{outcome:?}");
    }
}

/// A mover that can't be ended is told of as well, but is not all that is left: once it has ended, it is not looked for what it left any more.
#[tokio::test(start_paused = true)]
async fn a_mover_that_cannot_be_ended_does_not_hide_the_volumes_that_it_leaves() {
    let world = world(true).await;
    let stuck = Remains::Process { pid: std::process::id(), started: 0, directories: vec!["/proc/self".into()] };
    world.movers.fail("compare", 1, Failure::new(Code::MoverUnresponsive, "it does not answer"));
    let failure = Failure::new(Code::MoverUnresponsive, "it did not die").leaving(stuck.clone());
    world.movers.fail("stop", 1, failure);
    let outcome = world.run().await;
    let left: Vec<_> = outcome.left_over.iter().filter_map(|left| left.failure.remains.as_deref()).collect();
    let name = format!("web.longshore-{}.new", world.plan().await.mover_name);
    let logical = vec![LogicalName { group: "vg".to_owned(), name }];
    assert!(left.contains(&&Remains::Volumes { files: Vec::new(), logical }), "{outcome:?}");
    assert!(left.contains(&&stuck), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn who_opens_the_device_later_is_found_before_it_is_written_to() {
    let world = world(true).await;
    world.movers.hang("compare");
    let (outcome, ()) = tokio::join!(world.run(), async {
        while world.standing().len() < 3 {
            sleep(Duration::from_millis(100)).await;
        }
        world.movers.use_device(NUMBERS.device, qemu());
        world.movers.unhang("compare");
    });
    assert_eq!(failed(&outcome).code, Code::InUseElsewhere);
    assert_eq!(world.all_old(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_opens_the_device_while_it_is_claimed_is_found_before_it_is_written_to() {
    let world = world(true).await;
    world.movers.hang("claim");
    let (outcome, ()) = tokio::join!(world.run(), async {
        while !world.movers.is_hanging("claim") {
            sleep(Duration::from_millis(100)).await;
        }
        world.movers.use_device(NUMBERS.device, qemu());
        world.movers.unhang("claim");
    });
    assert_eq!(failed(&outcome).code, Code::InUseElsewhere);
    assert_eq!(world.all_old(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn whatever_ends_it_once_the_writing_has_begun_leaves_it_unfinished() {
    for (word, code) in
        [("overwrite", Code::VolumeIo), ("overwrite", Code::MoverDied), ("exchange", Code::InUseElsewhere)]
    {
        let world = world(true).await;
        world.movers.fail(word, 1, Failure::new(code, "here it ends"));
        unfinished(&world.run().await, "here it ends");
        assert_eq!(world.wrong_on_devices(None, &FakeVolume::Old), [""; 0], "{word}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_or_a_stop_amid_the_writing_ends_it() {
    let world = world(true).await;
    world.movers.hang("overwrite");
    let (outcome, ()) = tokio::join!(world.run(), async {
        while !world.movers.is_hanging("overwrite") {
            sleep(Duration::from_millis(100)).await;
        }
        world.hypervisor.set_state(world.instance, PowerState::Running);
    });
    unfinished(&outcome, "was started");
    assert_eq!(world.all_old(), [""; 0], "the fake had written nothing yet");
    let world = self::world(true).await;
    world.movers.hang("overwrite");
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let (stopper, stop) = Stopper::new();
    let doors = world.doors();
    let running = run(&doors, &world.settings, &world.attempt, world.plan().await, hooks, &stop);
    let (outcome, ()) = tokio::join!(running, async {
        while !world.movers.is_hanging("overwrite") {
            sleep(Duration::from_millis(100)).await;
        }
        stopper.stop(Failure::new(Code::HostDraining, "the host is drained"));
    });
    unfinished(&outcome, "the host is drained");
}

/// The fake starts at once what libvirt may still be opening.
#[tokio::test(start_paused = true)]
async fn a_start_amid_the_exchange_of_logical_volumes_leaves_it_unfinished() {
    let mut world = world(false).await;
    world.spec().disks = vec!["vdb".parse().unwrap()];
    world.movers.hang("exchange");
    let (outcome, ()) = tokio::join!(world.run(), async {
        while !world.movers.is_hanging("exchange") {
            sleep(Duration::from_millis(100)).await;
        }
        world.hypervisor.set_state(world.instance, PowerState::Running);
        world.movers.unhang("exchange");
    });
    let failure = failed(&outcome);
    assert_eq!(failure.code, Code::RestoreUnfinished, "{failure:#}");
    assert!(format!("{failure:#}").contains("was started"), "{failure:#}");
    assert!(outcome.warnings.iter().any(|warning| warning.text.contains(LOGICAL)), "{outcome:?}");
    let standing = world.standing();
    assert_eq!(standing.get(Path::new(LOGICAL)), Some(&world.restored_as("vdb")));
    assert!(standing.values().filter(|volume| **volume == FakeVolume::Old).count() == 2, "nothing is removed");
}

/// What was chosen, and whether the writing had begun, is known from the records alone.
#[tokio::test(start_paused = true)]
async fn after_a_crash_nothing_is_written_again() {
    for (word, begun) in [("compare", false), ("overwrite", true), ("exchange", true)] {
        let world = world(true).await;
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let (doors, never, plan) = (world.doors(), Stop::never(), world.plan().await);
        world.movers.hang(word);
        let running = run(&doors, &world.settings, &world.attempt, plan.clone(), hooks, &never);
        assert!(timeout(Duration::from_secs(30), running).await.is_err(), "it hangs in `{word}`, and is dropped");
        world.movers.unhang(word);
        let records = log.records();
        let before = world.standing().remove(Path::new(DEVICE)).unwrap();
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let outcome = unwind(&doors, &world.settings, &world.attempt, plan, &records, hooks).await;
        match begun {
            true => unfinished(&outcome, ""),
            false => assert_eq!(failed(&outcome).code, Code::Interrupted),
        }
        assert_eq!(world.wrong_on_devices(Some(&before), &FakeVolume::Old), [""; 0], "{word}");
    }
}
