//! A hypervisor that exists only in memory: for tests, for benches and for a demo without libvirt.
//!
//! It has state and keeps libvirt's rules about it: one job per domain, an agent that may be missing, mute or slow, a
//! freeze that happens after its caller has given up, a job that is gone some time after it was told to end. Calls can
//! be made to fail or hang by name. It passes the same contract suite as the real door. It serves no NBD and touches no
//! file; its clock is tokio's, so that a test may pause it.
//!
//! ```
//! use longshore::host::hypervisor::fake::{FakeHypervisor, FakeInstance};
//!
//! let instance = FakeInstance::running("web").disk("vda", 1 << 30);
//! let id = instance.id();
//! let hypervisor = FakeHypervisor::new().with_instance(instance);
//! assert!(hypervisor.guest_can_write(id) && hypervisor.is_clean());
//! ```
#![allow(clippy::expect_used)] // A test that names an instance it never made should stop.

mod build;
mod door;
mod script;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use self::build::{FakeAgent, FakeInstance};
use self::script::Script;
use self::world::{FakeDomain, Job};
use super::{DomainEvent, DomainJob, Version, Versions};
use crate::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;
use crate::model::network::SecretRef;
use crate::model::owner::Owner;
use crate::mover::protocol::StorageKey;

/// How long a hung call keeps its caller before it fails as `hypervisor_timed_out`; agent calls have their own timeout.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// The process id of every fake QEMU; no process on Linux has it.
pub const FAKE_QEMU: u32 = u32::MAX;

/// The memory of the fake's host, bytes.
pub const FAKE_MEMORY_BYTES: u64 = 64 << 30;

/// From the call that ends a job until the job is gone.
pub const JOB_ENDS_AFTER: Duration = Duration::from_millis(20);

/// From the begin of a push job until it has written everything.
pub const PUSH_TAKES: Duration = Duration::from_millis(200);

/// What becomes of a push job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PushFate {
    /// It writes everything.
    #[default]
    Completes,
    /// Likewise, while libvirt's daemon is restarted, which then knows no figures.
    CompletesUnseen,
    /// It fails with libvirt's message, as every write to the share does.
    Fails(&'static str),
    /// Its share has no room: it fails, and the guest, which wrote as well, is paused.
    PausesGuest,
    /// It writes nothing more until it is told to end.
    Stands,
}

/// The fake. Clones are the same hypervisor.
#[derive(Clone)]
pub struct FakeHypervisor {
    world: Arc<Mutex<World>>,
}

struct World {
    domains: BTreeMap<InstanceId, FakeDomain>,
    script: Script,
    versions: Versions,
    qemu_owner: Option<Owner>,
    secrets: BTreeMap<SecretRef, StorageKey>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHypervisor {
    /// One without instances, as new as the newest release this was written against.
    pub fn new() -> Self {
        let versions = Versions { libvirt: Version(11, 3, 0), qemu: Version(10, 0, 2) };
        let world = World {
            domains: BTreeMap::new(),
            script: Script::default(),
            versions,
            qemu_owner: None,
            secrets: BTreeMap::new(),
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// With one more instance.
    #[must_use]
    pub fn with_instance(self, instance: FakeInstance) -> Self {
        self.add(instance);
        self
    }

    /// With other versions.
    #[must_use]
    pub fn with_versions(self, versions: Versions) -> Self {
        self.lock().versions = versions;
        self
    }

    /// With a QEMU that runs as this user; without, it runs as we do.
    #[must_use]
    pub fn with_qemu_owner(self, owner: Owner) -> Self {
        self.lock().qemu_owner = Some(owner);
        self
    }

    /// With a key that it gives away, in base64.
    #[must_use]
    pub fn with_secret(self, secret: SecretRef, key: &str) -> Self {
        let key = StorageKey::new(key.to_owned().into());
        self.lock().secrets.insert(secret, key);
        self
    }

    /// Adds an instance to a hypervisor that is in use.
    pub fn add(&self, instance: FakeInstance) {
        self.lock().domains.insert(instance.id(), FakeDomain::new(instance));
    }

    /// Removes an instance, as a migration away does.
    pub fn remove(&self, instance: InstanceId) {
        self.lock().domains.remove(&instance);
    }

    /// Lets the next `times` calls named `call` (a method of the door, such as `"freeze"`) fail without an effect.
    pub fn fail(&self, call: &'static str, times: usize, failure: Failure) {
        self.lock().script.fail(call, times, failure);
    }

    /// Lets the next call named `call` (`"define"` or `"attach"`) fail after it had its effect.
    pub fn fail_after(&self, call: &'static str, failure: Failure) {
        self.lock().script.fail_after(call, failure);
    }

    /// Lets calls named `call` hang in the hypervisor until [`FakeHypervisor::let_go`]. A caller is told
    /// `hypervisor_timed_out` at its deadline, and the call is listed as stuck from then on.
    pub fn hang(&self, call: &'static str) {
        self.lock().script.hang(call);
    }

    /// Lets the next call named `call` hang so, and no further one.
    pub fn hang_once(&self, call: &'static str) {
        self.lock().script.hang_once(call);
    }

    /// Ends [`FakeHypervisor::hang`]: calls that hang take effect now, also those whose callers have gone; further ones work.
    pub fn let_go(&self, call: &'static str) {
        let mut world = self.lock();
        for (instance, effect) in world.script.let_go(call) {
            if let Some(domain) = world.domains.get_mut(&instance) {
                effect(domain);
                domain.settle(Instant::now());
            }
        }
    }

    /// Failures that were to come and have not never do. What hangs is let go by [`FakeHypervisor::let_go`].
    pub fn heal(&self) {
        self.lock().script.heal();
    }

    /// The next freeze takes `after`: with a shorter timeout it fails, and the guest freezes all the same.
    pub fn late_freeze(&self, instance: InstanceId, after: Duration) {
        self.change(instance, |domain| domain.next_freeze_takes = Some(after));
    }

    /// The guest has made `count` writes to each of its disks, which took `each` of them so long.
    pub fn guest_writes(&self, instance: InstanceId, count: u64, each: Duration) {
        self.change(instance, |domain| domain.write(count, each));
    }

    /// Starts, stops or pauses an instance, as somebody outside does. Stopping ends its job and its freeze.
    pub fn set_state(&self, instance: InstanceId, state: PowerState) {
        self.change(instance, |domain| domain.set_state(state));
    }

    /// Lets the agent behave otherwise from now on. A freeze that a silent one was sent takes effect when it answers again.
    pub fn set_agent(&self, instance: InstanceId, agent: FakeAgent) {
        self.change(instance, |domain| domain.set_agent(agent));
    }

    /// Gives the domain a job that somebody else began.
    pub fn begin_foreign_job(&self, instance: InstanceId, kind: DomainJob) {
        self.change(instance, |domain| {
            domain.job = Some(Job { kind, disks: Vec::new(), whole: Vec::new(), ends: None, fate: PushFate::Stands })
        });
    }

    /// What becomes of the next push job.
    pub fn next_push(&self, instance: InstanceId, fate: PushFate) {
        self.change(instance, |domain| domain.next_push = fate);
    }

    /// Ends whatever job the domain has, as somebody else or QEMU may.
    pub fn lose_job(&self, instance: InstanceId) {
        self.change(instance, |domain| domain.end_job(false));
    }

    /// Sends a hint to everybody who watches an instance.
    pub fn tell(&self, event: &DomainEvent) {
        for domain in self.lock().domains.values_mut() {
            domain.tell(event.clone());
        }
    }

    /// Whether the guest's file systems are frozen now.
    pub fn frozen(&self, instance: InstanceId) -> bool {
        self.look(instance, |domain| domain.frozen)
    }

    /// Whether a program in the guest could write to its disk now: it runs and is not frozen.
    pub fn guest_can_write(&self, instance: InstanceId) -> bool {
        self.look(instance, |domain| domain.state() == PowerState::Running && !domain.frozen)
    }

    /// The job the domain has now.
    pub fn job(&self, instance: InstanceId) -> Option<DomainJob> {
        self.look(instance, |domain| domain.job.as_ref().map(|job| job.kind.clone()))
    }

    /// Whether the guest was frozen at the moment that the latest backup took; none when there was no backup.
    pub fn latest_moment_was_frozen(&self, instance: InstanceId) -> Option<bool> {
        self.look(instance, |domain| domain.latest_moment_frozen)
    }

    /// The domain is defined anew, and its checkpoints are known no more though their bitmaps are there.
    pub fn forget_checkpoints(&self, instance: InstanceId) {
        self.change(instance, FakeDomain::forget_checkpoints);
    }

    /// What the door's user left behind: frozen guests, jobs, checkpoints that weren't there at first, paused instances.
    pub fn leftovers(&self) -> Vec<String> {
        self.leftovers_beside(&[])
    }

    /// Likewise, where these checkpoints are meant to stand.
    pub fn leftovers_beside(&self, checkpoints: &[String]) -> Vec<String> {
        let mut world = self.lock();
        world.domains.values_mut().flat_map(|domain| domain.leftovers(checkpoints)).collect()
    }

    /// Whether nothing is left behind.
    pub fn is_clean(&self) -> bool {
        self.leftovers().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for domain in world.domains.values_mut() {
            domain.settle(now);
        }
        world
    }

    fn change(&self, instance: InstanceId, change: impl FnOnce(&mut FakeDomain)) {
        self.look(instance, change);
    }

    fn look<T>(&self, instance: InstanceId, look: impl FnOnce(&mut FakeDomain) -> T) -> T {
        let mut world = self.lock();
        let domain = world.domains.get_mut(&instance);
        look(domain.expect("the fake has the instance that the test names"))
    }
}
