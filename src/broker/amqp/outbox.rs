//! Messages on their way to the broker, between their callers and the publisher's task.
//!
//! ```text
//!  add ──> unsent ──take──> sent ──settle──> the caller
//!            ^  │             │
//!            │  └ caller gave │ (put_back: the channel is gone)
//!            │    up: removed │
//!            └────────────────┘
//! ```
//!
//! A message gets its place when it is added, so a caller's messages keep their order however the caller polls them. Each
//! belongs to a caller that waits; when it stops waiting, a message that was not sent is removed, so nothing piles up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::message::BasicReturnMessage;
use tokio::sync::{Notify, oneshot};

use crate::broker::{Outgoing, PublishError};

/// What a caller gets in the end.
pub(super) type Outcome = Result<(), PublishError>;

/// A message and its caller.
struct Slot {
    message: Arc<Message>,
    reply: oneshot::Sender<Outcome>,
    /// The broker has sent it back.
    returned: bool,
    /// It was on its way before, on whichever channel.
    was_sent: bool,
}

/// What is sent.
pub(super) struct Message {
    /// The message.
    pub(super) outgoing: Outgoing,
    /// After how many milliseconds the broker drops it.
    pub(super) expiration_ms: Option<u64>,
}

#[derive(Default)]
struct Slots {
    next: u64,
    unsent: BTreeMap<u64, Slot>,
    sent: BTreeMap<u64, Slot>,
}

/// The messages.
#[derive(Default)]
pub(super) struct Outbox {
    slots: Mutex<Slots>,
    filled: Notify,
}

/// A caller's hold on its message.
pub(super) struct Ticket {
    number: u64,
    outbox: Arc<Outbox>,
    /// Where the outcome comes.
    pub(super) outcome: oneshot::Receiver<Outcome>,
}

impl Ticket {
    /// Whether the message was ever on its way.
    pub(super) fn was_sent(&self) -> bool {
        let slots = self.outbox.lock();
        slots.unsent.get(&self.number).is_none_or(|slot| slot.was_sent)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.outbox.lock().unsent.remove(&self.number);
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message behind all others.
    pub(super) fn add(self: &Arc<Self>, message: Message) -> Ticket {
        let (reply, outcome) = oneshot::channel();
        let mut slots = self.lock();
        let number = slots.next;
        slots.next += 1;
        slots.unsent.insert(number, Slot { message: Arc::new(message), reply, returned: false, was_sent: false });
        drop(slots);
        self.filled.notify_one();
        Ticket { number, outbox: Arc::clone(self), outcome }
    }

    /// Waits until something was added. An addition while nobody waited counts.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The first message that was not sent. It counts as sent from now on.
    pub(super) fn take(&self) -> Option<(u64, Arc<Message>)> {
        let mut slots = self.lock();
        let (number, mut slot) = slots.unsent.pop_first()?;
        slot.was_sent = true;
        let message = Arc::clone(&slot.message);
        slots.sent.insert(number, slot);
        Some((number, message))
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_all_sent(&self) -> bool {
        self.lock().unsent.is_empty()
    }

    /// The channel is gone: what was sent and not settled has to be sent again, unless its caller has given up.
    pub(super) fn put_back(&self) {
        let mut slots = self.lock();
        while let Some((number, mut slot)) = slots.sent.pop_first() {
            if !slot.reply.is_closed() {
                slot.returned = false;
                slots.unsent.insert(number, slot);
            }
        }
    }

    /// The broker has sent a message back.
    ///
    /// With several messages in flight lapin attaches it to whichever confirm it settles next, and the broker may well
    /// confirm another message first: a job that nobody took would count as published, and one that was kept as unroutable.
    /// Hence it is compared with those in flight. The oldest counts, where several are alike: they go the same way.
    pub(super) fn mark_returned(&self, returned: &BasicReturnMessage) {
        let message_id = returned.properties.message_id().as_ref().map_or("", |id| id.as_str());
        let mut slots = self.lock();
        let found = slots.sent.values_mut().find(|slot| {
            let outgoing = &slot.message.outgoing;
            !slot.returned
                && outgoing.exchange == returned.exchange.as_str()
                && outgoing.routing_key == returned.routing_key.as_str()
                && outgoing.properties.message_id == message_id
        });
        match found {
            Some(slot) => slot.returned = true,
            None => tracing::warn!(message_id, "the broker sent back a message that is not in flight"),
        }
    }

    /// The broker has confirmed a message, which may have been sent back before.
    pub(super) fn confirmed(&self, number: u64) {
        self.settle(number, |slot| match slot.returned {
            false => Ok(()),
            true => Err(PublishError::Unroutable {
                exchange: slot.message.outgoing.exchange.to_owned(),
                routing_key: slot.message.outgoing.routing_key.clone(),
            }),
        });
    }

    /// A message was refused.
    pub(super) fn refused(&self, number: u64, reason: String) {
        self.settle(number, |slot| {
            Err(PublishError::Refused { routing_key: slot.message.outgoing.routing_key.clone(), reason })
        });
    }

    /// Gives up all messages that are to be sent: the broker does not let us in.
    pub(super) fn give_up(&self, reason: &str) {
        let unsent = std::mem::take(&mut self.lock().unsent);
        for slot in unsent.into_values() {
            let (routing_key, sent) = (slot.message.outgoing.routing_key.clone(), slot.was_sent);
            let reason = reason.to_owned();
            // The caller may have given up.
            _ = slot.reply.send(Err(PublishError::Unconfirmed { routing_key, sent, waited_seconds: 0, reason }));
        }
    }

    fn settle(&self, number: u64, outcome: impl FnOnce(&Slot) -> Outcome) {
        let slot = self.lock().sent.remove(&number);
        if let Some(slot) = slot {
            let outcome = outcome(&slot);
            // The caller may have given up.
            _ = slot.reply.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::broker::Properties;

    fn message(name: &str) -> Message {
        let outgoing = Outgoing {
            exchange: "longshore.jobs",
            routing_key: name.to_owned(),
            properties: Properties::default(),
            body: Vec::new(),
        };
        Message { outgoing, expiration_ms: None }
    }

    fn taken(outbox: &Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.take()).map(|(_, message)| message.outgoing.routing_key.clone()).collect()
    }

    #[test]
    fn what_was_not_settled_is_sent_again_in_its_old_place() {
        let outbox = Arc::new(Outbox::default());
        let mut tickets = ["a", "b", "c"].map(|name| outbox.add(message(name)));
        assert_eq!(taken(&outbox), ["a", "b", "c"]);
        outbox.confirmed(1);
        assert_eq!(tickets[1].outcome.try_recv().unwrap(), Ok(()));
        let _later = outbox.add(message("d"));
        outbox.put_back();
        assert_eq!(taken(&outbox), ["a", "c", "d"]);
    }

    #[test]
    fn it_is_known_whether_a_message_was_ever_on_its_way() {
        let outbox = Arc::new(Outbox::default());
        let tickets = ["a", "b"].map(|name| outbox.add(message(name)));
        outbox.take();
        assert_eq!(tickets.each_ref().map(Ticket::was_sent), [true, false]);
        outbox.put_back();
        assert_eq!(tickets.each_ref().map(Ticket::was_sent), [true, false]);
        outbox.give_up("no");
        for (mut ticket, sent) in tickets.into_iter().zip([true, false]) {
            let outcome = ticket.outcome.try_recv().unwrap();
            assert!(matches!(outcome, Err(PublishError::Unconfirmed { sent: said, .. }) if said == sent));
        }
    }

    #[test]
    fn a_caller_that_gives_up_leaves_nothing_behind() {
        let outbox = Arc::new(Outbox::default());
        drop(outbox.add(message("never sent")));
        assert!(outbox.is_all_sent());
        let sent = outbox.add(message("sent"));
        assert_eq!(taken(&outbox), ["sent"]);
        drop(sent);
        outbox.put_back();
        assert!(outbox.is_all_sent(), "nobody waits for it any more");
    }
}
