//! How long to wait before the next try to reach the broker: 100 ms, half as much again each time, never over 3 s, spread by
//! chance so that a fleet does not come back in one wave.
//!
//! The only place that names the `backoff` crate, which is unmaintained (RUSTSEC-2025-0012, no vulnerability known), so that
//! replacing it is a change of one file. It deliberately does not sleep or retry: the caller knows what it waits for besides.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// The first wait.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// By how much each wait is longer than the one before.
const FACTOR: f64 = 1.5;
/// No wait is longer. A broker is used again within 5 s of its return, so this leaves time for the handshake.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// Share of the wait by which chance makes it shorter or longer.
const JITTER: f64 = 0.3;

/// A growing wait.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

impl Backoff {
    /// A fresh one, at its shortest wait.
    pub fn new() -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(FIRST_WAIT)
                .with_multiplier(FACTOR)
                .with_max_interval(LONGEST_WAIT)
                .with_randomization_factor(JITTER)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// The next wait. It never ends by itself.
    pub fn next_wait(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
    }

    /// Something worked: the next wait is short again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_never_end() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..200).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= FIRST_WAIT.mul_f64(1.0 + JITTER) + Duration::from_millis(1), "{:?}", waits[0]);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
        assert!(waits[20..].iter().all(|wait| *wait >= LONGEST_WAIT.mul_f64(1.0 - JITTER)), "{:?}", &waits[20..]);
    }

    #[test]
    fn two_workers_do_not_wait_in_step() {
        let (mut one, mut other) = (Backoff::new(), Backoff::new());
        let same = (0..50).filter(|_| one.next_wait() == other.next_wait()).count();
        // At the cap a third of the waits is cut to it, so some are equal; in step all of them would be.
        assert!(same < 40, "{same} of 50 waits are equal");
    }

    #[test]
    fn success_makes_the_next_wait_short_again() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            backoff.next_wait();
        }
        backoff.reset();
        assert!(backoff.next_wait() < FIRST_WAIT * 2);
    }
}
