//! Deliveries between the session's task and its caller.
//!
//! Bounded by the prefetch and by [`BODY_BYTES_KEPT_MAX`](crate::broker::BODY_BYTES_KEPT_MAX): bodies are cut before they come
//! here, the broker hands over no more before some are settled, and a queue that was not wanted for a while is read again only
//! when nothing of it waits. A rebuild empties it, since the broker delivers what was un-acked again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::broker::{Delivery, HostQueue, WantedJobs};

#[derive(Default)]
struct Waiting {
    control: VecDeque<Delivery>,
    urgent: VecDeque<Delivery>,
    jobs: VecDeque<Delivery>,
    wanted: WantedJobs,
}

impl Waiting {
    fn queue(&mut self, queue: HostQueue) -> &mut VecDeque<Delivery> {
        match queue {
            HostQueue::Control => &mut self.control,
            HostQueue::UrgentJobs => &mut self.urgent,
            HostQueue::Jobs => &mut self.jobs,
        }
    }
}

/// What the session has to do about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Read it.
    Wanted,
    /// Go on as before: it is wanted, but what waits of it has to be taken first.
    Full,
    /// Read it no more.
    Unwanted,
}

/// Deliveries that wait for the caller.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    /// There is something new for the caller.
    filled: Notify,
    /// What is to be read may have changed.
    reading_changed: Notify,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a delivery.
    pub(super) fn push(&self, delivery: Delivery) {
        self.lock().queue(delivery.queue).push_back(delivery);
        self.filled.notify_one();
    }

    /// The next delivery, control first. Waits for ever; dropping the future loses nothing.
    pub(super) async fn next(&self) -> Delivery {
        loop {
            if let Some(delivery) = self.pop() {
                return delivery;
            }
            self.filled.notified().await;
        }
    }

    fn pop(&self) -> Option<Delivery> {
        let mut waiting = self.lock();
        for queue in [HostQueue::Control, HostQueue::UrgentJobs, HostQueue::Jobs] {
            let line = waiting.queue(queue);
            if let Some(delivery) = line.pop_front() {
                if line.is_empty() && queue != HostQueue::Control {
                    self.reading_changed.notify_one();
                }
                return Some(delivery);
            }
        }
        None
    }

    /// Says which jobs are wanted.
    pub(super) fn want_jobs(&self, wanted: WantedJobs) {
        let mut waiting = self.lock();
        if waiting.wanted != wanted {
            waiting.wanted = wanted;
            self.reading_changed.notify_one();
        }
    }

    /// What is to be done about a queue.
    pub(super) fn reading(&self, queue: HostQueue) -> Reading {
        let mut waiting = self.lock();
        match waiting.wanted.takes_from(queue) {
            false => Reading::Unwanted,
            true if waiting.queue(queue).is_empty() => Reading::Wanted,
            true => Reading::Full,
        }
    }

    /// Waits until [`Inbox::reading`] may have another answer. A change while nobody waited counts.
    pub(super) async fn reading_changed(&self) {
        self.reading_changed.notified().await;
    }

    /// Forgets everything: the broker will deliver it again.
    pub(super) fn clear(&self) {
        let mut waiting = self.lock();
        waiting.control.clear();
        waiting.urgent.clear();
        waiting.jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lapin::message::Delivery as LapinDelivery;

    use super::super::delivery::to_delivery;
    use super::*;
    use crate::broker::BODY_BYTES_KEPT_MAX;

    fn delivery(queue: HostQueue, body: Vec<u8>) -> Delivery {
        to_delivery(queue, LapinDelivery::mock(1, "".into(), "kvm-07".into(), false, body), &Arc::default())
    }

    #[test]
    fn what_waits_for_the_caller_holds_no_more_memory_than_the_cut_bodies() {
        let inbox = Inbox::default();
        for bytes in [64 * BODY_BYTES_KEPT_MAX, BODY_BYTES_KEPT_MAX, 10] {
            let mut body = Vec::with_capacity(2 * bytes);
            body.resize(bytes, 7);
            inbox.push(delivery(HostQueue::Jobs, body));
        }
        let held: usize = inbox.lock().jobs.iter().map(|delivery| delivery.body.capacity()).sum();
        assert!(held <= 2 * BODY_BYTES_KEPT_MAX + 10, "{held} bytes");
    }

    #[tokio::test]
    async fn what_was_delivered_comes_although_it_is_no_longer_wanted_and_before_the_queue_is_read_again() {
        let inbox = Inbox::default();
        inbox.want_jobs(WantedJobs::All);
        inbox.push(delivery(HostQueue::Jobs, b"job".to_vec()));
        inbox.want_jobs(WantedJobs::Urgent);
        assert_eq!(inbox.reading(HostQueue::Jobs), Reading::Unwanted);
        assert_eq!(inbox.reading(HostQueue::UrgentJobs), Reading::Wanted);
        inbox.want_jobs(WantedJobs::All);
        assert_eq!(inbox.reading(HostQueue::Jobs), Reading::Full);
        assert_eq!(inbox.next().await.body, b"job");
        assert_eq!(inbox.reading(HostQueue::Jobs), Reading::Wanted);
    }
}
