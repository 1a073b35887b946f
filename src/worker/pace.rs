//! How often progress is told: at most once a second while it changes, with the rate of the last while. A disk of any size is so
//! seen to get on.

use std::time::{Duration, Instant};

use crate::message::event::Progress;

/// Shortest time between two progress events of an attempt.
pub const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// The rate is that of about this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Decides which of many progress notes become events, and puts rate and remaining time to them.
#[derive(Debug, Default)]
pub struct Pace {
    step: String,
    told: Option<(Instant, u64)>,
    window: Option<(Instant, u64)>,
    rate: u64,
}

impl Pace {
    /// The event for this note, if one is due. `last` asks for one in any case.
    pub fn note(&mut self, now: Instant, step: &str, done: u64, total: u64, last: bool) -> Option<Progress> {
        let new_step = self.step != step;
        if new_step {
            *self = Pace { step: step.to_owned(), window: Some((now, done)), ..Pace::default() };
        }
        self.measure(now, done);
        let due = match self.told {
            None => true,
            // All bytes of a step are told once as soon as they are done: what follows may take long and move none.
            Some((at, before)) => {
                let whole = done >= total && before < total;
                whole || (done != before && now.duration_since(at) >= PROGRESS_PAUSE)
            }
        };
        if !(due || last) {
            return None;
        }
        self.told = Some((now, done));
        let remaining = total.saturating_sub(done);
        Some(Progress {
            step: step.to_owned(),
            done_bytes: done,
            total_bytes: total,
            rate_bytes_per_second: self.rate,
            eta_seconds: remaining.checked_div(self.rate),
        })
    }

    fn measure(&mut self, now: Instant, done: u64) {
        let (since, before) = *self.window.get_or_insert((now, done));
        let elapsed = now.duration_since(since);
        if elapsed.is_zero() {
            return;
        }
        let rate = done.saturating_sub(before) as f64 / elapsed.as_secs_f64();
        self.rate = rate as u64;
        if elapsed >= RATE_WINDOW {
            self.window = Some((now, done));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_note_becomes_an_event_after_a_second_if_anything_has_changed() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::default();
        assert!(pace.note(at(0), "copy", 0, 1000, false).is_some(), "the first");
        assert!(pace.note(at(500), "copy", 500, 1000, false).is_none(), "too soon");
        assert!(pace.note(at(1500), "copy", 0, 1000, false).is_none(), "nothing has changed");
        assert!(pace.note(at(1600), "copy", 1, 1000, false).is_some(), "however little it is");
        assert!(pace.note(at(1700), "copy", 500, 1000, false).is_none(), "too soon after the last");
        let event = pace.note(at(3000), "copy", 600, 1000, false).unwrap();
        assert_eq!((event.rate_bytes_per_second, event.eta_seconds), (200, Some(2)));
        assert!(pace.note(at(3001), "copy", 600, 1000, true).is_some(), "the last one always");
        assert!(pace.note(at(3100), "copy", 1000, 1000, false).is_some(), "all of it at once");
        assert!(pace.note(at(3101), "copy", 1000, 1000, false).is_none(), "and once only");
        assert!(pace.note(at(3102), "compare", 0, 1000, false).is_some(), "a new step");
    }

    #[test]
    fn nothing_to_do_has_no_rate_and_no_end() {
        let mut pace = Pace::default();
        let event = pace.note(Instant::now(), "copy", 0, 0, false).unwrap();
        assert_eq!((event.rate_bytes_per_second, event.eta_seconds), (0, None));
    }
}
