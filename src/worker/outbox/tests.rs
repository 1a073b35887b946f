//! A broker that takes no letters: what comes behind them is not held up.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;
use tokio::time::advance;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use crate::journal::{Draft, OutboxMessage};
use crate::shutdown;

/// Takes everything but letters, which it refuses unless told otherwise.
#[derive(Default)]
struct Picky {
    /// The exchanges of what it was sent, in order.
    sent: Mutex<Vec<&'static str>>,
    takes_letters: std::sync::atomic::AtomicBool,
}

impl Picky {
    fn sent(&self, exchange: &str) -> usize {
        self.sent.lock().unwrap().iter().filter(|sent| **sent == exchange).count()
    }
}

#[async_trait]
impl Publisher for Picky {
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.sent.lock().unwrap().push(message.exchange);
        if message.exchange == DEAD_EXCHANGE && !self.takes_letters.load(Ordering::SeqCst) {
            let (routing_key, reason) = (message.routing_key, "it is full".to_owned());
            return Err(PublishError::Refused { routing_key, reason });
        }
        Ok(())
    }
}

fn draft(kind: MessageKind, exchange: &'static str) -> Draft {
    Draft::new(move |_| OutboxMessage {
        kind,
        exchange: exchange.to_owned(),
        routing_key: "backup.x.kvm-07".to_owned(),
        properties: json!({}),
        body: Vec::new(),
    })
}

/// Waits in real time, in which tokio's clock stands still.
async fn until(what: &str, done: impl Fn() -> bool) {
    const LOOKS_MAX: usize = 10_000;
    for _ in 0..LOOKS_MAX {
        if done() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
    }
    unreachable!("{what} does not come about");
}

/// Letters that are due one after the other, more than are read at once, and then an event.
#[tokio::test(start_paused = true)]
async fn letters_that_nobody_takes_hold_up_no_event() {
    const LETTERS: usize = 4 * ROWS_READ_MAX as usize;
    const SPACING: Duration = Duration::from_millis(REFUSED_PAUSE.as_millis() as u64 / LETTERS as u64);
    // Tokio's clock would run ahead whenever all wait for the journal, but not while something blocks.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let clock = tokio::task::spawn_blocking(move || held.recv());
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (broker, counters) = (Arc::new(Picky::default()), Arc::new(Counters::default()));
    let (over, until_over) = shutdown::switch();
    let pump =
        AbortOnDropHandle::new(tokio::spawn(pump(journal.clone(), broker.clone(), counters.clone(), until_over)));
    for number in 1..=LETTERS {
        journal.post(None, vec![draft(MessageKind::Letter, DEAD_EXCHANGE)]).await.unwrap();
        until("the letter's refusal", || *counters.kept.borrow() == number).await;
        advance(SPACING).await;
    }
    // The first are sent again.
    advance(2 * SPACING).await;
    until("a letter again", || broker.sent(DEAD_EXCHANGE) > LETTERS).await;
    until("its refusal", || *counters.kept.borrow() == LETTERS).await;
    journal.post(None, vec![draft(MessageKind::Final, EVENTS_EXCHANGE)]).await.unwrap();
    until("the event", || broker.sent(EVENTS_EXCHANGE) == 1).await;
    // And each letter goes out in the end.
    broker.takes_letters.store(true, Ordering::SeqCst);
    advance(REFUSED_PAUSE).await;
    until("the letters", || *counters.kept.borrow() == 0).await;
    over.raise(Stage::Now);
    pump.await.unwrap();
    assert_eq!(journal.outbox_depth().await.unwrap(), 0);
    drop(release);
    assert!(clock.await.unwrap().is_err(), "nothing was sent to it");
}
