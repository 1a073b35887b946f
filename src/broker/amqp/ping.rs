//! The host's ping through its own control queue: the only proof that messages still reach us.
//!
//! "Connected" proves nothing: a consumer can be gone without a word, and a network can swallow what it is given. A ping that
//! was confirmed is in the queue, so if it does not arrive the consuming side is silent. One that is not confirmed while the
//! publish connection calls itself up shows that the publishing side is. While the broker blocks us, neither proves anything.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::broker::topology::{CONTROL_EXCHANGE, PING_COMMAND, control_key};
use crate::broker::{Outgoing, Properties};
use crate::model::id::HostId;

/// A ping under way.
struct UnderWay {
    nonce: String,
    /// When the broker confirmed it.
    confirmed_at: Option<Instant>,
}

/// The pings of one session.
pub(super) struct Ping {
    interval: Duration,
    wait: Duration,
    next_at: Instant,
    under_way: Option<UnderWay>,
    answered: bool,
}

impl Ping {
    /// None sent yet; the first is due at once.
    pub(super) fn new(interval: Duration, wait: Duration, now: Instant) -> Self {
        Self { interval, wait, next_at: now, under_way: None, answered: false }
    }

    /// Whether the last one that had to be answered was.
    pub(super) fn answered(&self) -> bool {
        self.answered
    }

    /// When [`Ping::is_silent`] or [`Ping::due`] has to be asked again, unless something happens before.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.under_way {
            Some(ping) => ping.confirmed_at.map(|at| at + self.wait),
            None => Some(self.next_at),
        }
    }

    /// A confirmed ping has not arrived in time.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let confirmed_at = self.under_way.as_ref().and_then(|ping| ping.confirmed_at);
        confirmed_at.is_some_and(|at| now >= at + self.wait)
    }

    /// The next ping, if it is time. It is given up if it is not confirmed within the wait.
    pub(super) fn due(&mut self, host: &HostId, now: Instant) -> Option<Outgoing> {
        if self.under_way.is_some() || now < self.next_at {
            return None;
        }
        let nonce = Uuid::new_v4().to_string();
        self.next_at = now + self.interval;
        self.under_way = Some(UnderWay { nonce: nonce.clone(), confirmed_at: None });
        Some(Outgoing {
            exchange: CONTROL_EXCHANGE,
            routing_key: control_key(host, PING_COMMAND),
            properties: Properties { message_id: nonce, ..Properties::default() },
            body: Vec::new(),
        })
    }

    /// The broker has it. It may have arrived already.
    pub(super) fn confirmed(&mut self, now: Instant) {
        if let Some(ping) = &mut self.under_way {
            ping.confirmed_at = Some(now);
        }
    }

    /// It could not be published, which says nothing about consuming.
    pub(super) fn given_up(&mut self) {
        self.under_way = None;
    }

    /// One has arrived. Those of others, and our own old ones, count for nothing.
    pub(super) fn arrived(&mut self, message_id: &str) {
        if self.under_way.as_ref().is_some_and(|ping| ping.nonce == message_id) {
            self.under_way = None;
            self.answered = true;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);
    const WAIT: Duration = Duration::from_secs(20);

    fn host() -> HostId {
        "kvm-07".parse().unwrap()
    }

    fn fresh() -> (Ping, Instant) {
        let now = Instant::now();
        (Ping::new(INTERVAL, WAIT, now), now)
    }

    #[test]
    fn a_confirmed_ping_that_does_not_arrive_is_silence() {
        let (mut ping, start) = fresh();
        ping.due(&host(), start).unwrap();
        ping.confirmed(start);
        assert_eq!(ping.wake_at(), Some(start + WAIT));
        assert!(!ping.is_silent(start + WAIT - Duration::from_millis(1)));
        assert!(ping.is_silent(start + WAIT));
    }

    #[test]
    fn an_unconfirmed_ping_is_no_silence_of_the_consumer() {
        let (mut ping, start) = fresh();
        ping.due(&host(), start).unwrap();
        assert!(!ping.is_silent(start + WAIT * 10));
        ping.given_up();
        assert!(ping.due(&host(), start + INTERVAL).is_some());
    }

    #[test]
    fn only_our_own_ping_counts() {
        let (mut ping, start) = fresh();
        let sent = ping.due(&host(), start).unwrap();
        ping.arrived("forged");
        assert!(!ping.answered());
        ping.arrived(&sent.properties.message_id);
        assert!(ping.answered());
        assert!(ping.due(&host(), start).is_none(), "the next one is not due yet");
        assert_eq!(ping.wake_at(), Some(start + INTERVAL));
        let second = ping.due(&host(), start + INTERVAL).unwrap();
        assert_ne!(second.properties.message_id, sent.properties.message_id);
    }

    #[test]
    fn a_ping_that_arrives_before_its_confirm_is_not_awaited_again() {
        let (mut ping, start) = fresh();
        let sent = ping.due(&host(), start).unwrap();
        ping.arrived(&sent.properties.message_id);
        ping.confirmed(start);
        assert!(!ping.is_silent(start + WAIT * 2));
    }
}
