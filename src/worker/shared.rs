//! What every part of the worker can reach, and how it speaks for the host.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::admit::{Names, Slots, known_as};
use super::announce::Announcing;
use super::circuit::Circuits;
use super::outbox::Counters;
use super::pause::Pauses;
use super::status::Status;
use super::work::Work;
use crate::host::hypervisor::Hypervisor;
use crate::journal::{Journal, Keep};
use crate::message::event::HostDetail;
use crate::message::{Event, HostEvent};
use crate::model::id::{HostId, IncarnationId, InstanceRef};

/// What the configuration says about the worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host.
    pub host: HostId,
    /// Broker users whose control messages are obeyed.
    pub controllers: Vec<String>,
    /// What credentials are sealed to, base64, if this host has a key.
    pub host_key: Option<String>,
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
    /// Whether the host is paused.
    pub pauses: Pauses,
    /// Counts how often the host was asked to tell anew how it stands.
    pub announcements: watch::Sender<u64>,
    /// What the drain that is under way stops is not kept.
    pub drain_evicts: AtomicBool,
    /// Tells anew how the host stands.
    pub announcing: Announcing,
    /// What the outbox has seen.
    pub counters: Arc<Counters>,
    /// Which repositories fail.
    pub circuits: watch::Sender<Circuits>,
    /// Speaks for the host.
    pub voice: HostVoice,
    /// Names of the last inventory; none before the first.
    names: watch::Sender<Option<Arc<Names>>>,
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
            pauses: Pauses::default(),
            announcements: watch::Sender::new(0),
            drain_evicts: AtomicBool::new(false),
            announcing: Announcing::default(),
            counters: Arc::default(),
            circuits: watch::Sender::default(),
            voice,
            names: watch::Sender::default(),
        }
    }

    /// What is stopped because the host is to come to rest is not kept.
    pub fn evicts(&self) -> bool {
        self.drain_evicts.load(Ordering::Relaxed) || self.pauses.evicts()
    }

    /// The instance by its uuid, where the last inventory knew the name.
    pub fn known_as(&self, instance: &InstanceRef) -> InstanceRef {
        match self.names.borrow().as_ref() {
            Some(names) => known_as(names, instance).into_owned(),
            None => instance.clone(),
        }
    }

    /// The names of the last inventory, and when they change.
    pub fn names(&self) -> watch::Receiver<Option<Arc<Names>>> {
        self.names.subscribe()
    }

    /// Remembers the names of an inventory.
    pub fn learn_names(&self, names: Names) {
        self.names.send_if_modified(|known| {
            let news = known.as_deref() != Some(&names);
            *known = Some(Arc::new(names));
            news
        });
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
