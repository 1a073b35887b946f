//! What happens after an attempt: the whole retry policy, as one pure function.
//!
//! Only failures are charged against the policy. An attempt that was interrupted, by the worker's end or by a drain, is
//! followed by another at once, but not for ever: a job that the worker does not survive ends as `crash_loop`.

use std::time::Duration;

use crate::failure::{Class, Code, Failure};
use crate::model::job::RetryPolicy;

/// Interruptions by the worker's own end after which a run is given up.
pub const INTERRUPTIONS_MAX: u32 = 10;

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It did what was asked.
    Completed,
    /// It failed and was unwound.
    Failed(Failure),
    /// It was stopped by a drain and unwound.
    Drained,
    /// The same, or it waited, and the drain keeps nothing.
    Evicted,
    /// The worker ended while it ran; it was unwound at the next start.
    Interrupted,
    /// It was cancelled and unwound.
    Cancelled,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The run has ended well.
    Complete,
    /// The run has been cancelled.
    Cancel,
    /// Another attempt, not before the pause has passed.
    Retry {
        /// Pause from now.
        pause: Duration,
        /// Whether this attempt counts against the policy.
        charged: bool,
        /// Why there is another one.
        failure: Failure,
    },
    /// The run has failed: to the dead letters.
    DeadLetter(Failure),
}

/// What the run has been through before this ending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Attempts charged so far, this one not included.
    pub charged: u32,
    /// Interruptions by the worker's end so far, this one included: they are counted before the unwinding.
    pub interruptions: u32,
}

/// Decides. `jitter` is drawn by the caller, 0 to 1.
pub fn settle(ending: Ending, past: Past, policy: &RetryPolicy, jitter: f64) -> Settlement {
    match ending {
        Ending::Completed => Settlement::Complete,
        Ending::Cancelled => Settlement::Cancel,
        Ending::Drained => Settlement::Retry {
            pause: Duration::ZERO,
            charged: false,
            failure: Failure::new(Code::HostDraining, "the worker is being stopped; the job goes on when it is back"),
        },
        Ending::Evicted => Settlement::DeadLetter(Failure::new(
            Code::HostDraining,
            "the host is being drained and keeps no job; replay it there later, or on another host",
        )),
        Ending::Interrupted if past.interruptions >= INTERRUPTIONS_MAX => Settlement::DeadLetter(Failure::new(
            Code::CrashLoop,
            format!("the worker ended {INTERRUPTIONS_MAX} times while it did this job"),
        )),
        Ending::Interrupted => Settlement::Retry {
            pause: Duration::ZERO,
            charged: false,
            failure: Failure::new(Code::Interrupted, "the worker ended while it did this job"),
        },
        Ending::Failed(failure) => {
            let last = past.charged + 1 >= policy.attempts;
            if failure.class() == Class::Transient && !last {
                Settlement::Retry { pause: pause(past.charged, policy, jitter), charged: true, failure }
            } else {
                Settlement::DeadLetter(failure)
            }
        }
    }
}

/// The pause after the failed attempt number `charged` + 1: doubling, capped, and spread by up to a fifth either way so that
/// jobs that failed together do not come back together.
fn pause(charged: u32, policy: &RetryPolicy, jitter: f64) -> Duration {
    let doubled = policy.first_pause.saturating_mul(2_u32.saturating_pow(charged.min(20)));
    doubled.min(policy.longest_pause).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { attempts: 3, first_pause: Duration::from_secs(10), longest_pause: Duration::from_secs(15) }
    }

    fn failed(code: Code) -> Ending {
        Ending::Failed(Failure::new(code, "x"))
    }

    fn after(charged: u32) -> Past {
        Past { charged, interruptions: 0 }
    }

    #[test]
    fn a_transient_failure_is_tried_again_until_the_attempts_are_used_up() {
        let first = settle(failed(Code::MountTimedOut), after(0), &policy(), 0.5);
        let Settlement::Retry { pause, charged: true, .. } = first else { panic!("{first:?}") };
        assert_eq!(pause, Duration::from_secs(10));
        let second = settle(failed(Code::MountTimedOut), after(1), &policy(), 0.5);
        let Settlement::Retry { pause, .. } = second else { panic!("{second:?}") };
        assert_eq!(pause, Duration::from_secs(15), "capped");
        assert!(matches!(settle(failed(Code::MountTimedOut), after(2), &policy(), 0.5), Settlement::DeadLetter(_)));
    }

    #[test]
    fn a_permanent_failure_or_a_bug_is_not_tried_again() {
        for code in [Code::InstanceNotHere, Code::Internal] {
            assert!(matches!(settle(failed(code), after(0), &policy(), 0.5), Settlement::DeadLetter(_)));
        }
    }

    #[test]
    fn an_interruption_is_not_charged_but_bounded() {
        let once = settle(Ending::Interrupted, after(2), &policy(), 0.5);
        assert!(matches!(once, Settlement::Retry { charged: false, .. }), "{once:?}");
        let past = Past { charged: 0, interruptions: INTERRUPTIONS_MAX };
        let Settlement::DeadLetter(failure) = settle(Ending::Interrupted, past, &policy(), 0.5) else { panic!() };
        assert_eq!(failure.code, Code::CrashLoop);
    }

    #[test]
    fn a_drain_keeps_the_job_waiting_however_often_it_happens() {
        let past = Past { charged: 2, interruptions: 100 };
        assert!(matches!(settle(Ending::Drained, past, &policy(), 0.5), Settlement::Retry { charged: false, .. }));
    }

    #[test]
    fn an_eviction_ends_the_run_whatever_its_policy_has_left() {
        let Settlement::DeadLetter(failure) = settle(Ending::Evicted, after(0), &policy(), 0.5) else { panic!() };
        assert_eq!(failure.code, Code::HostDraining);
    }

    #[test]
    fn the_pause_stays_within_a_fifth_of_its_length() {
        let policy = RetryPolicy { longest_pause: Duration::from_secs(1 << 30), ..policy() };
        for charged in [0, 5, 40] {
            let middle = pause(charged, &policy, 0.5);
            let close = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_millis(1);
            assert!(close(pause(charged, &policy, -1.0), middle.mul_f64(0.8)));
            assert!(close(pause(charged, &policy, 2.0), middle.mul_f64(1.2)));
        }
    }
}
