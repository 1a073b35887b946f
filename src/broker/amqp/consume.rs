//! Consumers on a host's queues.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::{Instant, timeout, timeout_at};

use super::delivery::{Unsettled, to_delivery};
use super::failure::{ANSWER_WAIT, LinkError, answer};
use super::inbox::{Inbox, Reading};
use super::link::Link;
use crate::broker::topology::{jobs_queue, urgent_jobs_queue};
use crate::broker::{Delivery, HostQueue};
use crate::model::id::HostId;

/// Control messages that may be un-acked at a time. A worker settles them at once.
const CONTROL_PREFETCH: u16 = 64;
/// How long nothing has to arrive until nothing is on its way, where the prefetch is not used up.
const STOP_QUIET: Duration = Duration::from_millis(250);
/// How long is waited for what is on its way in all: nothing is acked meanwhile, and pings stand still.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// A consumer and what it reads.
pub(super) struct QueueConsumer {
    queue: HostQueue,
    name: String,
    channel: Channel,
    consumer: Consumer,
    prefetch: u16,
    unsettled: Arc<Unsettled>,
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
        Ok(Self { queue, name, channel, consumer, prefetch, unsettled: Arc::default() })
    }

    /// The next delivery. An end of the stream is an error: nobody of ours asked for it, so the broker did (the queue is
    /// gone), and lapin may say so by an error, by an end, or by an error followed by nothing.
    pub(super) async fn next(&mut self) -> Result<Delivery, LinkError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(to_delivery(self.queue, delivery, &self.unsettled)),
            Some(Err(source)) => Err(LinkError::Failed { action: format!("read queue `{}`", self.name), source }),
            None => Err(LinkError::Lost(format!("the broker ended reading queue `{}`", self.name))),
        }
    }

    /// Stops, and passes on what was delivered until then, at most a prefetch.
    ///
    /// A quorum queue takes back what is on its way to a consumer that is cancelled, and counts that as a failed delivery
    /// (measured on 3.10: the one that followed the last ack). So nothing is acked from here on, and what is on its way is
    /// awaited before the consumer is cancelled.
    async fn stop(mut self, inbox: &Inbox) -> Result<(), LinkError> {
        let unsettled = Arc::clone(&self.unsettled);
        let _no_acks = unsettled.hold_acks().await;
        let until = Instant::now() + STOP_WAIT;
        while unsettled.count() < usize::from(self.prefetch) {
            match timeout_at(until.min(Instant::now() + STOP_QUIET), self.next()).await {
                Ok(delivery) => inbox.push(delivery?),
                Err(_) => break,
            }
        }
        let request = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        answer(format!("stop reading queue `{}`", self.name), request).await?;
        let drained = timeout(ANSWER_WAIT, async {
            while let Some(Ok(delivery)) = self.consumer.next().await {
                inbox.push(to_delivery(self.queue, delivery, &unsettled));
            }
        });
        drained.await.map_err(|_| LinkError::TimedOut {
            action: format!("empty the consumer of `{}`", self.name),
            waited_seconds: ANSWER_WAIT.as_secs(),
        })
    }
}

/// The job queues, each read while its jobs are wanted. Their channel stays while they are not, since what the caller holds is
/// acked on it.
pub(super) struct JobQueues {
    channel: Channel,
    prefetch: u16,
    urgent: JobQueue,
    jobs: JobQueue,
}

/// One of them.
struct JobQueue {
    queue: HostQueue,
    name: String,
    reading: Option<QueueConsumer>,
}

impl JobQueues {
    /// Neither is read yet.
    pub(super) async fn new(link: &Link, host: &HostId, prefetch: u16) -> Result<Self, LinkError> {
        let queue = |queue, name| JobQueue { queue, name, reading: None };
        Ok(Self {
            channel: link.channel().await?,
            prefetch,
            urgent: queue(HostQueue::UrgentJobs, urgent_jobs_queue(host)),
            jobs: queue(HostQueue::Jobs, jobs_queue(host)),
        })
    }

    /// Starts or stops reading each, as the caller of the inbox wishes.
    pub(super) async fn follow(&mut self, inbox: &Inbox) -> Result<(), LinkError> {
        for line in [&mut self.urgent, &mut self.jobs] {
            match (inbox.reading(line.queue), line.reading.take()) {
                (Reading::Wanted, None) => {
                    let (channel, name) = (self.channel.clone(), line.name.clone());
                    let options = BasicConsumeOptions::default();
                    line.reading = Some(QueueConsumer::start(channel, line.queue, name, self.prefetch, options).await?);
                }
                (Reading::Unwanted, Some(consumer)) => consumer.stop(inbox).await?,
                (_, unchanged) => line.reading = unchanged,
            }
        }
        Ok(())
    }

    /// The next delivery of either; waits for ever where neither is read.
    pub(super) async fn next(&mut self) -> Result<Delivery, LinkError> {
        tokio::select! {
            biased;
            urgent = self.urgent.next() => urgent,
            job = self.jobs.next() => job,
        }
    }
}

impl JobQueue {
    async fn next(&mut self) -> Result<Delivery, LinkError> {
        match &mut self.reading {
            Some(consumer) => consumer.next().await,
            None => std::future::pending().await,
        }
    }
}
