//! Dealing with a selection of letters: what replaces a letter is confirmed by the broker before the letter goes.
//!
//! ```text
//!   the job confirmed ──> the event confirmed, or nobody listens ──> acknowledged
//!        killed here: the letter stays, and its next replay is the same message
//!                                                                     ──> its mark acknowledged, if it had one
//!        killed here: a mark on no letter, which goes with those that the next one finds
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::held_marks::{Gone, HeldMarks, Strays};
use super::letter::{Fingerprint, Letter};
use crate::broker::letters::{HeldLetter, LetterReader, ReadLettersError};
use crate::broker::{Broker, Outgoing, PublishError, Publisher, Settle};

/// Letters that are dealt with at a time.
const AT_ONCE: usize = 32;
/// How long letters are held without a break. RabbitMQ closes a channel that holds one for 30 minutes (its default).
const HOLD_MAX: Duration = Duration::from_secs(20 * 60);

/// How long is waited for another reader to end.
pub const IN_USE_WAIT: Duration = Duration::from_secs(5);
/// How often it is tried.
pub const IN_USE_PAUSE: Duration = Duration::from_millis(200);

/// What is published before a letter goes.
#[derive(Clone, Debug, Default)]
pub struct Deed {
    /// The job that takes its place, if one does.
    pub job: Option<Outgoing>,
    /// The event that tells of it. It may be that nobody listens.
    pub event: Option<Outgoing>,
}

/// What became of a letter.
#[derive(Debug)]
pub enum Dealt {
    /// It is gone.
    Gone,
    /// It stays, and nothing was done.
    Kept(String),
    /// It stays, since something went wrong; the job may be on its way all the same. To do the same again is safe.
    Failed(String),
}

/// How a selection is dealt with.
pub struct Deal<'d> {
    /// The letters that are meant.
    pub selection: BTreeSet<Fingerprint>,
    /// What is to be published for one, or why it stays.
    pub deed: &'d dyn Fn(&Letter) -> Result<Deed, String>,
    /// Which marks go whose letter is not there.
    pub strays: Strays,
    /// No more than so many within a second.
    pub per_second: Option<u32>,
    /// Cancelled where it is to end early: what was begun is finished.
    pub stop: CancellationToken,
}

/// Deals with the letters and tells of each what became of it. Answers how many marks went whose letter was not there.
///
/// # Errors
/// Somebody else reads the letters, or the broker cannot be read. What was told until then holds; of the last ones the broker may
/// not have heard that they are to go.
pub async fn deal(
    broker: &dyn Broker,
    mut deal: Deal<'_>,
    mut tell: impl FnMut(&Letter, Dealt),
) -> Result<u64, ReadLettersError> {
    let publisher = broker.publisher();
    let mut gone = Gone::default();
    loop {
        match hold(broker, &publisher, &mut deal, &mut gone, &mut tell).await? {
            (Hold::TooLong, _) => {}
            (Hold::Done | Hold::Stopped, strays) => return Ok(strays),
        }
    }
}

/// Why the letters are held no longer.
#[derive(PartialEq, Eq)]
enum Hold {
    /// The queue was read to its end.
    Done,
    Stopped,
    TooLong,
}

/// Reads through the queue once, or as long as letters may be held. Answers how many marks went whose letter was not there.
async fn hold(
    broker: &dyn Broker,
    publisher: &Arc<dyn Publisher>,
    deal: &mut Deal<'_>,
    gone: &mut Gone,
    tell: &mut impl FnMut(&Letter, Dealt),
) -> Result<(Hold, u64), ReadLettersError> {
    let mut marks = HeldMarks::new(gone);
    let mut reader = begin(broker).await?;
    let until = Instant::now() + HOLD_MAX;
    let mut pace = deal.per_second.map(|count| interval(Duration::from_secs(1) / count.max(1)));
    pace.iter_mut().for_each(|pace| pace.set_missed_tick_behavior(MissedTickBehavior::Delay));
    let mut tell = |deal: &mut Deal<'_>, marks: &mut HeldMarks<'_>, letter: &Letter, dealt: Dealt| {
        match dealt {
            Dealt::Gone => marks.goes(letter),
            // Once is enough. Of one that is gone there may be another copy, which is dealt with in the same way.
            Dealt::Kept(_) | Dealt::Failed(_) => _ = deal.selection.remove(&letter.fingerprint()),
        }
        tell(letter, dealt);
    };
    let (mut at_work, mut due) = (FuturesUnordered::new(), None);
    let end = loop {
        tokio::select! {
            biased;
            Some((letter, dealt)) = at_work.next(), if !at_work.is_empty() => {
                tell(deal, &mut marks, &letter, dealt);
            }
            () = deal.stop.cancelled() => break Ok(Hold::Stopped),
            () = sleep_until(until) => break Ok(Hold::TooLong),
            () = turn(&mut pace), if due.is_some() => {
                at_work.extend(due.take().map(|(letter, deed, settle)| one(Arc::clone(publisher), letter, deed, settle)));
            }
            next = reader.next(), if due.is_none() && at_work.len() < AT_ONCE => {
                let HeldLetter { message, settle } = match next {
                    Ok(Some(held)) => held,
                    Ok(None) => break Ok(Hold::Done),
                    Err(error) => break Err(error),
                };
                let letter = Letter::read(message.routing_key, message.has_cc, message.properties, message.body);
                let Some((letter, settle)) = marks.take(letter, settle) else { continue };
                if !deal.selection.contains(&letter.fingerprint()) {
                    continue;
                }
                match (deal.deed)(&letter) {
                    Err(reason) => tell(deal, &mut marks, &letter, Dealt::Kept(reason)),
                    Ok(deed) => due = Some((letter, deed, settle)),
                }
            }
        }
    };
    // What waited for its turn stays.
    drop(due);
    while let Some((letter, dealt)) = at_work.next().await {
        tell(deal, &mut marks, &letter, dealt);
    }
    let end = end?;
    let strays = marks.settle((end == Hold::Done).then_some(deal.strays), Timestamp::now()).await;
    reader.close().await?;
    Ok((end, strays))
}

/// Somebody may have taken a short look just now.
async fn begin(broker: &dyn Broker) -> Result<Box<dyn LetterReader>, ReadLettersError> {
    let until = Instant::now() + IN_USE_WAIT;
    loop {
        match broker.read_letters().await {
            Err(ReadLettersError::InUse { .. }) if Instant::now() < until => sleep(IN_USE_PAUSE).await,
            opened => return opened,
        }
    }
}

/// Waits for the next turn; without a pace it is always there.
async fn turn(pace: &mut Option<Interval>) {
    if let Some(pace) = pace {
        pace.tick().await;
    }
}

async fn one(publisher: Arc<dyn Publisher>, letter: Letter, deed: Deed, settle: Box<dyn Settle>) -> (Letter, Dealt) {
    let dealt = match published(publisher.as_ref(), deed).await {
        Err(PublishError::Unroutable { routing_key, .. }) => {
            Dealt::Kept(format!("no host has a queue for `{routing_key}`"))
        }
        Err(error) => Dealt::Failed(error.to_string()),
        Ok(()) if settle.ack().await => Dealt::Gone,
        Ok(()) => {
            Dealt::Failed("what takes its place is published, and the broker did not hear that it may go".to_owned())
        }
    };
    (letter, dealt)
}

async fn published(publisher: &dyn Publisher, deed: Deed) -> Result<(), PublishError> {
    if let Some(job) = deed.job {
        publisher.publish(job).await?;
    }
    match deed.event {
        Some(event) => match publisher.publish(event).await {
            Err(PublishError::Unroutable { .. }) => Ok(()),
            published => published,
        },
        None => Ok(()),
    }
}
