//! The fake mover passes the contract, and fails and hangs as it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "contract/mover.rs"]
mod contract;

use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::devices::Devices;
use contract::{Stands, World, done, opened, record, refused, sealed, stage};
use longshore::failure::{Code, Failure};
use longshore::host::mover::{self, FakeMovers, FakeVolume, Movers};
use longshore::model::id::{BackupId, InstanceId, RepositoryId};
use longshore::model::manifest::{BasedOn, ChangesFoundBy, Manifest};
use longshore::model::network::{NetworkAccess, SecretRef};
use longshore::model::repository::{Repository, RepositoryType};
use longshore::mover::protocol::{
    BlockDevice, ByteSource, CopyDisk, DeviceNumbers, NamedKey, Reply, Request, StorageKey,
};

const ADDRESS: &str = "/mnt/nas";
const VOLUME: &str = "/images/web.qcow2";

struct FakeWorld {
    movers: FakeMovers,
    id: RepositoryId,
}

impl FakeWorld {
    fn new() -> Self {
        let movers = FakeMovers::new();
        let id = movers.add_repository(ADDRESS);
        movers.repository(ADDRESS, |repository| repository.same_device = true).unwrap();
        Self { movers, id }
    }
}

/// Has a volume open until it is dropped.
struct User(FakeMovers, PathBuf);

impl Drop for User {
    fn drop(&mut self) {
        self.0.use_volume(&self.1, false);
    }
}

impl World for FakeWorld {
    fn movers(&self) -> &dyn Movers {
        &self.movers
    }

    fn repository(&self) -> Repository {
        Repository {
            id: self.id,
            repository_type: RepositoryType::Directory,
            address: ADDRESS.into(),
            options: Vec::new(),
            credentials: None,
        }
    }

    fn disk(&self) -> CopyDisk {
        let source = ByteSource::Export { socket: "/run/x.sock".into(), name: "vda".into(), dirty: None };
        CopyDisk {
            target: "vda".parse().unwrap(),
            source,
            virtual_bytes: Some(1 << 20),
            format: None,
            base: None,
            since: None,
        }
    }

    fn staging(&self) -> Vec<String> {
        self.movers.staging(ADDRESS)
    }

    fn published(&self) -> Vec<Manifest> {
        self.movers.published(ADDRESS)
    }

    fn is_busy(&self) -> bool {
        self.movers.is_mounted(ADDRESS) || !self.movers.running().is_empty()
    }

    fn volume(&self) -> PathBuf {
        self.movers.add_volume(Path::new(VOLUME));
        VOLUME.into()
    }

    fn stands(&self, path: &Path) -> Stands {
        match self.movers.volume(path) {
            None => Stands::Nothing,
            Some(FakeVolume::Old) => Stands::Old,
            Some(FakeVolume::Restored { .. } | FakeVolume::Record { .. }) => Stands::Restored,
        }
    }

    fn put(&self, _volume: &Path, path: &Path) {
        self.movers.add_volume(path);
    }

    fn rename(&self, from: &Path, to: &Path) {
        self.movers.rename_volume(from, to);
    }

    fn use_volume(&self, path: &Path) -> Box<dyn std::any::Any> {
        self.movers.use_volume(path, true);
        Box::new(User(self.movers.clone(), path.to_owned()))
    }

    fn damage(&self, manifest: &Manifest) {
        self.movers.damage(ADDRESS, manifest.backup_id);
    }

    fn put_child(&self, parent: &Manifest) -> Manifest {
        let mut child = Manifest { backup_id: BackupId::draw(), number: parent.number + 1, ..parent.clone() };
        for disk in &mut child.disks {
            disk.based_on = Some(BasedOn {
                backup_id: parent.backup_id,
                content_root: disk.content_root.clone(),
                found_by: ChangesFoundBy::Hashes,
            });
        }
        self.movers.repository(ADDRESS, |share| share.put(child.clone()));
        child
    }

    fn pin(&self, manifest: &Manifest, pinned: bool) {
        self.movers.repository(ADDRESS, |share| share.pin(manifest.backup_id, pinned));
    }
}

/// Where its block device is.
const DEVICE: &str = "/dev/sdx";
const NUMBERS: DeviceNumbers = DeviceNumbers { device: 0x840, whole: 0x840, sequence: None };

impl Devices for FakeWorld {
    fn device(&self) -> PathBuf {
        self.movers.add_device(Path::new(DEVICE), BlockDevice::Bare { numbers: NUMBERS, bytes: 1 << 20 });
        DEVICE.into()
    }

    fn holds(&self, device: &Path) -> Stands {
        self.stands(device)
    }

    fn use_device(&self, device: &Path) -> Box<dyn std::any::Any> {
        self.use_volume(device)
    }

    fn open_device(&self, _device: &Path, numbers: DeviceNumbers) -> Box<dyn std::any::Any> {
        self.use_by(numbers, mover::User::Process("process 1 (`qemu`)".to_owned()))
    }

    fn lay_over(&self, _device: &Path, numbers: DeviceNumbers) -> Box<dyn std::any::Any> {
        self.use_by(numbers, mover::User::Device("the loop device `loop0`".to_owned()))
    }
}

impl FakeWorld {
    fn use_by(&self, numbers: DeviceNumbers, user: mover::User) -> Box<dyn std::any::Any> {
        self.movers.use_device(numbers.device, Some(user));
        Box::new(UsedDevice(self.movers.clone(), numbers.device))
    }
}

struct UsedDevice(FakeMovers, u64);

impl Drop for UsedDevice {
    fn drop(&mut self) {
        self.0.use_device(self.1, None);
    }
}

macro_rules! contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::$name(&FakeWorld::new()).await;
        })*
    };
}

contract! {
    backups_are_published_in_order_and_leave_nothing
    a_discarded_backup_leaves_nothing
    what_is_not_the_repository_that_was_meant_is_refused
    a_lease_has_one_holder
    a_published_backup_is_neither_staged_nor_published_again
    a_manifest_that_names_what_is_not_there_is_not_published
    what_was_not_copied_is_not_sealed
    a_volume_is_not_read_without_its_key
    records_have_plain_names
    a_dropped_mover_is_gone_and_a_stopped_one_answers_no_more
    a_published_backup_takes_the_place_of_the_volume
    new_volumes_that_are_not_wanted_are_removed_and_the_old_ones_stay
    what_cannot_be_restored_is_refused_and_nothing_is_made
    a_volume_that_is_in_use_is_neither_restored_nor_exchanged
    a_repository_is_looked_at_and_its_damage_is_named
    what_is_dead_is_swept_and_what_is_alive_is_left
}

macro_rules! deletion_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::deletion::$name(&FakeWorld::new()).await;
        })*
    };
}

deletion_contract! {
    backups_go_leaf_first_and_their_numbers_are_not_given_again
    a_child_takes_over_what_its_parent_held
    a_pinned_backup_stays_and_what_is_not_leased_as_well
    what_cannot_be_merged_is_refused_and_nothing_is_made
}

macro_rules! devices_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::devices::$name(&FakeWorld::new()).await;
        })*
    };
}

devices_contract! {
    a_device_is_written_over_once_it_was_read_and_claimed_and_never_twice
    a_device_that_is_in_use_is_not_written_over
    what_was_read_is_not_written_once_something_else_was_asked_for
}

macro_rules! new_files_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::new_files::$name(&FakeWorld::new()).await;
        })*
    };
}

new_files_contract! {
    new_files_get_their_names_all_at_once_and_lose_them_again
    no_new_file_is_made_where_something_is_or_outside_of_the_roots
    records_are_read
    what_was_made_is_known_again_and_nothing_else_is_taken_for_it
}

#[tokio::test]
async fn what_is_shown_to_the_host_is_written_inspected_and_taken_away() {
    let above = tempfile::tempdir().unwrap();
    let place = above.path().join("place");
    let world = FakeWorld::new();
    contract::what_is_shown_to_the_host_is_written_inspected_and_taken_away(&world, &place, 1 << 20, |_| {}).await;
    assert!(world.movers.exposed().is_empty());
}

#[tokio::test]
async fn images_that_are_there_are_named_and_stay() {
    let world = FakeWorld::new();
    let there = ["volumes/web", "volumes/web.previous"];
    there.iter().for_each(|image| world.movers.add_volume(Path::new(image)));
    world.movers.use_volume(Path::new(there[1]), true);
    let secret = SecretRef::Usage("test".to_owned());
    let key = NamedKey { secret: secret.clone(), key: StorageKey::new("c2VjcmV0".to_owned().into()) };
    let access = NetworkAccess { secret: Some(secret), ..NetworkAccess::default() };
    let mut mover = contract::started(&world, "m").await;
    contract::images::images_that_are_there_are_named_and_stay(&mut mover, (key, &access), there, "volumes/web.new")
        .await;
    assert_eq!(world.movers.volumes().len(), 2);
}

#[tokio::test]
async fn a_scripted_failure_comes_as_often_as_it_was_told_and_has_no_effect() {
    let world = FakeWorld::new();
    let mut mover = opened(&world, "m").await;
    let instance = InstanceId::draw();
    done(&mut mover, contract::lease(instance)).await;
    world.movers.fail("stage", 2, Failure::new(Code::RepositoryIo, "scripted"));
    for _ in 0..2 {
        assert_eq!(refused(&mut mover, stage(instance, BackupId::draw())).await.code, Code::RepositoryIo);
    }
    assert!(world.staging().is_empty());
    done(&mut mover, stage(instance, BackupId::draw())).await;
    world.movers.fail("start", 1, Failure::new(Code::MoverDied, "scripted"));
    assert_eq!(world.movers.start(&"n".parse().unwrap()).await.err().unwrap().code, Code::MoverDied);
}

#[tokio::test]
async fn an_answer_can_be_lost_after_the_effect() {
    let world = FakeWorld::new();
    let mut mover = opened(&world, "m").await;
    let manifest = sealed(&world, &mut mover, InstanceId::draw(), BackupId::draw()).await;
    world.movers.fail_after("publish", 1, Failure::new(Code::MoverDied, "scripted"));
    let request = Request::Publish { manifest: Box::new(manifest.clone()) };
    assert_eq!(refused(&mut mover, request).await.code, Code::MoverDied);
    assert_eq!(world.published().len(), 1);
    assert_eq!(contract::publish(&mut mover, &manifest).await, 1);
}

#[tokio::test]
async fn a_hanging_request_passes_its_deadline_or_goes_on() {
    let world = FakeWorld::new();
    world.movers.hang("open");
    let mut mover = contract::started(&world, "m").await;
    let open = || Request::Open { repository: world.repository(), same_device_ok: true, need_bytes: 0, writer: None };
    let failure = mover.ask(open(), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(failure.code, Code::MoverUnresponsive);
    assert!(!world.movers.is_mounted(ADDRESS));
    let movers = world.movers.clone();
    let (asked, ()) = tokio::join!(mover.ask(open(), Duration::from_secs(30)), async { movers.unhang("open") });
    asked.unwrap();
    assert!(world.movers.is_mounted(ADDRESS));
}

#[tokio::test]
async fn a_lost_lease_is_told_fences_the_staging_and_stops_the_commit() {
    let world = FakeWorld::new();
    let mut mover = opened(&world, "m").await;
    let lost = mover.lost().unwrap();
    let instance = InstanceId::draw();
    let manifest = sealed(&world, &mut mover, instance, BackupId::draw()).await;
    world.movers.lose_lease(ADDRESS, instance);
    assert_eq!(lost.await.unwrap().code, Code::LeaseLost);
    assert!(world.staging().is_empty());
    let failure = refused(&mut mover, Request::Publish { manifest: Box::new(manifest) }).await;
    assert_eq!(failure.code, Code::LeaseLost);
    done(&mut mover, Request::Release).await;
    assert!(world.movers.is_leased(ADDRESS, instance), "by the one who took it over");
}

#[tokio::test]
async fn a_killed_mover_leaves_its_staging_to_the_next_holder_of_the_lease() {
    let world = FakeWorld::new();
    let mut mover = opened(&world, "m").await;
    let lost = mover.lost().unwrap();
    let instance = InstanceId::draw();
    done(&mut mover, contract::lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    done(&mut mover, record()).await;
    assert!(world.movers.kill("m"));
    assert_eq!(lost.await.unwrap().code, Code::MoverDied);
    assert_eq!(refused(&mut mover, Request::Seal).await.code, Code::MoverDied);
    assert!(!world.is_busy());
    assert_eq!(world.staging().len(), 1);
    let mut next = opened(&world, "n").await;
    done(&mut next, contract::lease(instance)).await;
    assert!(world.staging().is_empty());
}

#[tokio::test]
async fn what_came_of_an_exchange_may_not_be_known_and_is_asked_for_again() {
    let world = FakeWorld::new();
    let volume = world.volume();
    let (mut mover, manifest) = contract::published(&world, "m").await;
    let volumes = vec![contract::restored(&manifest, &volume)];
    mover.ask(contract::restore(&manifest, &volumes), contract::SOON).await.unwrap();
    let exchange = || contract::exchange(&volumes);
    let failure = Failure::new(Code::VolumeIo, "scripted");
    world.movers.not_known("exchange", 1, failure.clone());
    assert_eq!(mover.ask(exchange(), contract::SOON).await.unwrap(), Reply::NotKnown { failure });
    assert_eq!(world.stands(&volume), Stands::Old);
    done(&mut mover, exchange()).await;
    let restored = FakeVolume::Restored { backup: manifest.backup_id, disk: "vda".parse().unwrap() };
    assert_eq!(world.movers.volume(&volume), Some(restored));
    assert_eq!(world.movers.volumes(), [volumes[0].place.previous().unwrap().to_owned(), volume]);
}
