//! Publishing and subscribing.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

use super::state::{ConsumerId, Published};
use super::{MemorySettings, Shared, letters, session};
use crate::broker::letters::{Holder, LetterReader, ReadLettersError};
use crate::broker::topology::{QueueType, control_queue, host_queues, shared_queues};
use crate::broker::{
    Broker, BrokerError, Heard, HostOnBroker, HostSession, LETTER_BYTES_KEPT_MAX, Outgoing, PublishError, Publisher,
    Subscription,
};
use crate::model::id::HostId;

/// What is said while the broker is away.
pub(super) const DOWN: &str = "the broker is down";

/// A client.
pub(super) struct MemoryClient {
    shared: Arc<Shared>,
    settings: MemorySettings,
}

impl MemoryClient {
    /// A client; it declares what all hosts share, as the real one does.
    pub(super) fn new(shared: Arc<Shared>, settings: MemorySettings) -> Self {
        shared.change(|state| state.declare(shared_queues()));
        Self { shared, settings }
    }
}

#[async_trait]
impl Broker for MemoryClient {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(MemoryPublisher { shared: Arc::clone(&self.shared), settings: self.settings.clone() })
    }

    async fn open_host(&self, host: &HostId) -> Box<dyn HostSession> {
        session::open(Arc::clone(&self.shared), self.settings.clone(), host.clone())
    }

    async fn inspect(&self, host: &HostId) -> Result<HostOnBroker, BrokerError> {
        let state = self.shared.look();
        if !state.up {
            return Err(BrokerError {
                action: "look at the host's queues".to_owned(),
                address: "memory".to_owned(),
                source: DOWN.into(),
            });
        }
        let names = host_queues(host, QueueType::Classic).into_iter().map(|queue| queue.name);
        let missing = names.filter(|name| state.depth(name).is_none()).collect();
        Ok(HostOnBroker { missing, ..HostOnBroker::default() })
    }

    async fn control_readers(&self, hosts: &[HostId]) -> Result<Vec<Option<u32>>, BrokerError> {
        let state = self.shared.look();
        if !state.up {
            return Err(BrokerError {
                action: "look who reads the hosts' control queues".to_owned(),
                address: "memory".to_owned(),
                source: DOWN.into(),
            });
        }
        Ok(hosts.iter().map(|host| state.readers(&control_queue(host))).collect())
    }

    async fn subscribe(
        &self,
        exchange: &'static str,
        binding_keys: &[String],
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        let subscribed = self.shared.change(|state| state.up.then(|| state.subscribe(exchange, binding_keys)));
        let Some((consumer, queue)) = subscribed else {
            return Err(BrokerError {
                action: format!("subscribe to exchange `{exchange}`"),
                address: "memory".to_owned(),
                source: DOWN.into(),
            });
        };
        Ok(Box::new(MemorySubscription { shared: Arc::clone(&self.shared), consumer, queue, lost: false }))
    }

    async fn read_letters(&self) -> Result<Box<dyn LetterReader>, ReadLettersError> {
        letters::open(&self.shared)
    }

    async fn letters_holder(&self) -> Result<Option<Holder>, BrokerError> {
        letters::holder(&self.shared)
    }
}

struct MemoryPublisher {
    shared: Arc<Shared>,
    settings: MemorySettings,
}

impl MemoryPublisher {
    /// Publishes as soon as the broker lets us.
    async fn publish_when_up(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if self.shared.look().why_closed().is_none() {
                return match self.shared.change(|state| state.publish(outgoing)) {
                    Published::Confirmed => Ok(()),
                    Published::Not(error) => Err(error),
                    Published::ConfirmLost => std::future::pending().await,
                };
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let wait = self.settings.publish_wait;
        timeout(wait, self.publish_when_up(&message)).await.unwrap_or_else(|_| {
            let closed = self.shared.look().why_closed();
            Err(PublishError::Unconfirmed {
                routing_key: message.routing_key,
                sent: closed.is_none(),
                waited_seconds: wait.as_secs(),
                reason: closed.unwrap_or_else(|| "it does not answer".to_owned()),
            })
        })
    }
}

struct MemorySubscription {
    shared: Arc<Shared>,
    consumer: ConsumerId,
    queue: String,
    /// The reader was told that the connection is lost.
    lost: bool,
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Option<Heard> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if self.lost == self.shared.look().up {
                self.lost = !self.lost;
                return Some(if self.lost { Heard::Lost(DOWN.to_owned()) } else { Heard::Back });
            }
            let taken = self.shared.look().take(&self.queue, self.consumer, usize::MAX);
            if let Some((address, mut stored)) = taken {
                self.shared.change(|state| state.ack(&address));
                stored.message.body.truncate(LETTER_BYTES_KEPT_MAX);
                return Some(Heard::Message(Box::new(stored.message)));
            }
            changes.changed().await.ok()?;
        }
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.shared.change(|state| state.release(self.consumer));
    }
}
