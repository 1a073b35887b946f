//! A mover without a process and a share without a disk: the same door with the state in memory, failures and hangs
//! scripted by the request's word, and a world that a test can look at.
//!
//! It moves no bytes: a copied disk is a name and a length. A lease whose holder was killed is taken over at once, where
//! the real one takes its two minutes. The contract suite in `tests/` holds both against each other.

mod mover;
mod repository;
mod validation;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot, watch};

use super::{Mover, MoverName, Movers, Usage, User};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId, RepositoryId};
use crate::model::manifest::{Manifest, TransferUsed};
use crate::mover::protocol::{BlockDevice, DeviceNumbers, Reply};
use mover::FakeMover;
pub use repository::FakeRepository;
use repository::Holder;
pub use volumes::FakeVolume;
use volumes::Volumes;

/// Where fake movers come from, and the world they live in. Clones share that world.
#[derive(Clone, Default)]
pub struct FakeMovers {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct World {
    repositories: BTreeMap<String, FakeRepository>,
    scripts: Vec<Script>,
    hangs: BTreeSet<String>,
    warnings: Vec<(String, String)>,
    movers: BTreeMap<u64, Alive>,
    started: u64,
    exposed: BTreeSet<PathBuf>,
    cut_off: BTreeSet<PathBuf>,
    volumes: Volumes,
}

/// An answer that is waiting for its request.
struct Script {
    word: String,
    times: u32,
    after: bool,
    answer: Result<Reply, Failure>,
}

/// What the world knows of a living mover.
struct Alive {
    name: MoverName,
    mounted: Option<String>,
    /// The request that gets no answer.
    hangs_at: Option<String>,
    lost: Option<oneshot::Sender<Failure>>,
}

impl FakeMovers {
    /// A world with no repository in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty repository and answers its id.
    pub fn add_repository(&self, address: &str) -> RepositoryId {
        let repository = FakeRepository::new();
        let id = repository.id;
        self.world().repositories.insert(address.to_owned(), repository);
        id
    }

    /// Looks at a repository, or changes it.
    pub fn repository<T>(&self, address: &str, look: impl FnOnce(&mut FakeRepository) -> T) -> Option<T> {
        self.world().repositories.get_mut(address).map(look)
    }

    /// The next `times` requests of that word (`start` for starting a mover) fail so, without an effect.
    pub fn fail(&self, word: &str, times: u32, failure: Failure) {
        self.script(word, times, false, Err(failure));
    }

    /// The next `times` requests of that word have their effect and then fail so: an answer that was lost.
    pub fn fail_after(&self, word: &str, times: u32, failure: Failure) {
        self.script(word, times, true, Err(failure));
    }

    /// The next `times` requests of that word have no effect, and it can't be seen whether they had.
    pub fn not_known(&self, word: &str, times: u32, failure: Failure) {
        self.script(word, times, false, Ok(Reply::NotKnown { failure }));
    }

    fn script(&self, word: &str, times: u32, after: bool, answer: Result<Reply, Failure>) {
        self.world().scripts.push(Script { word: word.to_owned(), times, after, answer });
    }

    /// The next good answer to a request of that word comes with a warning.
    pub fn warn(&self, word: &str, text: &str) {
        self.world().warnings.push((word.to_owned(), text.to_owned()));
    }

    /// Requests of that word get no answer until [`FakeMovers::unhang`].
    pub fn hang(&self, word: &str) {
        self.world().hangs.insert(word.to_owned());
    }

    /// Requests of that word go on.
    pub fn unhang(&self, word: &str) {
        self.world().hangs.remove(word);
        self.changed.notify_waiters();
    }

    /// What was scripted and has not come about never does, and whatever hangs goes on.
    pub fn heal(&self) {
        let mut world = self.world();
        world.scripts.clear();
        world.hangs.clear();
        drop(world);
        self.changed.notify_waiters();
    }

    /// Some living mover was asked for that and gives no answer.
    pub fn is_hanging(&self, word: &str) -> bool {
        self.world().movers.values().any(|alive| alive.hangs_at.as_deref() == Some(word))
    }

    /// Kills a mover: its mount goes, its lease ages, its staging stays. False when there is none of that name.
    pub fn kill(&self, name: &str) -> bool {
        let key = self.world().movers.iter().find(|(_, alive)| alive.name.as_str() == name).map(|(key, _)| *key);
        key.inspect(|key| self.end(*key)).is_some()
    }

    /// Another worker takes an instance's lease over, whoever holds it: its holder learns it, and its staging is fenced.
    pub fn lose_lease(&self, address: &str, instance: InstanceId) {
        let mut world = self.world();
        let Some(repository) = world.repositories.get_mut(address) else { return };
        if let Holder::Mover(key) = repository.take_over(instance, Holder::Stranger)
            && let Some(lost) = world.movers.get_mut(&key).and_then(|alive| alive.lost.take())
        {
            let _nobody_waits = lost.send(Failure::new(Code::LeaseLost, "the lease was taken over by another worker"));
        }
    }

    /// Names of the movers that are alive.
    pub fn running(&self) -> Vec<String> {
        self.world().movers.values().map(|alive| alive.name.to_string()).collect()
    }

    /// Some mover has the repository mounted.
    pub fn is_mounted(&self, address: &str) -> bool {
        self.world().movers.values().any(|alive| alive.mounted.as_deref() == Some(address))
    }

    /// Where something of a repository is shown to the host.
    pub fn exposed(&self) -> Vec<PathBuf> {
        self.world().exposed.iter().cloned().collect()
    }

    /// Where what was under way on the share has been made to fail.
    pub fn were_cut_off(&self) -> Vec<PathBuf> {
        self.world().cut_off.iter().cloned().collect()
    }

    /// Names of the staging directories in a repository.
    pub fn staging(&self, address: &str) -> Vec<String> {
        self.repository(address, |repository| repository.staging()).unwrap_or_default()
    }

    /// Manifests of the backups in a repository, by instance and number.
    pub fn published(&self, address: &str) -> Vec<Manifest> {
        self.repository(address, |repository| repository.published()).unwrap_or_default()
    }

    /// The checkpoints of the latest backup of each instance in each repository, by name.
    pub fn checkpoints(&self) -> Vec<String> {
        let mut latest = BTreeMap::new();
        for repository in self.world().repositories.values() {
            // A stopped instance gets none, and keeps what it has.
            let tracked = repository.published().into_iter().filter(|backup| backup.transfer != TransferUsed::Stopped);
            for manifest in tracked {
                latest.insert((repository.id, manifest.instance_id), manifest.disks);
            }
        }
        latest.into_values().flatten().filter_map(|disk| disk.checkpoint).collect()
    }

    /// Somebody holds the lease of an instance.
    pub fn is_leased(&self, address: &str, instance: InstanceId) -> bool {
        self.repository(address, |repository| repository.is_leased(instance)).unwrap_or_default()
    }

    /// Puts a volume at a path of the host, as it was before any restore.
    pub fn add_volume(&self, path: &Path) {
        self.world().volumes.make(path, FakeVolume::Old);
    }

    /// Somebody has put another file at a path, or the first one.
    pub fn put_volume(&self, path: &Path, volume: FakeVolume) {
        self.world().volumes.make(path, volume);
    }

    /// Somebody has given a file another name.
    pub fn rename_volume(&self, from: &Path, to: &Path) {
        self.world().volumes.rename(from, to);
    }

    /// Another directory is in the place of that one, as where a mount is missing.
    pub fn remount(&self, directory: &Path) {
        self.world().volumes.remount(directory);
    }

    /// What stands at a path.
    pub fn volume(&self, path: &Path) -> Option<FakeVolume> {
        self.world().volumes.standing.get(path).cloned()
    }

    /// Where something stands.
    pub fn volumes(&self) -> Vec<PathBuf> {
        self.world().volumes.standing.keys().cloned().collect()
    }

    /// Somebody has the volume at a path open, or no more.
    pub fn use_volume(&self, path: &Path, used: bool) {
        let in_use = &mut self.world().volumes.in_use;
        if used {
            in_use.insert(path.to_owned())
        } else {
            in_use.remove(path)
        };
    }

    /// Puts a block device at a path of the host, as it was before any restore.
    pub fn add_device(&self, path: &Path, device: BlockDevice) {
        let mut world = self.world();
        world.volumes.make(path, FakeVolume::Old);
        world.volumes.devices.insert(path.to_owned(), device);
    }

    /// The block device of that number is used so, or no more.
    pub fn use_device(&self, device: u64, user: Option<User>) {
        let users = &mut self.world().volumes.used;
        match user {
            Some(user) => drop(users.insert(device, user)),
            None => drop(users.remove(&device)),
        }
    }

    /// So much of the host cannot be looked at, in words.
    pub fn hide(&self, unseen: &str) {
        self.world().volumes.unseen.push(unseen.to_owned());
    }

    /// The images of a backup rot.
    pub fn damage(&self, address: &str, backup: BackupId) {
        self.repository(address, |repository| repository.damage(backup));
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scripted answer of a request, if one is due.
    fn scripted(&self, word: &str, after: bool) -> Option<Result<Reply, Failure>> {
        let mut world = self.world();
        let due =
            world.scripts.iter_mut().find(|script| script.word == word && script.after == after && script.times > 0);
        due.map(|script| {
            script.times -= 1;
            script.answer.clone()
        })
    }

    /// The scripted failure of what has no answer to be scripted.
    fn must_not_fail(&self, word: &str) -> Result<(), Failure> {
        self.scripted(word, false).transpose().map(drop)
    }

    /// The warnings that are due for a request.
    fn warnings_of(&self, word: &str) -> Vec<String> {
        self.world().warnings.extract_if(.., |(of, _)| of == word).map(|(_, text)| text).collect()
    }

    fn end(&self, key: u64) {
        let mut world = self.world();
        if let Some(alive) = world.movers.remove(&key) {
            for repository in world.repositories.values_mut() {
                repository.holder_died(key);
            }
            if let Some(lost) = alive.lost {
                let _nobody_waits = lost.send(Failure::new(Code::MoverDied, format!("mover `{}` ended", alive.name)));
            }
        }
        drop(world);
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl Movers for FakeMovers {
    async fn start(&self, name: &MoverName) -> Result<Box<dyn Mover>, Failure> {
        self.must_not_fail("start")?;
        let (lost_in, lost) = oneshot::channel();
        let (progress_in, _) = watch::channel(super::Progress::default());
        let key = {
            let mut world = self.world();
            world.started += 1;
            let key = world.started;
            world.movers.insert(key, Alive { name: name.clone(), mounted: None, hangs_at: None, lost: Some(lost_in) });
            key
        };
        Ok(Box::new(FakeMover::new(self.clone(), key, name.clone(), lost, progress_in)))
    }

    async fn unmount(&self, place: &Path) -> Result<(), Failure> {
        self.must_not_fail("unmount")?;
        self.world().exposed.remove(place);
        // The place is a directory of the host's, and real.
        match std::fs::remove_dir(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::new(Code::HostIo, format!("cannot remove `{}`", place.display())).because(&error))
            }
            _ => Ok(()),
        }
    }

    async fn usage(&self, devices: &[DeviceNumbers], _claimed_by: Option<&MoverName>) -> Result<Usage, Failure> {
        self.must_not_fail("usage")?;
        Ok(self.world().volumes.usage(devices))
    }

    async fn lives(&self, name: &MoverName) -> Result<bool, Failure> {
        Ok(self.running().iter().any(|running| running == name.as_str()))
    }

    async fn cut_off(&self, place: &Path) -> Result<bool, Failure> {
        self.must_not_fail("cut_off")?;
        let mut world = self.world();
        let is_shown = world.exposed.contains(place);
        if is_shown {
            world.cut_off.insert(place.to_owned());
        }
        Ok(is_shown)
    }
}
