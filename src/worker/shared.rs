//! What every part of the worker can reach, and how it speaks for the host.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::admit::Slots;
use super::outbox::Counters;
use super::status::Status;
use super::work::Work;
use crate::host::hypervisor::Hypervisor;
use crate::journal::{Journal, Keep};
use crate::message::event::HostDetail;
use crate::message::{Event, HostEvent};
use crate::model::id::{HostId, IncarnationId, InstanceId, InstanceName, InstanceRef};

/// What the configuration says about the worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host.
    pub host: HostId,
    /// How much may run at once.
    pub slots: Slots,
    /// Runs in the journal that have not ended. With as many no normal job is taken any more, with twice as many no urgent one; what
    /// was delivered by then, a prefetch at most, comes on top.
    pub open_runs_max: usize,
    /// Longest time that a stop waits for running attempts.
    pub drain_limit: Duration,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Time between two inventories.
    pub inventory: Duration,
    /// Directory for the scratch of pull backups, whose free room is told.
    pub scratch_dir: PathBuf,
    /// How long what has ended is kept.
    pub keep: Keep,
}

/// Shared by all tasks of the worker.
pub struct Shared {
    /// The configuration.
    pub settings: Settings,
    /// The durable record.
    pub journal: Journal,
    /// Does jobs.
    pub work: Arc<dyn Work>,
    /// Asked for the inventory only.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What is in hand.
    pub status: Status,
    /// What the outbox has seen.
    pub counters: Arc<Counters>,
    /// Speaks for the host.
    pub voice: HostVoice,
    /// Names of the last inventory.
    names: Mutex<BTreeMap<InstanceName, InstanceId>>,
}

impl Shared {
    /// With nothing in hand yet.
    pub fn new(settings: Settings, journal: Journal, work: Arc<dyn Work>, hypervisor: Arc<dyn Hypervisor>) -> Self {
        let voice = HostVoice::new(settings.host.clone());
        Self {
            settings,
            journal,
            work,
            hypervisor,
            status: Status::default(),
            counters: Arc::default(),
            voice,
            names: Mutex::default(),
        }
    }

    /// The instance by its uuid where the last inventory knew the name, so that two jobs that name it differently are still kept
    /// apart. Where it did not, libvirt's own lock and the lease on the share do that.
    pub fn known_as(&self, instance: &InstanceRef) -> InstanceRef {
        let InstanceRef::Name(name) = instance else { return instance.clone() };
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).map_or_else(|| instance.clone(), |id| InstanceRef::Id(*id))
    }

    /// Remembers the names of an inventory.
    pub fn learn_names(&self, names: BTreeMap<InstanceName, InstanceId>) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

/// Makes events of the host.
#[derive(Debug)]
pub struct HostVoice {
    host: HostId,
    incarnation: IncarnationId,
    sequence: AtomicU64,
}

impl HostVoice {
    fn new(host: HostId) -> Self {
        Self { host, incarnation: IncarnationId::draw(), sequence: AtomicU64::new(0) }
    }

    /// The next event of this start of the worker.
    pub fn event(&self, detail: HostDetail) -> Event {
        Event::Host(HostEvent {
            host: self.host.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            time: Timestamp::now(),
            detail,
        })
    }
}
