//! When the worker has enough: which jobs it wants, by how many runs are open.
//!
//! ```text
//!   open runs   0 ──────── 3/4 ────── 1 ──────── 1 1/2 ────── 2   times the bound
//!   rising      all ─────────────────►│ urgent ──────────────►│ none
//!   falling     all │◄──────────────── urgent │◄────────────── none
//! ```
//!
//! The bound stops normal jobs, so that a restore is taken however many backups wait; twice the bound stops all. Between
//! stopping and going on there is room for a prefetch, so that a full worker does not stop and start with every job that ends.
//! An outbox that holds too much that nobody takes stops all jobs as well.

use crate::broker::WantedJobs;

/// Messages that could not be sent and wait in the journal, from which on no job is taken any more: each may have the original of
/// a dead letter in it, 256 KiB, and whoever lets letters pile up would fill the disk.
pub const UNSENT_MAX: usize = 1000;

/// Whether the outbox holds too much, where it did or did not until now.
pub fn outbox_is_full(was: bool, unsent: usize) -> bool {
    unsent >= if was { UNSENT_MAX / 4 * 3 } else { UNSENT_MAX }
}

/// What is wanted next, where `wanted` was until now and `open` runs are open.
pub fn wanted_next(wanted: WantedJobs, open: usize, bound: usize) -> WantedJobs {
    let goes_on = |bound: usize| open.saturating_mul(4) < bound.saturating_mul(3);
    let takes = |took: bool, bound: usize| if took { open < bound } else { goes_on(bound) };
    let (took_urgent, took_all) = (wanted != WantedJobs::None, wanted == WantedJobs::All);
    match (takes(took_urgent, bound.saturating_mul(2)), takes(took_all, bound)) {
        (false, _) => WantedJobs::None,
        (true, false) => WantedJobs::Urgent,
        (true, true) => WantedJobs::All,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_worker_takes_urgent_jobs_and_normal_ones_only_when_a_quarter_is_free_again() {
        let mut wanted = WantedJobs::None;
        let steps = [
            (0, WantedJobs::All),
            (999, WantedJobs::All),
            (1000, WantedJobs::Urgent),
            (999, WantedJobs::Urgent),
            (1000, WantedJobs::Urgent),
            (750, WantedJobs::Urgent),
            (749, WantedJobs::All),
            (1999, WantedJobs::Urgent),
            (2000, WantedJobs::None),
            (1500, WantedJobs::None),
            (1499, WantedJobs::Urgent),
            (2500, WantedJobs::None),
            (0, WantedJobs::All),
        ];
        for (open, next) in steps {
            wanted = wanted_next(wanted, open, 1000);
            assert_eq!(wanted, next, "with {open} open");
        }
    }

    #[test]
    fn a_full_outbox_is_so_until_a_quarter_is_free_again() {
        assert!(!outbox_is_full(false, UNSENT_MAX - 1) && outbox_is_full(false, UNSENT_MAX));
        assert!(outbox_is_full(true, UNSENT_MAX / 4 * 3) && !outbox_is_full(true, UNSENT_MAX / 4 * 3 - 1));
    }

    proptest! {
        #[test]
        fn an_idle_worker_takes_all_and_one_at_twice_the_bound_none(bound in 1_usize..100_000, over in 0_usize..1000) {
            for wanted in [WantedJobs::None, WantedJobs::Urgent, WantedJobs::All] {
                prop_assert_eq!(wanted_next(wanted, 0, bound), WantedJobs::All);
                prop_assert_eq!(wanted_next(wanted, 2 * bound + over, bound), WantedJobs::None);
            }
        }
    }
}
