//! The circuit breaker of each repository: one that fails job after job is tried by one job at a time until one succeeds, so that a
//! share that is dead for a night does not send the night's jobs to the dead letters. Pure: the time is always told.
//!
//! ```text
//!             3 failures in a row, of several runs                  the pause is over
//!   closed ────────────────────────────────────────► open: waiting ──────────────────► open: one job tries
//!     ▲                                                 ▲                                 │  │  │
//!     │                                                 └── failed: twice the pause ──────┘  │  │
//!     ├───────────────────────────────────────────────────── moves bytes: on trial ──────────┘  │
//!     └───────────────────────────────────────────────────── completed ─────────────────────────┘
//! ```
//!
//! It promises: where a repository is open, at most one normal run of it is started at a time, and none before the pause is over; a
//! run that fails on it then is kept waiting and not charged for that ([`hold`]), though not for ever; urgent runs, for which somebody
//! waits, are held back by nothing, and fail as they always do. A single run is never held: its own policy is enough.
//!
//! It is known to the worker alone and lost with it: the next one learns it again from the first failures.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::admit::{Candidate, Hindrance};
use super::settle::{Ending, Settlement};
use crate::failure::{Code, Failure};
use crate::message::event::FailingRepository;
use crate::model::id::RepositoryId;
use crate::model::job::RunKey;

/// Failures in a row after which a repository is open.
const FAILURES_MAX: u32 = 3;
/// Pause before the first try of an open repository; doubles with each that fails.
const PAUSE_FIRST: Duration = Duration::from_secs(30);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// Attempts of one run that are not charged, of all reasons, after which a failing repository is no reason any more: at the longest
/// pause, half a day for a run that is alone.
const UNCHARGED_MAX: u32 = 50;
/// Repositories that are kept in mind; of more, that whose trouble is oldest is forgotten. A job may name any.
const REPOSITORIES_MAX: usize = 256;

/// What is known of the repositories that fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circuits {
    failing: BTreeMap<RepositoryId, Circuit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Circuit {
    /// Failures since it last worked.
    failures: u32,
    /// Those of another run as well.
    of_several: bool,
    /// The latest of them, and whose it was.
    failure: Failure,
    run: RunKey,
    since: Timestamp,
    /// What the next pause is.
    pause: Duration,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    next_try: Timestamp,
    /// The run that tries it.
    tried_by: Option<RunKey>,
}

impl Circuits {
    /// Whether the run may start as far as its repository is concerned.
    ///
    /// # Errors
    /// [`Hindrance::RepositoryFails`].
    pub fn may_start(&self, run: &Candidate, now: Timestamp) -> Result<(), Hindrance> {
        match self.failing.get(&run.repository).and_then(|circuit| circuit.open) {
            Some(open) if !run.urgent && (open.tried_by.is_some() || open.next_try > now) => {
                Err(Hindrance::RepositoryFails)
            }
            _ => Ok(()),
        }
    }

    /// Notes that a run has started. Answers whether that is news.
    pub fn started(&mut self, run: &Candidate) -> bool {
        let open = self.failing.get_mut(&run.repository).and_then(|circuit| circuit.open.as_mut());
        open.filter(|open| !run.urgent && open.tried_by.is_none()).map(|open| open.tried_by = Some(run.key)).is_some()
    }

    /// Notes that an attempt moves bytes: the repository answers. All may try it again, on trial: with the next failure it is open.
    /// Answers whether that is news.
    pub fn answers(&mut self, repository: RepositoryId) -> bool {
        let Some(circuit) = self.failing.get_mut(&repository) else { return false };
        circuit.failures = circuit.failures.min(FAILURES_MAX - 1);
        circuit.open.take().is_some()
    }

    /// Notes how an attempt on the repository ended. Answers for how long its run is to be held back, where it failed for its
    /// repository's sake and that is open.
    pub fn ended(
        &mut self,
        repository: RepositoryId,
        run: RunKey,
        ending: &Ending,
        now: Timestamp,
    ) -> Option<Duration> {
        let failure = match ending {
            Ending::Completed => {
                self.failing.remove(&repository);
                return None;
            }
            Ending::Failed(failure) if is_of_repository(failure.code) => failure,
            // It says nothing of the repository, which the next one may try at once.
            _ => {
                self.try_ended(repository, run);
                return None;
            }
        };
        let was_tried = self.try_ended(repository, run);
        let circuit = self.failing.entry(repository).or_insert_with(|| Circuit::new(failure, run, now));
        let is_open = circuit.failed(failure, run, was_tried, now);
        let held = is_open.then(|| circuit.behind_the_next_try(now));
        self.forget_some();
        held
    }

    /// Answers whether it was the one that tried an open repository.
    fn try_ended(&mut self, repository: RepositoryId, run: RunKey) -> bool {
        let open = self.failing.get_mut(&repository).and_then(|circuit| circuit.open.as_mut());
        open.is_some_and(|open| open.tried_by.take_if(|by| *by == run).is_some())
    }

    fn forget_some(&mut self) {
        while self.failing.len() > REPOSITORIES_MAX {
            let oldest =
                self.failing.iter().min_by_key(|(_, circuit)| circuit.since).map(|(repository, _)| *repository);
            oldest.map(|repository| self.failing.remove(&repository));
        }
    }

    /// When the next repository may be tried again.
    pub fn next_moment(&self, now: Timestamp) -> Option<Timestamp> {
        let open = self.failing.values().filter_map(|circuit| circuit.open);
        open.filter(|open| open.tried_by.is_none() && open.next_try > now).map(|open| open.next_try).min()
    }

    /// The latest failure of a repository that is open.
    pub fn why_open(&self, repository: RepositoryId) -> Option<&Failure> {
        self.failing.get(&repository).filter(|circuit| circuit.open.is_some()).map(|circuit| &circuit.failure)
    }

    /// The repositories that are open.
    pub fn open(&self) -> Vec<FailingRepository> {
        let told = |(repository, circuit): (&RepositoryId, &Circuit)| {
            let open = circuit.open?;
            Some(FailingRepository {
                repository_id: *repository,
                since: circuit.since,
                failures: circuit.failures,
                failure: (&circuit.failure).into(),
                tried_by: open.tried_by.map(|run| run.job_id),
                next_try_at: open.tried_by.is_none().then_some(open.next_try),
            })
        };
        self.failing.iter().filter_map(told).collect()
    }
}

impl Circuit {
    fn new(failure: &Failure, run: RunKey, since: Timestamp) -> Self {
        let failure = failure.clone();
        Self { failures: 0, of_several: false, failure, run, since, pause: PAUSE_FIRST, open: None }
    }

    /// Answers whether it is open now.
    fn failed(&mut self, failure: &Failure, run: RunKey, was_tried: bool, now: Timestamp) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.of_several |= self.run != run;
        (self.failure, self.run) = (failure.clone(), run);
        let opens = self.open.is_none() && self.of_several && self.failures >= FAILURES_MAX;
        if opens || was_tried {
            let next_try = now.checked_add(self.pause).unwrap_or(now);
            self.open = Some(Open { next_try, tried_by: None });
            self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
        }
        self.open.is_some()
    }

    /// How long a run waits that lets another one try first.
    fn behind_the_next_try(&self, now: Timestamp) -> Duration {
        let until = self.open.map(|open| Duration::try_from(open.next_try.duration_since(now)).unwrap_or_default());
        until.unwrap_or_default().max(PAUSE_FIRST) + PAUSE_FIRST
    }
}

/// Failures that another job on the same repository is likely to meet as well.
fn is_of_repository(code: Code) -> bool {
    matches!(
        code,
        Code::MountFailed
            | Code::MountDenied
            | Code::MountTimedOut
            | Code::RepositoryNotFound
            | Code::RepositoryIdentityMismatch
            | Code::RepositoryNotSeparate
            | Code::RepositoryFull
            | Code::RepositoryReadOnly
            | Code::RepositoryIo
            | Code::Stalled
            | Code::MoverUnresponsive
    )
}

/// What follows an attempt whose run is to be held back, if it is: it waits and is not charged. It lets others go before it: what is
/// wrong may be wrong with its job alone.
pub fn hold(settlement: Settlement, held: Option<Duration>, uncharged: u32) -> Settlement {
    let Some(at_least) = held.filter(|_| uncharged < UNCHARGED_MAX) else { return settlement };
    match settlement {
        Settlement::Retry { pause, failure, .. } => {
            Settlement::Retry { pause: pause.max(at_least), charged: false, failure }
        }
        Settlement::DeadLetter(failure) => Settlement::Retry { pause: at_least, charged: false, failure },
        Settlement::Complete | Settlement::Cancel => settlement,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;
    use crate::model::id::JobId;

    const SHARE: RepositoryId = RepositoryId(Uuid::from_u128(1));

    fn key(job: u128) -> RunKey {
        RunKey { job_id: JobId(Uuid::from_u128(job)), run: 1 }
    }

    fn run(job: u128, urgent: bool) -> Candidate {
        let (not_before, start_before, instance) = (None, None, None);
        Candidate { key: key(job), urgent, order: 0, not_before, start_before, instance, repository: SHARE }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn gone() -> Ending {
        Ending::Failed(Failure::new(Code::MountTimedOut, "no answer"))
    }

    /// Opened at second 0, with the first try at second 30.
    fn open() -> Circuits {
        let mut circuits = Circuits::default();
        let held = [1, 2, 3].map(|job| circuits.ended(SHARE, key(job), &gone(), at(0)));
        assert_eq!(held, [None, None, Some(2 * PAUSE_FIRST)]);
        circuits
    }

    #[test]
    fn one_job_that_fails_again_and_again_is_not_held_back_but_by_its_own_policy() {
        let mut circuits = Circuits::default();
        for _ in 0..10 {
            assert_eq!(circuits.ended(SHARE, key(1), &gone(), at(0)), None);
        }
        assert_eq!((circuits.may_start(&run(1, false), at(0)), circuits.open().len()), (Ok(()), 0));
        assert!(circuits.ended(SHARE, key(2), &gone(), at(0)).is_some(), "another job as well");
    }

    #[test]
    fn an_open_repository_is_tried_by_one_run_at_a_time_after_pauses_that_double() {
        let mut circuits = open();
        let mut now = 0;
        for pause in [30, 60, 120, 240, 480, 900, 900] {
            assert_eq!(circuits.may_start(&run(4, false), at(now + pause - 1)), Err(Hindrance::RepositoryFails));
            assert_eq!(circuits.next_moment(at(now)), Some(at(now + pause)));
            now += pause;
            assert_eq!(circuits.may_start(&run(4, false), at(now)), Ok(()));
            assert!(circuits.started(&run(4, false)));
            assert_eq!(circuits.may_start(&run(5, false), at(now)), Err(Hindrance::RepositoryFails));
            assert_eq!((circuits.open()[0].tried_by, circuits.open()[0].next_try_at), (Some(key(4).job_id), None));
            assert_eq!(circuits.next_moment(at(now)), None);
            assert!(circuits.ended(SHARE, key(4), &gone(), at(now)).unwrap() >= 2 * PAUSE_FIRST);
        }
    }

    #[test]
    fn one_that_failed_comes_after_the_others() {
        let mut circuits = open();
        circuits.started(&run(4, false));
        let held = circuits.ended(SHARE, key(4), &gone(), at(30)).unwrap();
        let back = at(30).checked_add(held).unwrap();
        assert!(circuits.next_moment(at(30)).unwrap() < back);
    }

    #[test]
    fn a_run_that_completes_closes_it_whichever_it_is() {
        let mut circuits = open();
        assert_eq!(circuits.ended(SHARE, key(9), &Ending::Completed, at(1)), None);
        assert_eq!(circuits, Circuits::default());
    }

    #[test]
    fn what_fails_for_another_reason_says_nothing_of_the_repository() {
        let mut circuits = open();
        circuits.started(&run(4, false));
        let silent = Ending::Failed(Failure::new(Code::AgentSilent, "no answer"));
        assert_eq!(circuits.ended(SHARE, key(4), &silent, at(30)), None);
        assert_eq!(circuits.may_start(&run(5, false), at(30)), Ok(()), "the next one may try at once");
        assert_eq!(circuits.open().len(), 1);
    }

    #[test]
    fn a_repository_that_takes_bytes_is_on_trial() {
        let mut circuits = open();
        circuits.started(&run(4, false));
        assert!(circuits.answers(SHARE) && !circuits.answers(SHARE));
        assert_eq!(circuits.may_start(&run(5, false), at(30)), Ok(()));
        assert_eq!(circuits.ended(SHARE, key(5), &gone(), at(40)), Some(3 * PAUSE_FIRST), "the pause goes on");
        assert_eq!(circuits.next_moment(at(40)), Some(at(100)));
    }

    #[test]
    fn urgent_runs_are_held_back_by_nothing_and_are_not_the_ones_that_try() {
        let mut circuits = open();
        assert_eq!(circuits.may_start(&run(4, true), at(0)), Ok(()));
        assert!(!circuits.started(&run(4, true)));
        assert_eq!(circuits.may_start(&run(5, false), at(30)), Ok(()));
    }

    #[test]
    fn a_run_that_is_held_back_waits_uncharged_and_not_for_ever() {
        let failure = || Failure::new(Code::MountDenied, "no");
        let (at_least, longer) = (Duration::from_secs(60), Duration::from_secs(100));
        let waits = |pause| Settlement::Retry { pause, charged: false, failure: failure() };
        let charged = Settlement::Retry { pause: longer, charged: true, failure: failure() };
        assert_eq!(hold(charged.clone(), Some(at_least), 0), waits(longer));
        assert_eq!(hold(Settlement::DeadLetter(failure()), Some(at_least), 0), waits(at_least));
        assert_eq!(hold(charged.clone(), None, 0), charged);
        let ended = Settlement::DeadLetter(failure());
        assert_eq!(hold(ended.clone(), Some(at_least), UNCHARGED_MAX), ended);
    }

    #[test]
    fn no_more_repositories_are_kept_in_mind_than_there_is_room_for() {
        let mut circuits = Circuits::default();
        for number in 0..=REPOSITORIES_MAX {
            let repository = RepositoryId(Uuid::from_u128(number as u128));
            circuits.ended(repository, key(1), &gone(), at(number as i64));
        }
        assert_eq!(circuits.failing.len(), REPOSITORIES_MAX);
        assert!(!circuits.failing.contains_key(&RepositoryId(Uuid::from_u128(0))));
    }
}
