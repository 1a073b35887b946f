//! Sends what the journal's outbox holds, in order, as long as the worker lives.
//!
//! ```text
//! journal.posted ─► next_batch ─► publish, up to 256 at a time ─► confirmed ─► journal.delivered, in groups
//!                                   ▲    │ broker away, refused            └─ unroutable event: counted, settled
//!                        when due ──┘    └─ kept, by its id                └─ unroutable letter: kept, reported
//! ```
//!
//! Nothing is lost: a row is marked only after the broker confirmed it, so a crash sends it again with the same event id.
//! Nothing stands in the way of what is behind it: the outbox is read through once, and what could not be sent is read
//! again by its id when it is due.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::topology::EXCHANGES;
use crate::broker::{Outgoing, PUBLISHES_IN_FLIGHT_MAX, PublishError, Publisher};
use crate::failure::Failure;
use crate::journal::{Journal, MessageKind, OutboxRow};
use crate::shutdown::{Shutdown, Stage};

/// Rows read at a time: a dead letter has up to 2 MiB.
const ROWS_READ_MAX: u32 = 64;
/// Pause before a row that was not confirmed is sent again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a row is sent again that the broker refused, or a dead letter that no queue took: somebody has to do something
/// first.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// Pause before confirmed rows are marked, so that those of a while share one commit. A crash within it sends them again.
const MARK_PAUSE: Duration = Duration::from_millis(20);
/// Longest time that a stop waits for the outbox to empty.
pub const FLUSH_MAX: Duration = Duration::from_secs(5);

/// What the pump has seen, for health and heartbeats.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events that nobody was bound for.
    pub unroutable_events: AtomicU64,
    /// Times that a dead letter found no queue.
    pub unroutable_letters: AtomicU64,
    /// Messages that could not be sent and are to be sent again: each takes room in the journal.
    pub kept: watch::Sender<usize>,
}

/// What became of one row.
enum Sent {
    /// Confirmed, or not wanted by anybody.
    Settled(i64),
    /// To be tried again after the pause.
    Kept(i64, Duration),
}

/// Sends until `over` says that the worker's work is over; then until the outbox is empty, for at most [`FLUSH_MAX`].
pub async fn pump(journal: Journal, publisher: Arc<dyn Publisher>, counters: Arc<Counters>, over: Shutdown) {
    let mut pump = Pump::new(journal, publisher, counters);
    let mut posted = pump.journal.posted();
    let mut sending = FuturesUnordered::new();
    let mut deadline = None;
    loop {
        let highest = *posted.borrow_and_update();
        pump.fill(highest).await;
        while sending.len() < PUBLISHES_IN_FLIGHT_MAX
            && let Some(row) = pump.ready.pop_front()
        {
            sending.push(send(pump.publisher.clone(), pump.counters.clone(), row));
        }
        let ends = over.stage() >= Stage::Now;
        pump.begin_marking(ends);
        if ends {
            let until = *deadline.get_or_insert_with(|| Instant::now() + FLUSH_MAX);
            let empty =
                sending.is_empty() && pump.marking.is_none() && pump.wake(highest).is_none_or(|due| due > until);
            if empty || Instant::now() >= until {
                return;
            }
        }
        let wake = pump.wake(highest);
        tokio::select! {
            Some(sent) = sending.next() => {
                pump.take(sent);
                // All others that are there, so that one look at the rest of the loop serves them all.
                while let Some(Some(sent)) = sending.next().now_or_never() {
                    pump.take(sent);
                }
            }
            (ids, marked) = marked(&mut pump.marking) => pump.end_marking(ids, marked),
            changed = posted.changed() => if changed.is_err() { return },
            () = sleep_until(pump.mark_at), if pump.marking.is_none() => {}
            // While as much is under way as may be, what is due has to wait for room.
            () = sleep_until(wake), if sending.len() < PUBLISHES_IN_FLIGHT_MAX => {}
            () = over.reached(Stage::Now), if deadline.is_none() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

struct Pump {
    journal: Journal,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
    /// The last row that was read on the one way through the outbox.
    after: i64,
    ready: VecDeque<OutboxRow>,
    /// Rows to be marked, and when.
    settled: Vec<i64>,
    mark_at: Option<Instant>,
    /// The marking under way. Nothing waits for it but the next one.
    marking: Option<Marking>,
    /// Rows that could not be sent, by when each is due again.
    kept: BTreeSet<(Instant, i64)>,
    /// When to read again from a journal that could not be read.
    read_at: Option<Instant>,
}

/// Ends with the rows that were to be marked and whether they are.
type Marking = Pin<Box<dyn Future<Output = (Vec<i64>, Result<(), Failure>)> + Send>>;

impl Pump {
    fn new(journal: Journal, publisher: Arc<dyn Publisher>, counters: Arc<Counters>) -> Self {
        Self {
            journal,
            publisher,
            counters,
            after: 0,
            ready: VecDeque::new(),
            settled: Vec::new(),
            mark_at: None,
            marking: None,
            kept: BTreeSet::new(),
            read_at: None,
        }
    }

    /// Reads what is due again and what is new, until there is something to send or nothing to read.
    async fn fill(&mut self, highest: i64) {
        while self.ready.len() < PUBLISHES_IN_FLIGHT_MAX {
            let now = Instant::now();
            if self.read_at.is_some_and(|at| at > now) {
                return;
            }
            self.read_at = None;
            let (due, new) = (self.take_due(now), self.after < highest);
            if due.is_empty() && !new {
                return;
            }
            // Both in each turn, so that neither a heap of old rows nor a stream of new ones holds up the other.
            if !due.is_empty() {
                self.read_due(due).await;
            }
            if new && self.read_at.is_none() {
                self.read_on(highest).await;
            }
        }
    }

    /// Takes out the rows that have been due for longest, as many as are read at a time.
    fn take_due(&mut self, now: Instant) -> Vec<i64> {
        let mut due = Vec::new();
        while due.len() < ROWS_READ_MAX as usize
            && let Some((at, id)) = self.kept.first().copied()
            && at <= now
        {
            self.kept.pop_first();
            due.push(id);
        }
        if !due.is_empty() {
            self.count_kept();
        }
        due
    }

    async fn read_due(&mut self, due: Vec<i64>) {
        match self.journal.unsent(due.clone()).await {
            // One that is not there any more has been put elsewhere, to be sent in its new place.
            Ok(rows) => self.ready.extend(rows),
            Err(failure) => {
                self.trouble(&failure);
                self.keep(due, RETRY_PAUSE);
            }
        }
    }

    async fn read_on(&mut self, highest: i64) {
        match self.journal.next_batch(self.after, ROWS_READ_MAX).await {
            Ok(rows) => {
                self.after = rows.last().map_or(highest, |row| row.id);
                self.ready.extend(rows);
            }
            Err(failure) => self.trouble(&failure),
        }
    }

    fn take(&mut self, sent: Sent) {
        match sent {
            Sent::Settled(id) => {
                self.settled.push(id);
                self.mark_at.get_or_insert_with(|| Instant::now() + MARK_PAUSE);
            }
            Sent::Kept(id, pause) => self.keep(vec![id], pause),
        }
    }

    /// Marks what is settled, if that is due and no marking is under way. `now` makes it due.
    fn begin_marking(&mut self, now: bool) {
        let due = now
            || self.settled.len() >= PUBLISHES_IN_FLIGHT_MAX
            || self.mark_at.is_some_and(|moment| moment <= Instant::now());
        if !due || self.settled.is_empty() || self.marking.is_some() {
            return;
        }
        let (journal, ids) = (self.journal.clone(), std::mem::take(&mut self.settled));
        self.mark_at = None;
        self.marking = Some(Box::pin(async move {
            let marked = journal.delivered(ids.clone()).await;
            (ids, marked)
        }));
    }

    /// Not marked means sent again, which is harmless.
    fn end_marking(&mut self, ids: Vec<i64>, marked: Result<(), Failure>) {
        self.marking = None;
        if let Err(failure) = marked {
            self.trouble(&failure);
            self.keep(ids, RETRY_PAUSE);
        }
    }

    fn keep(&mut self, ids: Vec<i64>, pause: Duration) {
        let at = Instant::now() + pause;
        self.kept.extend(ids.into_iter().map(|id| (at, id)));
        self.count_kept();
    }

    fn count_kept(&self) {
        let count = self.kept.len();
        self.counters.kept.send_if_modified(|known| std::mem::replace(known, count) != count);
    }

    /// When there is something to read.
    fn wake(&self, highest: i64) -> Option<Instant> {
        let due = self.kept.first().map(|(at, _)| *at);
        match self.read_at {
            Some(at) if self.after < highest || due.is_some() => Some(at),
            _ => due,
        }
    }

    fn trouble(&mut self, failure: &Failure) {
        tracing::error!(failure = format!("{failure:#}"), "cannot use the journal's outbox");
        self.read_at = Some(Instant::now() + RETRY_PAUSE);
    }
}

/// What came of the marking; waits for ever where there is none.
async fn marked(marking: &mut Option<Marking>) -> (Vec<i64>, Result<(), Failure>) {
    match marking {
        Some(marking) => marking.await,
        None => std::future::pending().await,
    }
}

async fn send(publisher: Arc<dyn Publisher>, counters: Arc<Counters>, row: OutboxRow) -> Sent {
    let OutboxRow { id, message, .. } = row;
    let Some(exchange) = EXCHANGES.iter().map(|exchange| exchange.name).find(|name| *name == message.exchange) else {
        tracing::error!(exchange = message.exchange, "the outbox names an exchange that is not in the topology");
        return Sent::Settled(id);
    };
    let properties = serde_json::from_value(message.properties).unwrap_or_default();
    let routing_key = message.routing_key.clone();
    let outgoing = Outgoing { exchange, routing_key: message.routing_key, properties, body: message.body };
    match publisher.publish(outgoing).await {
        Ok(()) => Sent::Settled(id),
        Err(PublishError::Unroutable { .. }) if message.kind == MessageKind::Letter => {
            counters.unroutable_letters.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%routing_key, "no queue takes dead letters; the letter stays in the outbox");
            Sent::Kept(id, REFUSED_PAUSE)
        }
        Err(PublishError::Unroutable { .. }) => {
            counters.unroutable_events.fetch_add(1, Ordering::Relaxed);
            if message.kind == MessageKind::Final {
                tracing::info!(%routing_key, "nobody listens for the final event");
            }
            Sent::Settled(id)
        }
        Err(error) => {
            tracing::warn!(%routing_key, %error, "a message stays in the outbox");
            let refused = matches!(error, PublishError::Refused { .. });
            Sent::Kept(id, if refused { REFUSED_PAUSE } else { RETRY_PAUSE })
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
