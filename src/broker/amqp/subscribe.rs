//! A passing look at an exchange, through an exclusive queue that goes with its connection.
//!
//! After a reconnect it goes on with what is published from then on, and the reader is told of the gap. Deliveries are acked as they are taken, so a slow reader
//! is bounded by the prefetch here and the rest waits at the broker.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::Consumer;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::convert::{cut, from_lapin, short};
use super::declare::declare;
use super::failure::{LinkError, answer};
use super::link::{Link, Role, lost};
use super::thread::AmqpThread;
use crate::broker::backoff::Backoff;
use crate::broker::settings::BrokerSettings;
use crate::broker::{BrokerError, EventMessage, Heard, LETTER_BYTES_KEPT_MAX, Subscription};

/// Messages that wait for the reader, none of them longer than [`LETTER_BYTES_KEPT_MAX`].
const MESSAGES_WAITING_MAX: u16 = 256;

/// What the reader holds.
struct SubscriptionHandle {
    heard: mpsc::Receiver<Heard>,
    stop: CancellationToken,
    /// Keeps the task's thread.
    _thread: Arc<AmqpThread>,
}

#[async_trait]
impl Subscription for SubscriptionHandle {
    async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

impl Drop for SubscriptionHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Subscribes. The first connection is awaited, so that a wrong password is an error and nothing published after this is
/// missed.
pub(super) async fn open(
    thread: &Arc<AmqpThread>,
    settings: Arc<BrokerSettings>,
    exchange: &'static str,
    binding_keys: Vec<String>,
) -> Result<Box<dyn Subscription>, BrokerError> {
    let address = settings.uri.address();
    let failed = |source: LinkError| BrokerError {
        action: format!("subscribe to exchange `{exchange}`"),
        address: address.clone(),
        source: source.into(),
    };
    let (sender, heard) = mpsc::channel(usize::from(MESSAGES_WAITING_MAX));
    let (opened, first) = tokio::sync::oneshot::channel();
    let stop = thread.stop_token();
    let task = Task { settings, exchange, binding_keys, sender };
    let stopped = stop.clone();
    thread.spawn(async move {
        tokio::select! {
            biased;
            () = stopped.cancelled() => {}
            () = task.run(opened) => {}
        }
    });
    let handle = SubscriptionHandle { heard, stop, _thread: Arc::clone(thread) };
    match first.await {
        Ok(Ok(())) => Ok(Box::new(handle)),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(LinkError::Lost("the door to the broker is closed".to_owned()))),
    }
}

struct Task {
    settings: Arc<BrokerSettings>,
    exchange: &'static str,
    binding_keys: Vec<String>,
    sender: mpsc::Sender<Heard>,
}

impl Task {
    async fn run(self, opened: tokio::sync::oneshot::Sender<Result<(), LinkError>>) {
        let (mut link, mut consumer) = match self.start().await {
            Ok(started) => started,
            Err(error) => {
                // The reader has gone if it does not hear this.
                _ = opened.send(Err(error));
                return;
            }
        };
        if opened.send(Ok(())).is_err() {
            return;
        }
        let mut backoff = Backoff::new();
        loop {
            let Err(error) = self.forward(&link, &mut consumer).await else { return };
            if self.sender.send(Heard::Lost(error.chain())).await.is_err() {
                return;
            }
            (link, consumer) = loop {
                sleep(backoff.next_wait()).await;
                match self.start().await {
                    Ok(started) => break started,
                    Err(error) => tracing::debug!("{}", error.chain()),
                }
            };
            backoff.reset();
            if self.sender.send(Heard::Back).await.is_err() {
                return;
            }
        }
    }

    /// Connects, declares the queue, binds and reads it.
    async fn start(&self) -> Result<(Link, Consumer), LinkError> {
        let link = Link::open(&self.settings, Role::Subscribe).await?;
        declare(&link, &[]).await?;
        let channel = link.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = answer("declare a queue", channel.queue_declare("".into(), options, FieldTable::default())).await?;
        for key in &self.binding_keys {
            let action = format!("bind `{key}` on exchange `{}`", self.exchange);
            let key = short("binding key", key).map_err(|error| LinkError::Lost(error.to_string()))?;
            let request = channel.queue_bind(
                queue.name().clone(),
                self.exchange.into(),
                key,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            answer(action, request).await?;
        }
        let prefetch = channel.basic_qos(MESSAGES_WAITING_MAX, BasicQosOptions { global: false });
        answer("limit the deliveries", prefetch).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let request = channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default());
        let consumer = answer("read the queue", request).await?;
        Ok((link, consumer))
    }

    /// Passes messages on. `Ok` means that the reader has gone.
    async fn forward(&self, link: &Link, consumer: &mut Consumer) -> Result<(), LinkError> {
        let mut health = link.health();
        loop {
            let delivery = tokio::select! {
                biased;
                error = lost(&mut health) => return Err(error),
                delivery = consumer.next() => delivery,
            };
            let delivery = match delivery {
                Some(Ok(delivery)) => delivery,
                Some(Err(source)) => return Err(LinkError::Failed { action: "read the queue".to_owned(), source }),
                None => return Err(LinkError::Lost("the broker ended reading the queue".to_owned())),
            };
            let (properties, has_cc) = from_lapin(&delivery.properties);
            let body = cut(delivery.data, LETTER_BYTES_KEPT_MAX);
            let message = EventMessage { routing_key: delivery.routing_key.to_string(), has_cc, properties, body };
            if self.sender.send(Heard::Message(Box::new(message))).await.is_err() {
                return Ok(());
            }
            answer("ack an event", delivery.acker.ack(BasicAckOptions::default())).await?;
        }
    }
}
