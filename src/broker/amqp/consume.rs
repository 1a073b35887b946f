//! Consumers on a host's queues.

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Consumer};
use tokio::time::timeout;

use super::convert::{cut, from_lapin};
use super::failure::{ANSWER_WAIT, LinkError, answer};
use super::inbox::Incoming;
use super::link::Link;
use crate::broker::topology::{jobs_queue, urgent_jobs_queue};
use crate::broker::{Delivery, HostQueue, Settle};
use crate::model::id::HostId;

/// Control messages that may be un-acked at a time. A worker settles them at once.
const CONTROL_PREFETCH: u16 = 64;

/// A consumer and what it reads.
pub(super) struct QueueConsumer {
    queue: HostQueue,
    name: String,
    channel: Channel,
    consumer: Consumer,
}

impl QueueConsumer {
    /// Starts the exclusive consumer on the control queue.
    pub(super) async fn control(link: &Link, name: String) -> Result<Self, LinkError> {
        let channel = link.channel().await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        Self::start(channel, HostQueue::Control, name, CONTROL_PREFETCH, options).await
    }

    async fn start(
        channel: Channel,
        queue: HostQueue,
        name: String,
        prefetch: u16,
        options: BasicConsumeOptions,
    ) -> Result<Self, LinkError> {
        // Not global: it then holds for each consumer, and 4.3 refuses the other.
        answer("limit the deliveries", channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
        let request = channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = answer(format!("read queue `{name}`"), request).await?;
        Ok(Self { queue, name, channel, consumer })
    }

    /// The next delivery. An end of the stream is an error: nobody of ours asked for it, so the broker did (the queue is
    /// gone), and lapin may say so by an error, by an end, or by an error followed by nothing.
    pub(super) async fn next(&mut self) -> Result<Incoming, LinkError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Incoming { queue: self.queue, delivery }),
            Some(Err(source)) => Err(LinkError::Failed { action: format!("read queue `{}`", self.name), source }),
            None => Err(LinkError::Lost(format!("the broker ended reading queue `{}`", self.name))),
        }
    }

    /// Stops, and hands back what was delivered and not taken yet.
    async fn cancel(&mut self) -> Result<(), LinkError> {
        let request = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        answer(format!("stop reading queue `{}`", self.name), request).await?;
        let drained = timeout(ANSWER_WAIT, async {
            while let Some(Ok(delivery)) = self.consumer.next().await {
                hand_back(&delivery).await?;
            }
            Ok(())
        });
        drained.await.unwrap_or_else(|_| {
            Err(LinkError::TimedOut {
                action: format!("empty the consumer of `{}`", self.name),
                waited_seconds: ANSWER_WAIT.as_secs(),
            })
        })
    }
}

/// The consumers on both job queues.
pub(super) struct JobConsumers {
    urgent: QueueConsumer,
    jobs: QueueConsumer,
}

impl JobConsumers {
    /// Starts both, on a channel of their own.
    pub(super) async fn start(link: &Link, host: &HostId, prefetch: u16) -> Result<Self, LinkError> {
        let channel = link.channel().await?;
        let start =
            |queue, name| QueueConsumer::start(channel.clone(), queue, name, prefetch, BasicConsumeOptions::default());
        let urgent = start(HostQueue::UrgentJobs, urgent_jobs_queue(host)).await?;
        let jobs = start(HostQueue::Jobs, jobs_queue(host)).await?;
        Ok(Self { urgent, jobs })
    }

    /// The next delivery of either.
    pub(super) async fn next(&mut self) -> Result<Incoming, LinkError> {
        tokio::select! {
            biased;
            urgent = self.urgent.next() => urgent,
            job = self.jobs.next() => job,
        }
    }

    /// Stops both. The channel stays, since deliveries that the caller holds are acked on it.
    pub(super) async fn cancel(&mut self) -> Result<(), LinkError> {
        self.urgent.cancel().await?;
        self.jobs.cancel().await
    }

    /// Starts both again, on the same channel.
    pub(super) async fn resume(&mut self, prefetch: u16) -> Result<(), LinkError> {
        for stopped in [&mut self.urgent, &mut self.jobs] {
            let (channel, name) = (stopped.channel.clone(), stopped.name.clone());
            let options = BasicConsumeOptions::default();
            *stopped = QueueConsumer::start(channel, stopped.queue, name, prefetch, options).await?;
        }
        Ok(())
    }
}

/// Puts a delivery back into its queue, in its old place, without counting as a failed delivery (4.3 counts rejects).
pub(super) async fn hand_back(delivery: &LapinDelivery) -> Result<(), LinkError> {
    let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    answer("hand back a delivery", delivery.nack(options)).await.map(|_| ())
}

/// A delivery as callers see it.
pub(super) fn to_delivery(incoming: Incoming) -> Delivery {
    let Incoming { queue, delivery } = incoming;
    let (properties, has_cc) = from_lapin(&delivery.properties);
    Delivery {
        queue,
        routing_key: delivery.routing_key.to_string(),
        redelivered: delivery.redelivered,
        has_cc,
        properties,
        body: cut(delivery.data),
        settle: Box::new(LapinSettle(delivery.acker)),
    }
}

/// Acks on the channel that delivered.
struct LapinSettle(Acker);

#[async_trait]
impl Settle for LapinSettle {
    async fn ack(self: Box<Self>) -> bool {
        // lapin says `Ok(false)` where the channel is gone: not sent, so it will be delivered again.
        match answer("ack a delivery", self.0.ack(BasicAckOptions::default())).await {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!("it will be delivered again: {}", error.chain());
                false
            }
        }
    }
}
