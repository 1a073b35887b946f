//! What both movers have to do where a block device is written over.

use std::any::Any;
use std::path::{Path, PathBuf};

use longshore::failure::Code;
use longshore::host::mover::{Mover, User};
use longshore::model::instance::ImageFormat;
use longshore::model::manifest::Manifest;
use longshore::mover::protocol::{BlockDevice, DeviceNumbers, Reply, Request, RestoredVolume, VolumePlace};

use super::{SOON, Stands, World, done, exchange, published, refused, restore, restored, started};

/// A world with block devices.
pub trait Devices: World {
    /// One that is made new, as large as the disk, and holds something else.
    fn device(&self) -> PathBuf;
    /// What it holds.
    fn holds(&self, device: &Path) -> Stands;
    /// The host itself uses it until that is dropped.
    fn use_device(&self, device: &Path) -> Box<dyn Any>;
    /// A process has it open until that is dropped.
    fn open_device(&self, device: &Path, numbers: DeviceNumbers) -> Box<dyn Any>;
    /// A loop device is on top of it until that is dropped.
    fn lay_over(&self, device: &Path, numbers: DeviceNumbers) -> Box<dyn Any>;
}

pub async fn numbers(mover: &mut Box<dyn Mover>, path: &Path) -> DeviceNumbers {
    match mover.ask(Request::LookAtDevices { paths: vec![path.to_owned()] }, SOON).await.unwrap() {
        Reply::Devices { devices } => match devices[..] {
            [BlockDevice::Bare { numbers, bytes: 1.. }] => numbers,
            _ => panic!("{devices:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub fn onto(manifest: &Manifest, path: &Path, numbers: DeviceNumbers) -> RestoredVolume {
    let place = VolumePlace::Device { volume: path.to_owned(), numbers };
    RestoredVolume { format: ImageFormat::Raw, place, ..restored(manifest, path) }
}

/// The backup was read and found good, and nothing was written over.
pub async fn read(mover: &mut Box<dyn Mover>, manifest: &Manifest, volumes: &[RestoredVolume]) {
    let reply = mover.ask(restore(manifest, volumes), SOON).await;
    assert!(matches!(reply, Ok(Reply::Copied { .. })), "{reply:?}");
    done(mover, Request::Compare).await;
}

pub async fn a_device_is_written_over_once_it_was_read_and_claimed_and_never_twice(world: &dyn Devices) {
    let (device, file) = (world.device(), world.volume());
    let (mut mover, manifest) = published(world, "over").await;
    let numbers = numbers(&mut mover, &device).await;
    let volumes = [onto(&manifest, &device, numbers), restored(&manifest, &file)];
    for early in [Request::Claim, Request::Overwrite] {
        assert_eq!(refused(&mut mover, early).await.code, Code::Internal);
    }
    read(&mut mover, &manifest, &volumes).await;
    assert_eq!(refused(&mut mover, Request::Overwrite).await.code, Code::Internal, "it was not claimed");
    done(&mut mover, Request::Claim).await;
    assert_eq!(world.holds(&device), Stands::Old);
    done(&mut mover, Request::Overwrite).await;
    assert_eq!(world.holds(&device), Stands::Restored);
    assert_eq!(world.stands(&file), Stands::Old);
    for again in [Request::Claim, Request::Overwrite] {
        assert_eq!(refused(&mut mover, again).await.code, Code::Internal);
    }
    done(&mut mover, exchange(&volumes)).await;
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    assert_eq!(world.stands(&file), Stands::Restored);
    mover.stop().await.unwrap();
    // Another mover, after a crash, has nothing to do there.
    let mut next = started(world, "next").await;
    done(&mut next, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    done(&mut next, Request::Exchange { volumes: volumes[..1].to_vec(), only_go_on: true }).await;
    for late in [Request::Claim, Request::Overwrite] {
        assert_eq!(refused(&mut next, late).await.code, Code::Internal);
    }
    assert_eq!(world.holds(&device), Stands::Restored);
    next.stop().await.unwrap();
}

/// Not every process of a machine can be looked at by everybody.
async fn user_of(world: &dyn Devices, numbers: DeviceNumbers) -> Option<(DeviceNumbers, User)> {
    world.movers().usage(&[numbers], None).await.unwrap().user
}

pub async fn a_device_that_is_in_use_is_not_written_over(world: &dyn Devices) {
    let device = world.device();
    let (mut mover, manifest) = published(world, "in-use").await;
    let numbers = numbers(&mut mover, &device).await;
    let volumes = [onto(&manifest, &device, numbers)];
    read(&mut mover, &manifest, &volumes).await;
    let user = world.use_device(&device);
    assert_eq!(refused(&mut mover, Request::Claim).await.code, Code::InUseElsewhere);
    drop(user);
    assert_eq!(refused(&mut mover, Request::Overwrite).await.code, Code::Internal);
    assert_eq!(user_of(world, numbers).await, None);
    let user = world.open_device(&device, numbers);
    let Some((found, User::Process(who))) = user_of(world, numbers).await else { panic!("a process has it open") };
    assert!(found == numbers && who.starts_with("process "), "{who}");
    drop(user);
    let on_top = world.lay_over(&device, numbers);
    let Some((found, User::Device(what))) = user_of(world, numbers).await else { panic!("something is on top of it") };
    assert!(found == numbers && what.starts_with("the loop device `"), "{what}");
    drop(on_top);
    assert_eq!(user_of(world, numbers).await, None);
    let missing = Request::LookAtDevices { paths: vec![world.volume()] };
    assert_eq!(refused(&mut mover, missing).await.code, Code::DiskUnsupported);
    assert_eq!(world.holds(&device), Stands::Old);
    mover.stop().await.unwrap();
}

pub async fn what_was_read_is_not_written_once_something_else_was_asked_for(world: &dyn Devices) {
    let device = world.device();
    let (mut mover, manifest) = published(world, "given-up").await;
    let numbers = numbers(&mut mover, &device).await;
    let volumes = [onto(&manifest, &device, numbers)];
    for claimed in [false, true] {
        read(&mut mover, &manifest, &volumes).await;
        if claimed {
            done(&mut mover, Request::Claim).await;
        }
        done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
        for late in [Request::Claim, Request::Overwrite] {
            assert_eq!(refused(&mut mover, late).await.code, Code::Internal);
        }
    }
    world.damage(&manifest);
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::BackupDamaged);
    assert_eq!(refused(&mut mover, Request::Claim).await.code, Code::Internal);
    assert_eq!(world.holds(&device), Stands::Old);
    mover.stop().await.unwrap();
}
