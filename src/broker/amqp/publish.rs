//! Confirmed publishing: the task that serves the callers.
//!
//! ```text
//!            ┌── lost, or no link ──────────────┐
//!            v                                  │
//!       connecting ──> declaring ──> pumping ───┤
//!            ^ (backoff)   ^            │ channel closed by the broker
//!            │             └────────────┘ (then one message at a time, to find the one at fault)
//! ```
//!
//! A message stays in the task's slots until the broker has confirmed or refused it, so whatever breaks, it is sent again. Its
//! caller waits no longer than the limit; after that nobody sends it again, but it may have been kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::convert::{short, to_lapin};
use super::declare::declare;
use super::failure::{LinkError, answer};
use super::flight::{Flight, Settled};
use super::link::{Link, LinkHealth, lost};
use super::publisher::{PublishHandle, Slot};
use super::returns::mark;
use super::thread::AmqpThread;
use crate::broker::PublishError;
use crate::broker::backoff::Backoff;
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::shared_queues;

/// What is said of a message that got a negative confirm.
const NACK_MEANS: &str = "it could not be kept, as when the queue is at its limit";

/// Starts the task.
pub(super) fn start(thread: &Arc<AmqpThread>, settings: Arc<BrokerSettings>) -> PublishHandle {
    let (sender, slots) = mpsc::unbounded_channel();
    let (health, health_seen) = watch::channel(LinkHealth::Down("not connected yet".to_owned()));
    let rebuild = Arc::new(Notify::new());
    let task = PublishTask {
        settings: Arc::clone(&settings),
        incoming: slots,
        health,
        rebuild: Arc::clone(&rebuild),
        stop: thread.stop_token(),
        slots: BTreeMap::new(),
        next: 0,
        suspicious: false,
    };
    thread.spawn(task.run());
    PublishHandle::new(thread, sender, health_seen, rebuild, settings.publish_wait)
}

/// Why pumping ended.
enum End {
    /// The door is closed.
    Stopped,
    /// The broker closed the channel over one of the messages.
    ChannelClosed,
}

/// The task.
struct PublishTask {
    settings: Arc<BrokerSettings>,
    incoming: mpsc::UnboundedReceiver<Slot>,
    health: watch::Sender<LinkHealth>,
    rebuild: Arc<Notify>,
    stop: CancellationToken,
    slots: BTreeMap<u64, Slot>,
    next: u64,
    /// One of the slots made the broker close the channel: they go one at a time until it is found.
    suspicious: bool,
}

impl PublishTask {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        let stop = self.stop.clone();
        loop {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = self.connected(&mut backoff) => ended,
            };
            let Err(error) = ended else { return };
            tracing::warn!("publishing waits: {}", error.chain());
            self.health.send_replace(LinkHealth::Down(error.chain()));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// One connection, from its begin to its end.
    async fn connected(&mut self, backoff: &mut Backoff) -> Result<(), LinkError> {
        let link = Link::open(&self.settings, "publish").await?;
        loop {
            declare(&link, &shared_queues()).await?;
            let channel = link.channel().await?;
            answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            backoff.reset();
            match self.pump(&link, &channel).await? {
                End::ChannelClosed => {}
                End::Stopped => {
                    link.close().await;
                    return Ok(());
                }
            }
        }
    }

    /// Sends what is there and settles what is confirmed, until something ends.
    async fn pump(&mut self, link: &Link, channel: &Channel) -> Result<End, LinkError> {
        let mut health = link.health();
        let mut gone = link.health();
        self.health.send_replace(health.borrow_and_update().clone());
        let mut flight = Flight::default();
        self.slots.retain(|_, slot| !slot.reply.is_closed());
        let mut to_send: VecDeque<u64> = self.slots.keys().copied().collect();
        self.suspicious &= !to_send.is_empty();
        loop {
            while (!self.suspicious || flight.len() == 0)
                && let Some(number) = to_send.pop_front()
            {
                self.send(number, channel, &flight);
            }
            tokio::select! {
                biased;
                error = lost(&mut gone) => return Err(error),
                batch = flight.settled(), if flight.len() > 0 => {
                    if let Some(error) = self.settle(batch) {
                        return self.channel_failed(error, flight.len() + 1);
                    }
                    self.suspicious &= !(to_send.is_empty() && flight.len() == 0);
                }
                changed = health.changed() => {
                    if changed.is_ok() {
                        self.health.send_replace(health.borrow_and_update().clone());
                    }
                }
                () = self.rebuild.notified() => {
                    return Err(LinkError::Silent("the broker takes messages and confirms none".to_owned()));
                }
                slot = self.incoming.recv(), if !self.suspicious => match slot {
                    Some(slot) => to_send.push_back(self.keep(slot)),
                    None => return Ok(End::Stopped),
                }
            }
        }
    }

    fn keep(&mut self, slot: Slot) -> u64 {
        let number = self.next;
        self.next += 1;
        self.slots.insert(number, slot);
        number
    }

    /// Puts a message on its way, or refuses it where AMQP cannot carry it.
    fn send(&mut self, number: u64, channel: &Channel, flight: &Flight) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        if slot.reply.is_closed() {
            self.slots.remove(&number);
            return;
        }
        slot.returned = false;
        let outgoing = &slot.outgoing;
        let fitted = short("routing key", &outgoing.routing_key)
            .and_then(|key| Ok((key, to_lapin(&outgoing.properties, slot.expiration_ms)?)));
        let (key, properties) = match fitted {
            Ok(fitted) => fitted,
            Err(error) => return self.refuse(number, error.to_string()),
        };
        let (exchange, body, channel) = (outgoing.exchange, outgoing.body.clone(), channel.clone());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        flight.push(Box::pin(async move {
            let sent = channel.basic_publish(exchange.into(), key, options, &body, properties).await;
            match sent {
                Ok(confirm) => (number, confirm.await),
                Err(error) => (number, Err(error)),
            }
        }));
    }

    /// Tells the callers what became of their messages. Gives the error of one that got no answer, which the channel's end
    /// brings; its slot stays, to be sent again.
    fn settle(&mut self, batch: Vec<Settled>) -> Option<lapin::Error> {
        let mut failed: Option<lapin::Error> = None;
        let mut answered = Vec::with_capacity(batch.len());
        for (number, confirmation) in batch {
            match confirmation {
                Ok(confirmation) => {
                    let nack = confirmation.is_nack();
                    if let Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) = confirmation {
                        mark(&mut self.slots, &returned);
                    }
                    answered.push((number, nack));
                }
                // The error that names the broker's reason tells more than the ones that follow from it.
                Err(error) if failed.as_ref().is_none_or(|known| !known.is_amqp_soft_error()) => failed = Some(error),
                Err(_) => {}
            }
        }
        for (number, nack) in answered {
            if nack {
                self.refuse(number, NACK_MEANS.to_owned());
            } else if let Some(slot) = self.slots.remove(&number) {
                let outcome = match slot.returned {
                    false => Ok(()),
                    true => Err(PublishError::Unroutable {
                        exchange: slot.outgoing.exchange.to_owned(),
                        routing_key: slot.outgoing.routing_key,
                    }),
                };
                // The caller may have given up.
                _ = slot.reply.send(outcome);
            }
        }
        failed
    }

    fn refuse(&mut self, number: u64, reason: String) {
        if let Some(slot) = self.slots.remove(&number) {
            let routing_key = slot.outgoing.routing_key;
            // The caller may have given up.
            _ = slot.reply.send(Err(PublishError::Refused { routing_key, reason }));
        }
    }

    /// The channel is closed. Over what? If one message was in flight, that one is refused; if several were, they are sent
    /// again one at a time.
    fn channel_failed(&mut self, error: lapin::Error, were_in_flight: usize) -> Result<End, LinkError> {
        if !error.is_amqp_soft_error() {
            return Err(LinkError::Failed { action: "publish".to_owned(), source: error });
        }
        let oldest = self.slots.keys().next().copied();
        match oldest {
            Some(number) if were_in_flight == 1 => {
                let error = LinkError::Failed { action: "publish".to_owned(), source: error };
                self.refuse(number, error.chain());
            }
            _ => self.suspicious = true,
        }
        Ok(End::ChannelClosed)
    }
}
