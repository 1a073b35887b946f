//! A plain client: publishes with confirms, listens with acks. The same one stands on both sides of every comparison.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use longshore::broker::topology::EVENTS_EXCHANGE;
use longshore::message::Encoded;
use tokio::time::timeout;

use super::rabbit::Rabbit;

/// Publishes that wait for their confirm at a time.
pub const IN_FLIGHT: usize = 256;
/// Deliveries that may be un-acked at a time.
const PREFETCH: u16 = 512;
/// Deliveries acked by one ack.
const ACKED_TOGETHER: u32 = 32;
/// Longest wait for the next message.
const PATIENCE: Duration = Duration::from_secs(60);
const PERSISTENT: u8 = 2;

/// Where messages go.
#[derive(Clone)]
pub struct Target {
    pub exchange: &'static str,
    pub routing_key: String,
}

/// A connection, which ends when it is dropped.
pub struct Wire {
    _connection: Connection,
    channel: Channel,
}

impl Wire {
    pub async fn open(rabbit: &Rabbit) -> Self {
        let connection = Connection::connect(&rabbit.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel }
    }

    /// Puts one message on its way. What comes of it is the confirm's.
    async fn send(
        &self,
        target: &Target,
        message: &Encoded,
    ) -> impl Future<Output = lapin::Result<Confirmation>> + use<> {
        let Encoded { properties, body } = message;
        let sent = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(properties.content_type.as_str().into())
            .with_type(properties.message_type.as_str().into())
            .with_message_id(properties.message_id.as_str().into())
            .with_correlation_id(properties.correlation_id.as_deref().unwrap_or_default().into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let key = target.routing_key.as_str().into();
        self.channel.basic_publish(target.exchange.into(), key, options, body, sent).await.unwrap()
    }

    /// Publishes as fast as [`IN_FLIGHT`] confirms allow.
    pub async fn publish_all(&self, target: &Target, messages: &[Encoded]) {
        let mut waiting = FuturesUnordered::new();
        for message in messages {
            while waiting.len() >= IN_FLIGHT {
                confirmed(waiting.next().await.unwrap());
            }
            waiting.push(self.send(target, message).await);
        }
        while let Some(confirmation) = waiting.next().await {
            confirmed(confirmation);
        }
    }

    /// Publishes one at each tick, whether or not earlier ones were confirmed. Gives the moment at which each was to go.
    pub async fn publish_paced(&self, target: &Target, messages: &[Encoded], pace: Duration) -> Vec<Instant> {
        let (begun, mut waiting, mut intended) = (Instant::now(), FuturesUnordered::new(), Vec::new());
        for (number, message) in messages.iter().enumerate() {
            let moment = begun + pace * u32::try_from(number).unwrap();
            tokio::time::sleep_until(moment.into()).await;
            intended.push(moment);
            waiting.push(self.send(target, message).await);
        }
        while let Some(confirmation) = waiting.next().await {
            confirmed(confirmation);
        }
        intended
    }
}

fn confirmed(confirmation: lapin::Result<Confirmation>) {
    assert!(matches!(confirmation.unwrap(), Confirmation::Ack(None)), "a message was refused or came back");
}

/// A durable queue and its reader.
pub struct Listener {
    wire: Wire,
    queue: String,
    consumer: Consumer,
    unacked: u32,
}

/// What a listener hears.
pub struct Heard {
    pub at: Instant,
    pub message_type: String,
    pub correlation_id: String,
}

impl Listener {
    /// Listens to all events of `keys`, or with none to what is sent to the queue itself.
    pub async fn open(rabbit: &Rabbit, queue: &str, keys: &[&str]) -> Self {
        let wire = Wire::open(rabbit).await;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        wire.channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared =
            wire.channel.exchange_declare(EVENTS_EXCHANGE.into(), ExchangeKind::Topic, options, FieldTable::default());
        declared.await.unwrap();
        for key in keys {
            let (exchange, options) = (EVENTS_EXCHANGE.into(), QueueBindOptions::default());
            let bound = wire.channel.queue_bind(queue.into(), exchange, (*key).into(), options, FieldTable::default());
            bound.await.unwrap();
        }
        wire.channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let consumer = wire.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = consumer.await.unwrap();
        Self { wire, queue: queue.to_owned(), consumer, unacked: 0 }
    }

    /// The next message. Acks are sent for [`ACKED_TOGETHER`] at a time.
    pub async fn next(&mut self) -> Heard {
        let delivery = timeout(PATIENCE, self.consumer.next()).await.expect("nothing more was heard").unwrap().unwrap();
        let at = Instant::now();
        self.unacked += 1;
        if self.unacked == ACKED_TOGETHER {
            delivery.ack(BasicAckOptions { multiple: true }).await.unwrap();
            self.unacked = 0;
        }
        let text =
            |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string).unwrap_or_default();
        Heard {
            at,
            message_type: text(delivery.properties.kind()),
            correlation_id: text(delivery.properties.correlation_id()),
        }
    }

    /// Takes the queue away, with what is left in it.
    pub async fn close(self) {
        self.wire.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}
