//! Hands libvirt's events to whoever watches an instance. They are hints, so a watcher that doesn't read loses some.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use virt_sys as sys;

use super::super::{DomainEvent, WATCH_EVENTS_MAX};
use super::raw::{Listener, Signal};
use crate::model::id::InstanceId;

/// The watchers of all instances.
#[derive(Default)]
pub(super) struct Hub {
    watchers: Mutex<Vec<(InstanceId, mpsc::Sender<DomainEvent>)>>,
}

impl Hub {
    /// A new watcher of one instance; it is forgotten when its receiver is dropped.
    pub(super) fn watch(&self, instance: InstanceId) -> mpsc::Receiver<DomainEvent> {
        let (sender, receiver) = mpsc::channel(WATCH_EVENTS_MAX);
        self.with(|watchers| watchers.push((instance, sender)));
        receiver
    }

    /// Says to everybody that events may have been missed.
    pub(super) fn reconnected(&self) {
        self.with(|watchers| {
            for (_, watcher) in watchers {
                let _ = watcher.try_send(DomainEvent::Reconnected);
            }
        });
    }

    /// What libvirt's event loop calls.
    pub(super) fn listener(self: &Arc<Self>) -> Listener {
        let hub = Arc::clone(self);
        Arc::new(move |signal| hub.tell(signal))
    }

    fn tell(&self, signal: Signal) {
        let (domain, event) = match signal {
            Signal::Lifecycle(domain) => (domain, DomainEvent::Lifecycle),
            // Ready is a stage of other people's mirror jobs, not an end.
            Signal::BlockJob { status: sys::VIR_DOMAIN_BLOCK_JOB_READY, .. } => return,
            Signal::BlockJob { domain, target, status } => {
                let Ok(target) = target.parse() else { return };
                let completed = status == sys::VIR_DOMAIN_BLOCK_JOB_COMPLETED;
                (domain, DomainEvent::BlockJob { target, completed })
            }
        };
        self.with(|watchers| {
            for (_, watcher) in watchers.iter().filter(|(instance, _)| instance.0 == domain) {
                let _ = watcher.try_send(event.clone());
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut Vec<(InstanceId, mpsc::Sender<DomainEvent>)>)) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|(_, watcher)| !watcher.is_closed());
        act(&mut watchers);
    }
}
