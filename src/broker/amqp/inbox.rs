//! Deliveries between the session's task and its caller.
//!
//! Bounded by the prefetch: the broker hands over no more before some are settled, and a rebuild empties it, since the
//! broker delivers what was un-acked again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::broker::HostQueue;

/// A delivery by lapin and the queue that it came from.
pub(super) struct Incoming {
    /// The queue.
    pub(super) queue: HostQueue,
    /// The delivery.
    pub(super) delivery: lapin::message::Delivery,
}

#[derive(Default)]
struct Waiting {
    control: VecDeque<Incoming>,
    urgent: VecDeque<Incoming>,
    jobs: VecDeque<Incoming>,
    wanted: bool,
}

/// Deliveries that wait for the caller.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    /// There is something new for the caller.
    filled: Notify,
    /// Whether jobs are wanted has changed.
    wish_changed: Notify,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a delivery.
    pub(super) fn push(&self, incoming: Incoming) {
        let mut waiting = self.lock();
        match incoming.queue {
            HostQueue::Control => waiting.control.push_back(incoming),
            HostQueue::UrgentJobs => waiting.urgent.push_back(incoming),
            HostQueue::Jobs => waiting.jobs.push_back(incoming),
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// The next delivery, control first. Waits for ever; dropping the future loses nothing.
    pub(super) async fn next(&self) -> Incoming {
        loop {
            if let Some(incoming) = self.pop() {
                return incoming;
            }
            self.filled.notified().await;
        }
    }

    fn pop(&self) -> Option<Incoming> {
        let mut waiting = self.lock();
        if let Some(control) = waiting.control.pop_front() {
            return Some(control);
        }
        if !waiting.wanted {
            return None;
        }
        waiting.urgent.pop_front().or_else(|| waiting.jobs.pop_front())
    }

    /// Says whether jobs are wanted. From now on none is given out that is not.
    pub(super) fn want_jobs(&self, wanted: bool) {
        let mut waiting = self.lock();
        if waiting.wanted == wanted {
            return;
        }
        waiting.wanted = wanted;
        drop(waiting);
        self.wish_changed.notify_one();
        self.filled.notify_one();
    }

    /// Whether jobs are wanted.
    pub(super) fn jobs_wanted(&self) -> bool {
        self.lock().wanted
    }

    /// Waits until the wish changes. A change while nobody waited counts.
    pub(super) async fn wish_changed(&self) {
        self.wish_changed.notified().await;
    }

    /// Takes out the jobs.
    pub(super) fn take_jobs(&self) -> Vec<Incoming> {
        let mut waiting = self.lock();
        let mut taken: Vec<Incoming> = waiting.urgent.drain(..).collect();
        taken.extend(waiting.jobs.drain(..));
        taken
    }

    /// Forgets everything: the broker will deliver it again.
    pub(super) fn clear(&self) {
        let mut waiting = self.lock();
        waiting.control.clear();
        waiting.urgent.clear();
        waiting.jobs.clear();
    }
}
