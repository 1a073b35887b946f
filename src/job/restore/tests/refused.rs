//! What a restore refuses before it has read the backup a dry run refuses as well, in the same words; or says it, where it may pass.

use std::pin::Pin;

use super::devices::{DEVICE, LOGICAL, NUMBERS};
use super::*;
use crate::host::mover::User;
use crate::mover::protocol::BlockDevice;

impl World {
    /// What is unusual about such a restore, or why there is none.
    async fn told(&mut self, dry_run: bool) -> Result<Vec<String>, Failure> {
        self.spec().dry_run = dry_run;
        let Work::Restore(spec) = &self.attempt.job.work else { unreachable!() };
        let plan = prepare(&self.doors(), &self.attempt, spec).await?;
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        match run(&self.doors(), &self.settings, &self.attempt, plan, hooks, &Stop::never()).await.end {
            End::Completed { value } => Ok(serde_json::from_value(value["warnings"].clone()).unwrap_or_default()),
            End::Failed { failure } | End::Stopped { failure } => Err(failure),
        }
    }
}

/// What the restore refuses, and whether that may pass.
async fn both(mut world: World, code: Code, may_pass: bool) {
    let refused = world.told(false).await.unwrap_err();
    assert_eq!(refused.code, code, "{refused:#}");
    match (world.told(true).await, may_pass) {
        (Ok(warnings), true) => {
            let said = format!("as it is now, this is refused: {}", refused.text);
            assert!(warnings.contains(&said), "{refused:#}: {warnings:?}");
        }
        (Err(told), false) => {
            assert_eq!((told.code, told.text, told.causes), (refused.code, refused.text, refused.causes));
        }
        (told, _) => panic!("{refused:#}: {told:?}"),
    }
}

async fn on_devices(change: impl FnOnce(&mut World)) -> World {
    let mut world = devices::world(true).await;
    change(&mut world);
    world
}

async fn on_files(change: impl FnOnce(&mut World)) -> World {
    let mut world = World::new().await;
    change(&mut world);
    world
}

fn logical(name: &str) -> BlockDevice {
    BlockDevice::Logical { group: "vg".to_owned(), name: name.to_owned(), uuid: None, bytes: 1 << 20 }
}

fn disk(target: &str) -> crate::model::id::DiskTarget {
    target.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_not_as_a_restore_needs_it_is_refused_by_both() {
    type Changed = Pin<Box<dyn Future<Output = World>>>;
    let stopped =
        |world: &World| FakeInstance::shut_off("web").with_id(world.instance).disk("vda", 1 << 30).disk("vdb", 1 << 20);
    let refused: Vec<(Changed, Code)> = vec![
        (Box::pin(on_devices(|world| world.spec().overwrite = false)), Code::DiskUnsupported),
        (
            Box::pin(on_devices(|world| {
                let small = BlockDevice::Bare { numbers: NUMBERS, bytes: 1 << 20 };
                world.movers.add_device(Path::new(DEVICE), small);
            })),
            Code::DiskUnsupported,
        ),
        (
            Box::pin(on_devices(|world| world.movers.add_device(Path::new(LOGICAL), logical("other")))),
            Code::DiskUnsupported,
        ),
        (Box::pin(on_files(|world| world.spec().disks = vec![disk("vdz")])), Code::DiskNotFound),
        (Box::pin(on_files(|world| drop(world.spec().onto.insert(disk("vda"), disk("vdz"))))), Code::DiskNotFound),
        (Box::pin(on_files(|world| drop(world.spec().onto.insert(disk("vda"), disk("vdb"))))), Code::DiskAmbiguous),
        (Box::pin(on_files(|world| world.spec().backup_id = BackupId::draw())), Code::BackupNotFound),
        (Box::pin(on_files(|world| world.movers.rename_volume(&volume("vda"), Path::new("/gone")))), Code::VolumeIo),
        (Box::pin(on_files(move |world| world.hypervisor.add(stopped(world).pinned_chains()))), Code::DiskUnsupported),
    ];
    for (world, code) in refused {
        both(world.await, code, false).await;
    }
    let gone = Failure::new(Code::CredentialsUnreadable, "libvirt has no such secret");
    let keyless = rbd::world().await;
    keyless.hypervisor.fail("secret", 2, gone);
    both(keyless, Code::CredentialsUnreadable, false).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_refused_by_the_one_and_said_by_the_other() {
    let stopped =
        |world: &World| FakeInstance::shut_off("web").with_id(world.instance).disk("vda", 1 << 30).disk("vdb", 1 << 20);
    let started = on_files(|world| world.hypervisor.set_state(world.instance, PowerState::Running)).await;
    both(started, Code::InstanceRunning, true).await;
    let saved = on_files(move |world| world.hypervisor.add(stopped(world).saved_memory())).await;
    both(saved, Code::InstanceStateUnsupported, true).await;
    for user in [User::Process("process 1 (`qemu`)".to_owned()), User::Device("the loop device `loop3`".to_owned())] {
        let used = on_devices(|world| world.movers.use_device(NUMBERS.device, Some(user))).await;
        both(used, Code::InUseElsewhere, true).await;
    }
    let mut mounted = on_devices(|world| world.movers.use_volume(Path::new(DEVICE), true)).await;
    // The fake finds it when it claims the device, after it has read the backup.
    assert!(mounted.told(true).await.unwrap().iter().any(|said| said.contains(DEVICE)));
    assert_eq!(mounted.told(false).await.unwrap_err().code, Code::InUseElsewhere);
}

/// Its own QEMU has them open.
#[tokio::test(start_paused = true)]
async fn of_an_instance_that_runs_nobody_asks_who_uses_its_devices() {
    let mut world = devices::world(true).await;
    world.hypervisor.set_state(world.instance, PowerState::Running);
    world.movers.use_device(NUMBERS.device, Some(User::Process("process 1 (`qemu`)".to_owned())));
    let told = world.told(true).await.unwrap();
    assert!(told.iter().any(|said| said.contains("not shut off")), "{told:?}");
    assert!(!told.iter().any(|said| said.contains("process 1")), "{told:?}");
}
