//! What the broker knows: a plain state machine, without waiting.

use std::collections::{BTreeMap, BTreeSet};

use super::{Depth, USER};
use crate::broker::letters::Occupation;
use crate::broker::topology::{EXCHANGES, ExchangeType, Queue as Declared, topic_matches};
use crate::broker::{EventMessage, Outgoing, PublishError};

/// A consumer or a subscription. Never used twice.
pub(super) type ConsumerId = u64;

/// Where a delivery stands, for its ack.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// Its queue.
    pub(super) queue: String,
    /// Its place in it.
    pub(super) place: u64,
    /// Who holds it.
    pub(super) consumer: ConsumerId,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The message.
    pub(super) message: EventMessage,
    /// It was handed over before.
    pub(super) redelivered: bool,
}

#[derive(Default)]
struct Queue {
    /// By place: what comes back goes where it was.
    ready: BTreeMap<u64, Stored>,
    unacked: BTreeMap<u64, (ConsumerId, Stored)>,
    next_place: u64,
    exclusive_to: Option<ConsumerId>,
    /// A queue that goes with its reader.
    owned_by: Option<ConsumerId>,
}

struct Binding {
    exchange: String,
    key: String,
    queue: String,
}

/// What became of a publish.
pub(super) enum Published {
    /// Kept.
    Confirmed,
    /// Kept, and the publisher is never told.
    ConfirmLost,
    /// Not kept.
    Not(PublishError),
}

/// The state.
#[derive(Default)]
pub(super) struct State {
    /// Whether the broker runs.
    pub(super) up: bool,
    /// Why it reads nothing from publishers, if so.
    pub(super) blocked: Option<String>,
    /// How many publishes are refused next.
    pub(super) refuse_next: usize,
    /// How many confirms are lost next.
    pub(super) lose_next_confirms: usize,
    /// Who read the dead letters last, and what it does.
    pub(super) letters_reader: Option<(ConsumerId, Occupation)>,
    /// How many ready messages a queue takes.
    pub(super) limits: BTreeMap<String, usize>,
    queues: BTreeMap<String, Queue>,
    bindings: Vec<Binding>,
    consumers: BTreeSet<ConsumerId>,
    silent: BTreeSet<ConsumerId>,
    next_consumer: ConsumerId,
}

impl State {
    /// An empty broker that is up.
    pub(super) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    /// Declares queues with their bindings; those that are there stay as they are.
    pub(super) fn declare(&mut self, queues: Vec<Declared>) {
        for queue in queues {
            self.queues.entry(queue.name.clone()).or_default();
            self.bind(queue.exchange, &queue.binding_key, &queue.name);
        }
    }

    fn bind(&mut self, exchange: &str, key: &str, queue: &str) {
        if !self.bindings.iter().any(|b| b.exchange == exchange && b.key == key && b.queue == queue) {
            self.bindings.push(Binding { exchange: exchange.to_owned(), key: key.to_owned(), queue: queue.to_owned() });
        }
    }

    /// Declares a queue that goes with its reader.
    pub(super) fn subscribe(&mut self, exchange: &str, keys: &[String]) -> (ConsumerId, String) {
        let consumer = self.consumer();
        let name = format!("memory.gen-{consumer}");
        self.queues.insert(name.clone(), Queue { owned_by: Some(consumer), ..Queue::default() });
        for key in keys {
            self.bind(exchange, key, &name);
        }
        (consumer, name)
    }

    /// Removes a queue and its bindings.
    pub(super) fn delete_queue(&mut self, queue: &str) {
        if let Some(queue) = self.queues.remove(queue)
            && let Some(consumer) = queue.exclusive_to
        {
            // The broker cancels the consumers of a queue that goes.
            self.release(consumer);
        }
        self.bindings.retain(|binding| binding.queue != queue);
    }

    /// Why nothing can be published now, if so.
    pub(super) fn why_closed(&self) -> Option<String> {
        match &self.blocked {
            _ if !self.up => Some(super::client::DOWN.to_owned()),
            Some(reason) => Some(format!("it takes no messages now: {reason}")),
            None => None,
        }
    }

    /// Routes a message.
    pub(super) fn publish(&mut self, outgoing: &Outgoing) -> Published {
        let refused = |reason: String| {
            Published::Not(PublishError::Refused { routing_key: outgoing.routing_key.clone(), reason })
        };
        let Some(exchange) = EXCHANGES.iter().find(|exchange| exchange.name == outgoing.exchange) else {
            return refused(format!("no exchange `{}`", outgoing.exchange));
        };
        if self.refuse_next > 0 {
            self.refuse_next -= 1;
            return refused("the test says so".to_owned());
        }
        let takes = |binding: &&Binding| match exchange.exchange_type {
            ExchangeType::Direct => binding.key == outgoing.routing_key,
            ExchangeType::Topic => topic_matches(&binding.key, &outgoing.routing_key),
        };
        let bound = self.bindings.iter().filter(|binding| binding.exchange == exchange.name).filter(takes);
        let names: BTreeSet<String> = bound.map(|binding| binding.queue.clone()).collect();
        if names.is_empty() {
            return Published::Not(PublishError::Unroutable {
                exchange: outgoing.exchange.to_owned(),
                routing_key: outgoing.routing_key.clone(),
            });
        }
        for name in &names {
            let ready = self.queues.get(name).map_or(0, |queue| queue.ready.len());
            if self.limits.get(name).is_some_and(|limit| ready >= *limit) {
                return refused(format!("queue `{name}` is at its limit"));
            }
        }
        for name in names {
            if let Some(queue) = self.queues.get_mut(&name) {
                let mut properties = outgoing.properties.clone();
                properties.user_id.get_or_insert_with(|| USER.to_owned());
                let message = EventMessage {
                    routing_key: outgoing.routing_key.clone(),
                    has_cc: properties.headers.contains_key("CC"),
                    properties,
                    body: outgoing.body.clone(),
                };
                queue.ready.insert(queue.next_place, Stored { message, redelivered: false });
                queue.next_place += 1;
            }
        }
        if self.lose_next_confirms > 0 {
            self.lose_next_confirms -= 1;
            return Published::ConfirmLost;
        }
        Published::Confirmed
    }

    fn consumer(&mut self) -> ConsumerId {
        self.next_consumer += 1;
        self.consumers.insert(self.next_consumer);
        self.next_consumer
    }

    /// Takes a queue for one consumer alone; none if another has it, or the queue is gone.
    pub(super) fn consume_exclusively(&mut self, queue: &str) -> Option<ConsumerId> {
        if self.queues.get(queue)?.exclusive_to.is_some() {
            return None;
        }
        let consumer = self.consumer();
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.exclusive_to = Some(consumer);
        }
        Some(consumer)
    }

    /// How many read a queue that is read by one alone; none where it is missing.
    pub(super) fn readers(&self, queue: &str) -> Option<u32> {
        self.queues.get(queue).map(|queue| queue.exclusive_to.is_some().into())
    }

    /// Whether the broker still knows a consumer.
    pub(super) fn knows(&self, consumer: ConsumerId) -> bool {
        self.consumers.contains(&consumer)
    }

    /// Whether a consumer gets nothing any more.
    pub(super) fn is_silent(&self, consumer: ConsumerId) -> bool {
        self.silent.contains(&consumer)
    }

    /// All present consumers get nothing any more.
    pub(super) fn silence_consumers(&mut self) {
        self.silent = self.consumers.clone();
    }

    /// Hands over the first message of a queue, if the consumer may have one more.
    pub(super) fn take(&mut self, queue: &str, consumer: ConsumerId, prefetch: usize) -> Option<(Address, Stored)> {
        if !self.up || !self.knows(consumer) || self.is_silent(consumer) {
            return None;
        }
        let name = queue.to_owned();
        let queue = self.queues.get_mut(queue)?;
        if queue.unacked.values().filter(|(holder, _)| *holder == consumer).count() >= prefetch {
            return None;
        }
        let (place, stored) = queue.ready.pop_first()?;
        queue.unacked.insert(place, (consumer, stored.clone()));
        Some((Address { queue: name, place, consumer }, stored))
    }

    /// Whether a delivery is its holder's still.
    pub(super) fn holds(&self, address: &Address) -> bool {
        let held = self.queues.get(&address.queue).and_then(|queue| queue.unacked.get(&address.place));
        held.is_some_and(|(holder, _)| *holder == address.consumer)
    }

    /// Settles a delivery. `false` if it is not its holder's any more.
    pub(super) fn ack(&mut self, address: &Address) -> bool {
        let held = self.holds(address);
        if held && let Some(queue) = self.queues.get_mut(&address.queue) {
            queue.unacked.remove(&address.place);
        }
        held
    }

    /// A consumer's connection is gone: what it holds goes back, what is its own goes away.
    pub(super) fn release(&mut self, consumer: ConsumerId) {
        self.consumers.remove(&consumer);
        self.silent.remove(&consumer);
        let own: Vec<String> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.owned_by == Some(consumer))
            .map(|(name, _)| name.clone())
            .collect();
        for name in own {
            self.delete_queue(&name);
        }
        for queue in self.queues.values_mut() {
            queue.exclusive_to = queue.exclusive_to.filter(|holder| *holder != consumer);
            let held: Vec<u64> =
                queue.unacked.iter().filter(|(_, (holder, _))| *holder == consumer).map(|(place, _)| *place).collect();
            for place in held {
                if let Some((_, stored)) = queue.unacked.remove(&place) {
                    queue.ready.insert(place, Stored { redelivered: true, ..stored });
                }
            }
        }
    }

    /// The broker is killed.
    pub(super) fn go_down(&mut self) {
        self.up = false;
        self.blocked = None;
        // Subscribers come back with a new queue; that theirs is emptied instead looks the same to them.
        let subscribers: BTreeSet<ConsumerId> = self.queues.values().filter_map(|queue| queue.owned_by).collect();
        for consumer in self.consumers.clone().difference(&subscribers) {
            self.release(*consumer);
        }
        for queue in self.queues.values_mut() {
            let emptied = queue.owned_by.is_some();
            queue.ready.retain(|_, stored| stored.message.properties.persistent && !emptied);
        }
    }

    /// How many messages a queue has.
    pub(super) fn depth(&self, queue: &str) -> Option<Depth> {
        self.queues.get(queue).map(|queue| Depth { ready: queue.ready.len(), unacked: queue.unacked.len() })
    }

    /// Messages that wait for subscribers.
    pub(super) fn unread(&self) -> usize {
        self.queues.values().filter(|queue| queue.owned_by.is_some()).map(|queue| queue.ready.len()).sum()
    }

    /// Messages that wait.
    pub(super) fn ready_messages(&self, queue: &str) -> Vec<EventMessage> {
        let queue = self.queues.get(queue);
        queue.into_iter().flat_map(|queue| queue.ready.values()).map(|stored| stored.message.clone()).collect()
    }
}
