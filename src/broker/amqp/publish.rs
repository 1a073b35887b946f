//! Confirmed publishing: the task that serves the callers.
//!
//! ```text
//!       connecting ──> declaring ──> sending and settling
//!            ^            ^             │         │
//!            │            └─────────────┘         │
//!            │   the broker closed the channel    │
//!            └──────── lost, after a wait ────────┘
//! ```
//!
//! Whatever breaks, a message stays in the outbox until the broker has confirmed or refused it, and is sent again. A channel
//! that the broker closes takes all messages in flight with it and only one of them is at fault, so they are then sent one at
//! a time until that one has shown itself.

use std::pin::pin;
use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::convert::{short, to_lapin};
use super::declare::declare;
use super::failure::{LinkError, answer};
use super::flight::{Flight, Settled};
use super::link::{Link, LinkHealth, Role, lost};
use super::outbox::{Message, Outbox};
use super::publisher::{PublishHandle, PublishLink};
use super::thread::AmqpThread;
use crate::broker::backoff::Backoff;
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::shared_queues;
use crate::broker::{Outgoing, PUBLISHES_IN_FLIGHT_MAX};

/// What is said of a message that got a negative confirm.
const NACK_MEANS: &str = "it could not be kept, as when the queue is at its limit";

/// Starts the task.
pub(super) fn start(thread: &Arc<AmqpThread>, settings: Arc<BrokerSettings>) -> PublishHandle {
    let (health, health_seen) = watch::channel(LinkHealth::Down("not connected yet".to_owned()));
    let outbox = Arc::new(Outbox::default());
    let rebuild = Arc::new(Notify::new());
    let wait = settings.publish_wait;
    let task = PublishTask { settings, outbox: Arc::clone(&outbox), health, rebuild: Arc::clone(&rebuild) };
    thread.spawn(task.run(thread.stop_token()));
    let link = PublishLink { outbox, health: health_seen, rebuild };
    PublishHandle { link, wait, _thread: Arc::clone(thread) }
}

/// The task.
struct PublishTask {
    settings: Arc<BrokerSettings>,
    outbox: Arc<Outbox>,
    health: watch::Sender<LinkHealth>,
    rebuild: Arc<Notify>,
}

impl PublishTask {
    async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let Err(error) = self.life(&stop, &mut backoff).await else { return };
            self.outbox.put_back();
            tracing::warn!("publishing waits: {}", error.chain());
            self.health.send_replace(LinkHealth::Down(error.chain()));
            if !self.settings.patient && error.is_access_refused() {
                self.outbox.give_up(&error.chain());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// One connection, from its begin to its end. `Ok` means that the door is closed.
    async fn life(&self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<(), LinkError> {
        let link = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            link = Link::open(&self.settings, Role::Publish) => link?,
        };
        let mut serving = pin!(self.serve(&link, backoff));
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            error = &mut serving => Err(error),
        };
        // Before the channels go with `serving`: lapin makes an error of a goodbye that crosses that of a channel.
        link.close().await;
        ended
    }

    /// Serves the callers until the connection breaks.
    async fn serve(&self, link: &Link, backoff: &mut Backoff) -> LinkError {
        let mut one_at_a_time = false;
        loop {
            let channel = match self.prepare(link).await {
                Ok(channel) => channel,
                Err(error) => return error,
            };
            backoff.reset();
            if let Err(error) = self.pump(link, &channel, &mut one_at_a_time).await {
                return error;
            }
            self.outbox.put_back();
        }
    }

    /// Opens a channel that confirms, with what all hosts share declared.
    async fn prepare(&self, link: &Link) -> Result<Channel, LinkError> {
        declare(link, &shared_queues()).await?;
        let channel = link.channel().await?;
        answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Sends what is there and settles what is confirmed. Ends well when the broker has closed the channel.
    async fn pump(&self, link: &Link, channel: &Channel, one_at_a_time: &mut bool) -> Result<(), LinkError> {
        let mut health = link.health();
        let mut gone = link.health();
        self.health.send_replace(health.borrow_and_update().clone());
        let mut flight = Flight::default();
        loop {
            let room = if *one_at_a_time { 1 } else { PUBLISHES_IN_FLIGHT_MAX };
            while flight.len() < room
                && let Some((number, message)) = self.outbox.take()
            {
                self.send(number, &message, channel, &flight);
            }
            tokio::select! {
                biased;
                error = lost(&mut gone) => return Err(error),
                batch = flight.settled(), if flight.len() > 0 => {
                    let failed = self.settle(batch);
                    if let Some(error) = failed.error {
                        let suspects = self.closed(error, &failed.numbers, flight.len())?;
                        *one_at_a_time |= suspects > 1;
                        return Ok(());
                    }
                    *one_at_a_time &= !self.outbox.is_all_sent();
                }
                Ok(()) = health.changed() => {
                    self.health.send_replace(health.borrow_and_update().clone());
                }
                () = self.rebuild.notified() => {
                    return Err(LinkError::Silent("the broker takes messages and confirms none".to_owned()));
                }
                () = self.outbox.filled(), if flight.len() < room => {}
            }
        }
    }

    /// Puts a message on its way, or refuses it where AMQP cannot carry it.
    fn send(&self, number: u64, message: &Arc<Message>, channel: &Channel, flight: &Flight) {
        let user = self.settings.uri.user();
        let fitted = short("routing key", &message.outgoing.routing_key)
            .and_then(|key| Ok((key, to_lapin(&message.outgoing.properties, user, message.expiration_ms)?)));
        let (key, properties) = match fitted {
            Ok(fitted) => fitted,
            Err(error) => return self.outbox.refused(number, error.to_string()),
        };
        let (message, channel) = (Arc::clone(message), channel.clone());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        flight.push(Box::pin(async move {
            let Outgoing { exchange, body, .. } = &message.outgoing;
            match channel.basic_publish((*exchange).into(), key, options, body, properties).await {
                Ok(confirm) => (number, confirm.await),
                Err(error) => (number, Err(error)),
            }
        }));
    }

    /// Tells the callers what became of their messages. Those that failed stay, to be sent again.
    fn settle(&self, batch: Vec<Settled>) -> Failed {
        let mut failed = Failed::default();
        let mut answered = Vec::with_capacity(batch.len());
        for (number, confirmation) in batch {
            match confirmation {
                Ok(confirmation) => {
                    answered.push((number, confirmation.is_nack()));
                    if let Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) = confirmation {
                        self.outbox.mark_returned(&returned);
                    }
                }
                Err(error) => failed.add(number, error),
            }
        }
        // Only now: what was sent back may have come with a later confirm than its own.
        for (number, nack) in answered {
            match nack {
                true => self.outbox.refused(number, NACK_MEANS.to_owned()),
                false => self.outbox.confirmed(number),
            }
        }
        failed
    }

    /// The channel does not work any more. If the broker closed it and one message alone was in flight, that one is refused.
    /// Gives how many may be at fault.
    fn closed(&self, error: lapin::Error, failed: &[u64], in_flight: usize) -> Result<usize, LinkError> {
        let by_the_broker = error.is_amqp_soft_error();
        let error = LinkError::Failed { action: "publish".to_owned(), source: error };
        if !by_the_broker {
            return Err(error);
        }
        match failed {
            [culprit] if in_flight == 0 => {
                self.outbox.refused(*culprit, error.chain());
                Ok(0)
            }
            _ => Ok(failed.len() + in_flight),
        }
    }
}

/// Messages that got no answer.
#[derive(Default)]
struct Failed {
    numbers: Vec<u64>,
    /// The broker's reason where there is one, else what followed from it.
    error: Option<lapin::Error>,
}

impl Failed {
    fn add(&mut self, number: u64, error: lapin::Error) {
        self.numbers.push(number);
        if self.error.as_ref().is_none_or(|known| !known.is_amqp_soft_error()) {
            self.error = Some(error);
        }
    }
}
