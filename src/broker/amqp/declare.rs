//! Declares the topology, as far as our rights go.
//!
//! Declaring is idempotent. Where we may not (the enrolled worker of a locked-down broker), or where a queue is there with
//! another type, what is there is used as it is: whether it serves is seen when it is used.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::failure::{LinkError, answer};
use super::link::Link;
use crate::broker::topology::{EXCHANGES, Exchange, ExchangeType, Queue};

/// Declares the exchanges and `queues` with their bindings.
pub(super) async fn declare(link: &Link, queues: &[Queue]) -> Result<(), LinkError> {
    let mut channel = link.channel().await?;
    for exchange in EXCHANGES {
        if !accepted(declare_exchange(&channel, exchange).await)? {
            channel = link.channel().await?;
        }
    }
    for queue in queues {
        if !accepted(declare_queue(&channel, queue).await)? {
            channel = link.channel().await?;
        }
        if !accepted(bind(&channel, queue).await)? {
            channel = link.channel().await?;
        }
    }
    Ok(())
}

/// Whether it was declared. A refusal that leaves the thing usable is no error, but it has closed the channel.
fn accepted(declared: Result<(), LinkError>) -> Result<bool, LinkError> {
    match declared {
        Ok(()) => Ok(true),
        Err(error) if error.is_access_refused() => {
            tracing::debug!("not declared, taken as enrolled: {}", error.chain());
            Ok(false)
        }
        Err(error) if error.is_otherwise_declared() => {
            tracing::warn!("used as it is: {}", error.chain());
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn declare_exchange(channel: &Channel, exchange: Exchange) -> Result<(), LinkError> {
    let kind = match exchange.exchange_type {
        ExchangeType::Direct => ExchangeKind::Direct,
        ExchangeType::Topic => ExchangeKind::Topic,
    };
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let request = channel.exchange_declare(exchange.name.into(), kind, options, FieldTable::default());
    answer(format!("declare exchange `{}`", exchange.name), request).await
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), LinkError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue.queue_type.as_str().into()));
    let request = channel.queue_declare(queue.name.as_str().into(), options, arguments);
    answer(format!("declare queue `{}`", queue.name), request).await.map(|_| ())
}

async fn bind(channel: &Channel, queue: &Queue) -> Result<(), LinkError> {
    let request = channel.queue_bind(
        queue.name.as_str().into(),
        queue.exchange.into(),
        queue.binding_key.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answer(format!("bind queue `{}` to exchange `{}`", queue.name, queue.exchange), request).await
}
