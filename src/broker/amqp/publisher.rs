//! Confirmed publishing, the caller's side: the bound on how long a caller waits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::link::LinkHealth;
use super::outbox::{Message, Outbox, Outcome};
use super::thread::AmqpThread;
use crate::broker::{Outgoing, PublishError, Publisher};

/// The publish connection, as the tasks of the thread see it.
#[derive(Clone)]
pub(super) struct PublishLink {
    /// The messages.
    pub(super) outbox: Arc<Outbox>,
    /// How the connection is.
    pub(super) health: watch::Receiver<LinkHealth>,
    /// Told when the connection takes messages and answers nothing.
    pub(super) rebuild: Arc<Notify>,
}

impl PublishLink {
    /// Publishes and waits for the confirm, at most `wait`. The broker drops it after `expiration`, if it is given.
    pub(super) async fn publish(&self, outgoing: Outgoing, wait: Duration, expiration: Option<Duration>) -> Outcome {
        let expiration_ms = expiration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let routing_key = outgoing.routing_key.clone();
        let mut ticket = self.outbox.add(Message { outgoing, expiration_ms });
        let reason = match timeout(wait, &mut ticket.outcome).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => "the message was given up".to_owned(),
            Err(_) => match &*self.health.borrow() {
                LinkHealth::Up => "it is connected and does not answer".to_owned(),
                LinkHealth::Blocked(reason) => format!("it takes no messages now: {reason}"),
                LinkHealth::Down(reason) => reason.clone(),
            },
        };
        Err(PublishError::Unconfirmed { routing_key, sent: ticket.was_sent(), waited_seconds: wait.as_secs(), reason })
    }
}

/// A publisher, as callers hold it.
#[derive(Clone)]
pub(super) struct PublishHandle {
    /// The connection behind it.
    pub(super) link: PublishLink,
    /// How long a caller waits.
    pub(super) wait: Duration,
    /// Keeps the task's thread.
    pub(super) _thread: Arc<AmqpThread>,
}

#[async_trait]
impl Publisher for PublishHandle {
    async fn publish(&self, message: Outgoing) -> Outcome {
        self.link.publish(message, self.wait, None).await
    }
}
