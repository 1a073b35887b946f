//! How the worker comes to rest, decided: pure.
//!
//! ```text
//!  told to ──► what runs may end ──limit──► what is left is asked to stop ──► it unwinds ──► at rest
//!              what waits is kept, or ends as well
//! ```
//!
//! At rest the worker ends, or stays for a `resume`. A second signal makes the limit now. Where nothing is kept, what is just being taken
//! is waited for as well: it is about to be the worker's alone.

use std::time::Duration;

use tokio::time::Instant;

/// Longest time that a stopped attempt may take to unwind when the worker is in a hurry. What is left then is unwound at
/// the next start.
/// One that QEMU writes to a share which does not answer takes longest: five minutes, and the rest.
pub const UNWIND_MAX: Duration = Duration::from_secs(330);

/// Why it is to come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its process was told to end, and whoever told it waits.
    Signal,
    /// A controller wants it. At rest the worker ends, unless it is to stay.
    Drain {
        /// What has not ended by then ends as failed, as does what waits.
        evict: bool,
        /// The worker stays, paused.
        stay: bool,
    },
}

/// A worker on its way to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// At rest it ends.
    pub leave: bool,
    /// What is left ends as failed.
    pub evict: bool,
    /// A controller wants it to end.
    pub drained: bool,
    /// Somebody waits for its end.
    signalled: bool,
    /// Until when what runs may go on.
    limit: Instant,
    /// When it was asked to stop.
    asked: Option<Instant>,
}

/// What is in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Attempts that run or unwind, and runs that are just ended.
    pub attempts: usize,
    /// Deliveries that are being written down.
    pub intakes: usize,
    /// Runs that wait.
    pub waiting: usize,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for what runs, until this moment at most.
    Wait(Instant),
    /// Ask what runs to stop.
    Ask,
    /// Wait no longer for what unwinds.
    GiveUp,
    /// Nothing is left to wait for.
    AtRest,
}

impl Stopping {
    /// For that cause, beside what it was about already. A later wish takes the place of an earlier one, but for whoever waits for the end.
    pub fn new(before: Option<Self>, cause: Cause, limit: Instant) -> Self {
        let signalled = cause == Cause::Signal || before.is_some_and(|before| before.signalled);
        let (evict, drained) = match cause {
            Cause::Signal => before.map_or((false, false), |before| (before.evict, before.drained)),
            Cause::Drain { evict, stay } => (evict, !stay),
        };
        let limit = match before {
            Some(before) if signalled => limit.min(before.limit),
            _ => limit,
        };
        let asked = before.and_then(|before| before.asked);
        Self { leave: signalled || drained, evict, drained, signalled, limit, asked }
    }

    /// What runs may go on no longer than until now.
    pub fn at_once(&mut self, now: Instant) {
        self.limit = self.limit.min(now);
    }

    /// What runs has been asked to stop.
    pub fn asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// Decides.
    pub fn next(&self, now: Instant, left: Left) -> Next {
        let nothing = left.attempts == 0 && left.intakes == 0;
        let nothing_to_evict = !self.evict || (left.waiting == 0 && left.intakes == 0);
        match self.asked {
            None if nothing && nothing_to_evict => Next::AtRest,
            None if now >= self.limit => Next::Ask,
            None => Next::Wait(self.limit),
            // A delivery that cannot be written down is the broker's again, and one that was is kept.
            Some(_) if left.attempts == 0 && nothing_to_evict => Next::AtRest,
            Some(asked) if now >= asked + UNWIND_MAX => Next::GiveUp,
            Some(asked) => Next::Wait(asked + UNWIND_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Left = Left { attempts: 0, intakes: 0, waiting: 0 };

    fn drain(evict: bool, stay: bool) -> Cause {
        Cause::Drain { evict, stay }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_runs_is_let_run_until_the_limit_then_asked_to_stop_then_given_up() {
        let start = Instant::now();
        let mut stopping = Stopping::new(None, Cause::Signal, after(start, 100));
        let busy = Left { attempts: 1, ..NOTHING };
        assert_eq!(stopping.next(start, busy), Next::Wait(after(start, 100)));
        assert_eq!(stopping.next(start, Left { intakes: 1, ..NOTHING }), Next::Wait(after(start, 100)));
        assert_eq!(stopping.next(start, Left { waiting: 7, ..NOTHING }), Next::AtRest, "what waits is kept");
        assert_eq!(stopping.next(after(start, 100), busy), Next::Ask);
        stopping.asked(after(start, 100));
        assert_eq!(stopping.next(after(start, 100), busy), Next::Wait(after(start, 100) + UNWIND_MAX));
        assert_eq!(stopping.next(after(start, 101), Left { intakes: 1, ..NOTHING }), Next::AtRest);
        assert_eq!(stopping.next(after(start, 100) + UNWIND_MAX, busy), Next::GiveUp);
    }

    #[test]
    fn at_once_is_now_and_never_later() {
        let start = Instant::now();
        let mut stopping = Stopping::new(None, Cause::Signal, after(start, 100));
        let busy = Left { attempts: 1, ..NOTHING };
        stopping.at_once(after(start, 5));
        assert_eq!(stopping.next(after(start, 5), busy), Next::Ask);
        stopping.at_once(after(start, 50));
        assert_eq!(stopping.next(after(start, 5), busy), Next::Ask);
    }

    #[test]
    fn nothing_rests_before_what_waits_has_been_evicted() {
        let start = Instant::now();
        let stopping = Stopping::new(None, drain(true, false), after(start, 100));
        assert_eq!(stopping.next(start, Left { waiting: 1, ..NOTHING }), Next::Wait(after(start, 100)));
        assert_eq!(stopping.next(start, NOTHING), Next::AtRest);
    }

    #[test]
    fn an_eviction_waits_for_what_is_just_being_taken_but_not_for_ever() {
        let start = Instant::now();
        let mut stopping = Stopping::new(None, drain(true, false), start);
        stopping.asked(start);
        let taking = Left { intakes: 1, ..NOTHING };
        assert_eq!(stopping.next(start, taking), Next::Wait(start + UNWIND_MAX));
        assert_eq!(stopping.next(start + UNWIND_MAX, taking), Next::GiveUp);
        assert_eq!(stopping.next(start, NOTHING), Next::AtRest);
    }

    #[test]
    fn a_later_drain_counts_and_a_signal_is_never_taken_back() {
        let start = Instant::now();
        let first = Stopping::new(None, drain(true, true), after(start, 3600));
        assert_eq!((first.leave, first.evict), (false, true));
        let second = Stopping::new(Some(first), drain(false, false), after(start, 7200));
        assert_eq!((second.leave, second.evict, second.limit), (true, false, after(start, 7200)));
        let mut signalled = Stopping::new(Some(first), Cause::Signal, after(start, 100));
        assert_eq!((signalled.leave, signalled.evict, signalled.limit), (true, true, after(start, 100)));
        signalled.asked(after(start, 100));
        let third = Stopping::new(Some(signalled), drain(false, true), after(start, 3600));
        assert_eq!((third.leave, third.limit, third.asked), (true, after(start, 100), Some(after(start, 100))));
        let sooner = Stopping::new(Some(signalled), drain(false, true), after(start, 10));
        assert_eq!(sooner.limit, after(start, 10));
    }

    #[test]
    fn a_signal_takes_nothing_of_what_a_controller_wants() {
        let start = Instant::now();
        let drained = Stopping::new(None, drain(false, false), start);
        assert!(drained.drained && Stopping::new(Some(drained), Cause::Signal, start).drained);
        let signalled = Stopping::new(None, Cause::Signal, start);
        assert!(!signalled.drained && Stopping::new(Some(signalled), drain(false, false), start).drained);
        assert!(!Stopping::new(Some(drained), drain(false, true), start).drained, "the later one lets it stay");
    }
}
