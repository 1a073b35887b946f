//! The circuit breaker of each repository: one that fails job after job is tried by one job at a time until one succeeds, so that a
//! share that is dead for a night does not send the night's jobs to the dead letters. Pure: the time is always told.
//!
//! ```text
//!             3 failures in a row, of several jobs                  the pause is over
//!   closed ────────────────────────────────────────► open: waiting ──────────────────► open: one job tries
//!     ▲                                                 ▲                                 │  │  │
//!     │                                                 └── failed: twice the pause ──────┘  │  │
//!     ├───────────────────────────────────── has moved enough bytes: on trial ───────────────┘  │
//!     └───────────────────────────────────────────────────── completed ─────────────────────────┘
//! ```
//!
//! It promises: where a repository is open, at most one normal run of it is started at a time, and none before the pause is over; a
//! run that fails on it then in a way that can pass is kept waiting behind the others and is not charged ([`hold`]), though not for ever.
//! Urgent runs, for which somebody waits, and validations, whose failure is an answer, are held back by nothing and end as they always
//! do; so does a job that wants one attempt, and one that fails in a way that somebody has to mend. A single job is never held: its own
//! policy is enough.
//!
//! It is known to the worker alone and lost with it: the next one learns it again from the first failures. Which runs are held back is in the
//! journal: the next worker lets them go on as soon as it sees their repository work, as this one does ([`Circuits::suspect`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::admit::{Candidate, Hindrance};
use super::settle::{Ending, Settlement};
use crate::failure::{Class, Code, Failure};
use crate::message::event::FailingRepository;
use crate::model::id::RepositoryId;
use crate::model::job::RunKey;

/// Failures in a row after which a repository is open.
const FAILURES_MAX: u32 = 3;
/// Pause before the first try of an open repository; doubles with each that fails.
const PAUSE_FIRST: Duration = Duration::from_secs(30);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// What the one that tries has to have moved for the others to be let try as well: more than what fits into a share's answers while
/// it is being given up, and little beside what a job that would keep all others waiting moves. Bytes.
const TRIAL_BYTES: u64 = 64 << 20;
/// How long runs are kept waiting uncharged on one repository, from its first failure: a night and what comes before somebody looks.
const HELD_MAX: SignedDuration = SignedDuration::from_hours(12);
/// Attempts of one run that are not charged, of all reasons, after which a failing repository is no reason any more.
const UNCHARGED_MAX: u32 = 50;
/// Time without a failure after which the earlier ones count for nothing.
const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// Repositories that are kept in mind; of more, that whose trouble is oldest is forgotten. A job may name any.
const REPOSITORIES_MAX: usize = 256;

/// What is known of the repositories that fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circuits {
    failing: BTreeMap<RepositoryId, Circuit>,
    /// Those for which an earlier worker held runs back, as long as this one knows nothing of them.
    suspected: BTreeSet<RepositoryId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Circuit {
    /// Failures since it last worked.
    failures: u32,
    /// Those of another job as well.
    of_several: bool,
    /// The latest of them, whose it was, and when.
    failure: Failure,
    run: RunKey,
    latest: Timestamp,
    since: Timestamp,
    /// What the next pause is.
    pause: Duration,
    /// It has been open since it last worked.
    told: bool,
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
        let open = self.failing.get(&run.repository).and_then(|circuit| circuit.open);
        let is_tried = |open: Open| open.tried_by.is_some_and(|by| by != run.key);
        match open.filter(|_| run.may_be_held) {
            Some(open) if is_tried(open) || open.next_try > now => Err(Hindrance::RepositoryFails),
            _ => Ok(()),
        }
    }

    /// Notes that a run has started. Answers whether that is news.
    pub fn started(&mut self, run: &Candidate) -> bool {
        let open = self.failing.get_mut(&run.repository).and_then(|circuit| circuit.open.as_mut());
        open.filter(|_| run.may_be_held).map(|open| open.tried_by = Some(run.key)).is_some()
    }

    /// Notes how many bytes an attempt has moved. Where it is the one that tries, and they are enough, all may: with the next failure the
    /// repository is open again. Answers whether that is news.
    pub fn moves(&mut self, repository: RepositoryId, run: RunKey, bytes: u64) -> bool {
        if bytes >= TRIAL_BYTES && self.suspected.remove(&repository) {
            return true;
        }
        let Some(circuit) = self.failing.get_mut(&repository) else { return false };
        let tries = circuit.open.is_some_and(|open| open.tried_by == Some(run));
        if !tries || bytes < TRIAL_BYTES {
            return false;
        }
        (circuit.open, circuit.failures) = (None, FAILURES_MAX - 1);
        true
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
                self.suspected.remove(&repository);
                return None;
            }
            Ending::Failed(failure) if is_of_repository(failure.code) => failure,
            // It says nothing of the repository.
            Ending::Failed(_) => {
                self.let_go(run, Some(now));
                return None;
            }
            Ending::Drained | Ending::Interrupted | Ending::Cancelled | Ending::Evicted => {
                self.let_go(run, None);
                return None;
            }
        };
        let was_tried = self.let_go(run, None);
        self.failing.retain(|of, circuit| *of != repository || now.duration_since(circuit.latest) < FORGET_AFTER);
        let circuit = self.failing.entry(repository).or_insert_with(|| Circuit::new(failure, run, now));
        circuit.failed(failure, run, was_tried, now);
        let held = circuit.holds(now);
        if circuit.open.is_some() {
            self.suspected.remove(&repository);
        }
        self.forget_some();
        held
    }

    /// The run does not try its repository any more, if it did, however it ended. The next one waits for a pause from the moment that
    /// is given. Answers whether it did.
    pub fn let_go(&mut self, run: RunKey, pause_from: Option<Timestamp>) -> bool {
        let mut open = self.failing.values_mut().filter_map(|circuit| circuit.open.as_mut());
        let Some(open) = open.find(|open| open.tried_by == Some(run)) else { return false };
        open.tried_by = None;
        open.next_try = pause_from.and_then(|from| from.checked_add(PAUSE_FIRST).ok()).unwrap_or(open.next_try);
        true
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

    /// An earlier worker held a run back for its sake. It is not open, as that is not known; nor is it known to work.
    pub fn suspect(&mut self, repository: RepositoryId) {
        self.suspected.insert(repository);
    }

    /// Whether runs that were held back for its sake go on waiting.
    pub fn keeps_waiting(&self, repository: RepositoryId) -> bool {
        self.why_open(repository).is_some() || self.suspected.contains(&repository)
    }

    /// Whether it is among those that are told.
    pub fn is_told(&self, repository: RepositoryId) -> bool {
        self.failing.get(&repository).is_some_and(|circuit| circuit.told)
    }

    /// The repositories that are open, or were and have not worked since.
    pub fn told(&self) -> Vec<FailingRepository> {
        let failing = self.failing.iter().filter(|(_, circuit)| circuit.told);
        failing
            .map(|(repository, circuit)| FailingRepository {
                repository_id: *repository,
                since: circuit.since,
                failures: circuit.failures,
                failure: (&circuit.failure).into(),
                tried_by: circuit.open.and_then(|open| open.tried_by).map(|run| run.job_id),
                next_try_at: circuit.open.filter(|open| open.tried_by.is_none()).map(|open| open.next_try),
            })
            .collect()
    }
}

impl Circuit {
    fn new(failure: &Failure, run: RunKey, now: Timestamp) -> Self {
        let (failure, latest, since) = (failure.clone(), now, now);
        let (failures, of_several, told, open) = (0, false, false, None);
        Self { failures, of_several, failure, run, latest, since, pause: PAUSE_FIRST, told, open }
    }

    fn failed(&mut self, failure: &Failure, run: RunKey, was_tried: bool, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.of_several |= self.run.job_id != run.job_id;
        (self.failure, self.run, self.latest) = (failure.clone(), run, now);
        let opens = self.open.is_none() && self.of_several && self.failures >= FAILURES_MAX;
        if opens || was_tried {
            let next_try = now.checked_add(self.pause).unwrap_or(now);
            self.open = Some(Open { next_try, tried_by: None });
            self.told = true;
            self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    /// How long a run that failed on it waits, and lets another one try first.
    fn holds(&self, now: Timestamp) -> Option<Duration> {
        let open = self.open.filter(|_| now.duration_since(self.since) < HELD_MAX)?;
        let until = Duration::try_from(open.next_try.duration_since(now)).unwrap_or_default();
        Some(until.max(PAUSE_FIRST) + PAUSE_FIRST)
    }
}

/// Failures that another job on the same repository is likely to meet as well. A full or read-only one is not among them: it can be read,
/// and what makes room on it has to go on. Of a share that hangs it is mostly the lease that is heard first.
fn is_of_repository(code: Code) -> bool {
    matches!(
        code,
        Code::MountFailed
            | Code::MountDenied
            | Code::MountTimedOut
            | Code::RepositoryNotFound
            | Code::RepositoryNotSeparate
            | Code::RepositoryIo
            | Code::LeaseLost
            | Code::Stalled
            | Code::MoverUnresponsive
    )
}

/// What follows an attempt whose run is to be held back, if it is: where the failure can pass, it waits and is not charged.
pub fn hold(settlement: Settlement, held: Option<Duration>, uncharged: u32) -> Settlement {
    let Some(at_least) = held.filter(|_| uncharged < UNCHARGED_MAX) else { return settlement };
    match settlement {
        Settlement::Retry { pause, failure, charged: true } => {
            Settlement::Retry { pause: pause.max(at_least), charged: false, failure }
        }
        Settlement::DeadLetter(failure) if failure.class() == Class::Transient => {
            Settlement::Retry { pause: at_least, charged: false, failure }
        }
        other => other,
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
        let (key, may_be_held) = (key(job), !urgent);
        Candidate { key, urgent, may_be_held, order: 0, not_before, start_before, instance, repository: SHARE }
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
        let again = RunKey { run: 2, ..key(1) };
        assert_eq!(circuits.ended(SHARE, again, &gone(), at(0)), None, "asked for again");
        assert_eq!((circuits.may_start(&run(1, false), at(0)), circuits.told().len()), (Ok(()), 0));
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
            assert_eq!((circuits.told()[0].tried_by, circuits.told()[0].next_try_at), (Some(key(4).job_id), None));
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
        assert_eq!(circuits.ended(SHARE, key(4), &silent, at(40)), None);
        assert_eq!(circuits.next_moment(at(40)), Some(at(70)), "another one, after the shortest pause");
        assert_eq!(circuits.told().len(), 1);
    }

    #[test]
    fn one_that_is_stopped_makes_room_for_another_at_once() {
        for ending in [Ending::Drained, Ending::Interrupted, Ending::Cancelled, Ending::Evicted] {
            let mut circuits = open();
            circuits.started(&run(4, false));
            assert_eq!(circuits.ended(SHARE, key(4), &ending, at(40)), None);
            assert_eq!(circuits.may_start(&run(5, false), at(40)), Ok(()), "{ending:?}");
        }
        let mut circuits = open();
        circuits.started(&run(4, false));
        assert_eq!(circuits.may_start(&run(4, false), at(40)), Ok(()), "it waits for itself in vain");
        assert!(circuits.let_go(key(4), None) && !circuits.let_go(key(4), None));
        assert_eq!(circuits.may_start(&run(5, false), at(40)), Ok(()));
    }

    #[test]
    fn a_repository_that_takes_bytes_of_the_one_that_tries_is_on_trial() {
        let mut circuits = open();
        circuits.started(&run(4, false));
        assert!(!circuits.moves(SHARE, key(4), TRIAL_BYTES - 1));
        assert!(!circuits.moves(SHARE, key(9), TRIAL_BYTES), "it began before");
        assert!(circuits.moves(SHARE, key(4), TRIAL_BYTES) && !circuits.moves(SHARE, key(4), TRIAL_BYTES));
        assert_eq!(circuits.may_start(&run(5, false), at(30)), Ok(()));
        let told = &circuits.told()[0];
        assert_eq!((told.tried_by, told.next_try_at), (None, None), "it is told for as long as nothing completed");
        assert_eq!(circuits.ended(SHARE, key(5), &gone(), at(40)), Some(3 * PAUSE_FIRST), "the pause goes on");
        assert_eq!(circuits.next_moment(at(40)), Some(at(100)));
    }

    #[test]
    fn failures_count_for_nothing_after_a_while_and_hold_nobody_for_ever() {
        let hour = 60 * 60;
        let mut circuits = Circuits::default();
        for (number, job) in [1, 2, 3, 4].into_iter().enumerate() {
            assert_eq!(circuits.ended(SHARE, key(job), &gone(), at(number as i64 * hour)), None);
        }
        let mut circuits = open();
        for minutes in (10..720).step_by(10) {
            assert!(circuits.ended(SHARE, key(4), &gone(), at(minutes * 60)).is_some(), "{minutes}");
        }
        assert_eq!(circuits.ended(SHARE, key(4), &gone(), at(12 * hour)), None);
        assert_eq!(circuits.told().len(), 1);
    }

    #[test]
    fn who_was_held_back_by_an_earlier_worker_waits_until_its_repository_is_seen_to_work() {
        let suspecting = || {
            let mut circuits = Circuits::default();
            circuits.suspect(SHARE);
            circuits
        };
        let mut circuits = suspecting();
        assert_eq!(circuits.may_start(&run(4, false), at(0)), Ok(()), "nobody else is held back");
        assert_eq!(circuits.ended(SHARE, key(4), &gone(), at(0)), None);
        circuits.ended(RepositoryId(Uuid::from_u128(2)), key(5), &Ending::Completed, at(0));
        assert!(circuits.keeps_waiting(SHARE) && !circuits.moves(SHARE, key(6), TRIAL_BYTES - 1));
        circuits.ended(SHARE, key(6), &Ending::Completed, at(0));
        assert!(!circuits.keeps_waiting(SHARE));
        let mut circuits = suspecting();
        assert!(circuits.moves(SHARE, key(4), TRIAL_BYTES) && !circuits.keeps_waiting(SHARE));
        let mut circuits = suspecting();
        for job in [4, 5, 6] {
            circuits.ended(SHARE, key(job), &gone(), at(0));
        }
        circuits.started(&run(7, false));
        assert!(circuits.keeps_waiting(SHARE), "it is open");
        assert!(circuits.moves(SHARE, key(7), TRIAL_BYTES) && !circuits.keeps_waiting(SHARE), "and then on trial");
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
        let failure = || Failure::new(Code::MountTimedOut, "no");
        let (at_least, longer) = (Duration::from_secs(60), Duration::from_secs(100));
        let waits = |pause| Settlement::Retry { pause, charged: false, failure: failure() };
        let charged = Settlement::Retry { pause: longer, charged: true, failure: failure() };
        assert_eq!(hold(charged.clone(), Some(at_least), 0), waits(longer));
        assert_eq!(hold(Settlement::DeadLetter(failure()), Some(at_least), 0), waits(at_least));
        assert_eq!(hold(charged.clone(), None, 0), charged);
        let ended = Settlement::DeadLetter(failure());
        assert_eq!(hold(ended.clone(), Some(at_least), UNCHARGED_MAX), ended);
        let for_somebody = Settlement::DeadLetter(Failure::new(Code::MountDenied, "no"));
        assert_eq!(hold(for_somebody.clone(), Some(at_least), 0), for_somebody);
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
