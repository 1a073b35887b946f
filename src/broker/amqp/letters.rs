//! The one reader of the dead letters: an exclusive consumer of their queue.
//!
//! A consumer with a bounded prefetch stands still when all of it is un-acked, and a larger one would hold all letters in memory. So
//! when it is used up the consumer is ended, which leaves what it has delivered un-acked, and another one goes on from there:
//!
//! ```text
//!   consumer 1: letters 1 … 100, un-acked ──> cancelled
//!   consumer 2: letters 101 … 200 ──> …          between the two somebody else may begin to read, and then this reader ends
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::delivery::{Unsettled, to_letter};
use super::failure::{ANSWER_WAIT, LinkError, answer};
use super::link::{Link, Role};
use super::sign::Sign;
use super::thread::AmqpThread;
use crate::broker::BrokerError;
use crate::broker::letters::{HeldLetter, LETTERS_AT_ONCE, LetterReader, ReadLettersError};
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::DEAD_QUEUE;

/// Letters that wait between the connection and the reader.
const LETTERS_WAITING_MAX: usize = 4;
/// How long a letter may take that the broker counts as waiting.
const LETTER_WAIT: Duration = Duration::from_secs(10);
/// Looks at an empty queue after which nothing is on its way: a letter that was delivered before the first one's answer may come
/// after that answer, and not after the second one's.
const EMPTY_LOOKS: u32 = 2;

type Next = Result<Option<HeldLetter>, LinkError>;

/// What the reader holds.
struct ReaderHandle {
    letters: mpsc::Receiver<Next>,
    close: oneshot::Sender<oneshot::Sender<Result<(), LinkError>>>,
    address: String,
    /// Keeps the task's thread.
    _thread: Arc<AmqpThread>,
}

#[async_trait]
impl LetterReader for ReaderHandle {
    async fn next(&mut self) -> Result<Option<HeldLetter>, ReadLettersError> {
        match self.letters.recv().await {
            Some(Ok(letter)) => Ok(letter),
            Some(Err(error)) => Err(told(error, &self.address)),
            None => Err(told(LinkError::Lost("the reading has ended".to_owned()), &self.address)),
        }
    }

    async fn close(self: Box<Self>) -> Result<(), ReadLettersError> {
        let (reply, closed) = oneshot::channel();
        let gone = || LinkError::Lost("the reading has ended before".to_owned());
        // The task may be about to pass on a letter; it has to see the wish, or that nobody takes it.
        drop(self.letters);
        let closed = match self.close.send(reply) {
            Ok(()) => closed.await.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(gone()),
        };
        closed.map_err(|error| told(error, &self.address))
    }
}

fn told(error: LinkError, address: &str) -> ReadLettersError {
    match error {
        error if error.is_in_use() => ReadLettersError::InUse { queue: DEAD_QUEUE },
        error if error.is_not_found() => ReadLettersError::NoQueue { queue: DEAD_QUEUE },
        error => ReadLettersError::Broker(BrokerError {
            action: "read the dead letters".to_owned(),
            address: address.to_owned(),
            source: error.into(),
        }),
    }
}

/// Begins to read, once the queue is this reader's.
pub(super) async fn open(
    thread: &Arc<AmqpThread>,
    settings: Arc<BrokerSettings>,
) -> Result<Box<dyn LetterReader>, ReadLettersError> {
    let address = settings.uri.address();
    let (sender, letters) = mpsc::channel(LETTERS_WAITING_MAX);
    let (opened, first) = oneshot::channel();
    let (close, closing) = oneshot::channel();
    let stop = thread.stop_token();
    thread.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = run(settings, opened, sender, closing) => {}
        }
    });
    match first.await {
        Ok(Ok(())) => Ok(Box::new(ReaderHandle { letters, close, address, _thread: Arc::clone(thread) })),
        Ok(Err(error)) => Err(told(error, &address)),
        Err(_) => Err(told(LinkError::Lost("the door to the broker is closed".to_owned()), &address)),
    }
}

async fn run(
    settings: Arc<BrokerSettings>,
    opened: oneshot::Sender<Result<(), LinkError>>,
    sender: mpsc::Sender<Next>,
    closing: oneshot::Receiver<oneshot::Sender<Result<(), LinkError>>>,
) {
    let mut reading = match Reading::start(&settings).await {
        Ok(reading) => reading,
        Err(error) => {
            // Whoever asked has gone if it does not hear this.
            _ = opened.send(Err(error));
            return;
        }
    };
    if opened.send(Ok(())).is_err() {
        return;
    }
    let sign = Sign::put_up(Arc::clone(&settings));
    // Until the reader wants no more, or there are no more.
    loop {
        let next = reading.next().await;
        let more = matches!(next, Ok(Some(_)));
        if sender.send(next).await.is_err() || !more {
            break;
        }
    }
    if let Ok(reply) = closing.await {
        let (closed, ()) = tokio::join!(reading.close(), sign.take_down());
        _ = reply.send(closed);
    }
}

/// An open reading.
struct Reading {
    link: Link,
    channel: Channel,
    consumer: Consumer,
    unsettled: Arc<Unsettled>,
    /// What an earlier consumer was still given at its end.
    rest: VecDeque<HeldLetter>,
}

impl Reading {
    async fn start(settings: &BrokerSettings) -> Result<Self, LinkError> {
        let link = Link::open(settings, Role::Letters).await?;
        let channel = link.channel().await?;
        let prefetch = channel.basic_qos(LETTERS_AT_ONCE, BasicQosOptions { global: false });
        answer("limit the deliveries", prefetch).await?;
        let consumer = consume(&channel).await?;
        Ok(Self { link, channel, consumer, unsettled: Arc::default(), rest: VecDeque::new() })
    }

    async fn next(&mut self) -> Next {
        let mut empty = 0;
        loop {
            if let Some(letter) = self.rest.pop_front() {
                return Ok(Some(letter));
            }
            if let Some(delivery) = self.consumer.next().now_or_never() {
                return self.held(delivery).map(Some);
            }
            if empty == EMPTY_LOOKS {
                return Ok(None);
            }
            if self.unsettled.count() >= usize::from(LETTERS_AT_ONCE) {
                self.go_on().await?;
                continue;
            }
            if waiting(&self.channel).await? == 0 {
                empty += 1;
                continue;
            }
            let delivery = timeout(LETTER_WAIT, self.consumer.next()).await.map_err(|_| {
                LinkError::Silent(format!(
                    "letters wait in queue `{DEAD_QUEUE}`, and none has come within {} s",
                    LETTER_WAIT.as_secs()
                ))
            })?;
            return self.held(delivery).map(Some);
        }
    }

    /// Ends the consumer and starts the next one. Acks make room for more letters until the broker has heard of the end: none passes
    /// meanwhile, and what those before it have made room for is kept.
    async fn go_on(&mut self) -> Result<(), LinkError> {
        let unsettled = std::mem::take(&mut self.unsettled);
        let _no_acks = unsettled.hold_acks().await;
        let request = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        answer(format!("stop reading queue `{DEAD_QUEUE}`"), request).await?;
        let drained = async {
            while let Some(delivery) = self.consumer.next().await {
                let source = |source| LinkError::Failed { action: format!("read queue `{DEAD_QUEUE}`"), source };
                self.rest.push_back(to_letter(delivery.map_err(source)?, &unsettled));
            }
            Ok::<(), LinkError>(())
        };
        let late = |_| LinkError::Silent(format!("the end of reading queue `{DEAD_QUEUE}` does not come"));
        timeout(ANSWER_WAIT, drained).await.map_err(late)??;
        self.consumer = consume(&self.channel).await?;
        Ok(())
    }

    fn held(&self, delivery: Option<lapin::Result<LapinDelivery>>) -> Result<HeldLetter, LinkError> {
        match delivery {
            Some(Ok(delivery)) => Ok(to_letter(delivery, &self.unsettled)),
            Some(Err(source)) => Err(LinkError::Failed { action: format!("read queue `{DEAD_QUEUE}`"), source }),
            None => Err(LinkError::Lost(format!("the broker ended reading queue `{DEAD_QUEUE}`"))),
        }
    }

    /// The channel's goodbye is answered after everything that was said on it.
    async fn close(self) -> Result<(), LinkError> {
        answer("end the reading", self.channel.close(200, "OK".into())).await?;
        self.link.close().await;
        Ok(())
    }
}

async fn consume(channel: &Channel) -> Result<Consumer, LinkError> {
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let request = channel.basic_consume(DEAD_QUEUE.into(), "".into(), options, FieldTable::default());
    answer(format!("read queue `{DEAD_QUEUE}`"), request).await
}

/// How many letters are in the queue that are on their way to nobody.
async fn waiting(channel: &Channel) -> Result<u32, LinkError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let request = channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default());
    answer(format!("look at queue `{DEAD_QUEUE}`"), request).await.map(|queue| queue.message_count())
}
