//! Sends what the journal's outbox holds, in order, as long as the worker lives.
//!
//! ```text
//! journal.posted ─► next_batch ─► publish, up to 256 at a time ─► confirmed ─► journal.delivered, in groups
//!                                        │ broker away, refused            └─ unroutable event: counted, settled
//!                                        └─ kept, tried again              └─ unroutable letter: kept, reported
//! ```
//!
//! Nothing is lost: a row is marked only after the broker confirmed it, so a crash sends it again with the same event id.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
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
}

/// What became of one row.
enum Sent {
    /// Confirmed, or not wanted by anybody.
    Settled(i64),
    /// To be tried again after the pause.
    Kept(i64, Duration),
}

/// Sends until `shutdown` says that the worker's work is over; then until the outbox is empty, for at most [`FLUSH_MAX`].
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
            let empty = sending.is_empty() && pump.marking.is_none() && pump.again.is_none();
            if empty || Instant::now() >= until {
                return;
            }
        }
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
            () = sleep_until(pump.again) => pump.look_from_the_start(),
            () = over.reached(Stage::Now), if deadline.is_none() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

struct Pump {
    journal: Journal,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
    /// The last row that was read.
    after: i64,
    /// Rows that are read and not marked, so that a second look from the start does not send them twice at once.
    busy: BTreeSet<i64>,
    ready: VecDeque<OutboxRow>,
    /// Rows to be marked, and when.
    settled: Vec<i64>,
    mark_at: Option<Instant>,
    /// The marking under way. Nothing waits for it but the next one.
    marking: Option<Marking>,
    /// Rows that could not be sent, and when each is due again.
    kept: BTreeMap<i64, Instant>,
    /// When to look from the start again.
    again: Option<Instant>,
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
            busy: BTreeSet::new(),
            ready: VecDeque::new(),
            settled: Vec::new(),
            mark_at: None,
            marking: None,
            kept: BTreeMap::new(),
            again: None,
        }
    }

    async fn fill(&mut self, highest: i64) {
        if self.after >= highest || self.ready.len() >= PUBLISHES_IN_FLIGHT_MAX {
            return;
        }
        let now = Instant::now();
        match self.journal.next_batch(self.after, ROWS_READ_MAX).await {
            Ok(rows) => {
                self.after = rows.last().map_or(highest, |row| row.id);
                for row in rows {
                    let due = self.kept.get(&row.id).is_none_or(|at| *at <= now);
                    if due && self.busy.insert(row.id) {
                        self.ready.push_back(row);
                    }
                }
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
            Sent::Kept(id, pause) => {
                self.busy.remove(&id);
                self.kept.insert(id, Instant::now() + pause);
                self.look_again(pause);
            }
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
        }
        for id in ids {
            self.busy.remove(&id);
            self.kept.remove(&id);
        }
    }

    fn look_from_the_start(&mut self) {
        self.after = 0;
        let now = Instant::now();
        // Those that are due go out now, and are kept again if that fails.
        self.kept.retain(|_, at| *at > now);
        self.again = self.kept.values().min().copied();
    }

    fn look_again(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        self.again = Some(self.again.map_or(at, |before| before.min(at)));
    }

    fn trouble(&mut self, failure: &Failure) {
        tracing::error!(failure = format!("{failure:#}"), "cannot use the journal's outbox");
        self.look_again(RETRY_PAUSE);
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
