//! Confirmed publishing, the caller's side: the bound on what is in flight and on how long a caller waits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::link::LinkHealth;
use super::thread::AmqpThread;
use crate::broker::{Outgoing, PUBLISHES_IN_FLIGHT_MAX, PublishError, Publisher};

/// What is said once the door is closed.
const CLOSED: &str = "the door to the broker is closed";

/// What a caller gets in the end.
pub(super) type Outcome = Result<(), PublishError>;

/// A message in the task's care.
pub(super) struct Slot {
    /// The message.
    pub(super) outgoing: Outgoing,
    /// After how many milliseconds the broker drops it.
    pub(super) expiration_ms: Option<u64>,
    /// Where the caller waits.
    pub(super) reply: oneshot::Sender<Outcome>,
    /// The broker has returned it.
    pub(super) returned: bool,
    /// Given back when the slot goes, so that what is in flight is bounded even when callers give up.
    _permit: OwnedSemaphorePermit,
}

/// The session's view of the publish connection.
#[derive(Clone)]
pub(super) struct PublishLink {
    slots: mpsc::UnboundedSender<Slot>,
    permits: Arc<Semaphore>,
    health: watch::Receiver<LinkHealth>,
    rebuild: Arc<Notify>,
}

impl PublishLink {
    /// Its health now and the changes.
    pub(super) fn health(&self) -> watch::Receiver<LinkHealth> {
        self.health.clone()
    }

    /// The connection takes messages and answers nothing: make a new one.
    pub(super) fn rebuild(&self) {
        self.rebuild.notify_one();
    }

    /// Publishes and waits for the confirm, at most `wait`. The broker drops it after `expiration`, if it is given.
    pub(super) async fn publish(&self, outgoing: Outgoing, wait: Duration, expiration: Option<Duration>) -> Outcome {
        let deadline = Instant::now() + wait;
        let routing_key = outgoing.routing_key.clone();
        let unconfirmed = |reason: String| {
            Err(PublishError::Unconfirmed { routing_key: routing_key.clone(), waited_seconds: wait.as_secs(), reason })
        };
        let expiration_ms = expiration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        // Semaphore and channel are fair, so one caller's messages keep their order. The channel holds as many as there are
        // permits.
        let permit = match timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return unconfirmed(CLOSED.to_owned()),
            Err(_) => return unconfirmed(self.known()),
        };
        let (reply, answer) = oneshot::channel();
        let slot = Slot { outgoing, expiration_ms, reply, returned: false, _permit: permit };
        if self.slots.send(slot).is_err() {
            return unconfirmed(CLOSED.to_owned());
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unconfirmed(CLOSED.to_owned()),
            Err(_) => unconfirmed(self.known()),
        }
    }

    /// What is known of the connection, for a message that was not confirmed.
    fn known(&self) -> String {
        match &*self.health.borrow() {
            LinkHealth::Up => "it is connected and does not answer".to_owned(),
            LinkHealth::Blocked(reason) => format!("it takes no messages now: {reason}"),
            LinkHealth::Down(reason) => reason.clone(),
        }
    }
}

/// A publisher, as callers hold it.
#[derive(Clone)]
pub(super) struct PublishHandle {
    link: PublishLink,
    wait: Duration,
    /// Keeps the task's thread.
    _thread: Arc<AmqpThread>,
}

impl PublishHandle {
    /// A handle whose messages go into `slots`.
    pub(super) fn new(
        thread: &Arc<AmqpThread>,
        slots: mpsc::UnboundedSender<Slot>,
        health: watch::Receiver<LinkHealth>,
        rebuild: Arc<Notify>,
        wait: Duration,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(PUBLISHES_IN_FLIGHT_MAX));
        Self { link: PublishLink { slots, permits, health, rebuild }, wait, _thread: Arc::clone(thread) }
    }

    /// The connection behind it, for those that the thread itself keeps.
    pub(super) fn link(&self) -> PublishLink {
        self.link.clone()
    }
}

#[async_trait]
impl Publisher for PublishHandle {
    async fn publish(&self, message: Outgoing) -> Outcome {
        self.link.publish(message, self.wait, None).await
    }
}
