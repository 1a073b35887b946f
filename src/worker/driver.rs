//! The one task that decides what the worker does next: takes deliveries, starts attempts, and stops.
//!
//! ```text
//!  session ──delivery──► intake (many at a time) ──run──► waiting ──admit──► attempt (slots) ──ended──► forgotten
//!                                                            ▲                    │
//!                                                            └────── retrying ────┘
//! ```
//!
//! It holds no truth of its own: what waits and what runs is in the journal, and is read back from there at start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::admit::{Occupied, Waiting};
use super::attempt::{attempt, recover};
use super::intake;
use super::report::properties_of;
use super::run::Run;
use super::settle::Past;
use super::shared::Shared;
use crate::broker::HostSession;
use crate::failure::{Code, Failure};
use crate::journal::{OpenRun, RunState};
use crate::message::decode_job;
use crate::model::job::RunKey;
use crate::saga::Stopper;
use crate::shutdown::{Shutdown, Stage};

/// Deliveries being written down at a time; they share the journal's commits.
const INTAKES_MAX: usize = 256;
/// Time between two looks at what has ended long enough ago to be taken out of the journal.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time that a stopped attempt may take to unwind when the worker is in a hurry. What is left then is unwound at
/// the next start.
const UNWIND_MAX: Duration = Duration::from_secs(150);

/// The worker's state of mind.
pub struct Driver {
    shared: Arc<Shared>,
    waiting: Waiting,
    occupied: Occupied,
    runs: BTreeMap<RunKey, Run>,
    intakes: JoinSet<Option<Run>>,
    attempts: JoinSet<(RunKey, Option<Run>)>,
    stoppers: BTreeMap<RunKey, Stopper>,
    order: u64,
}

impl Driver {
    /// With nothing in hand.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            waiting: Waiting::default(),
            occupied: Occupied::default(),
            runs: BTreeMap::new(),
            intakes: JoinSet::new(),
            attempts: JoinSet::new(),
            stoppers: BTreeMap::new(),
            order: 0,
        }
    }

    /// Takes up what an earlier worker left in the journal: waiting runs wait again, cut-off attempts are unwound.
    pub async fn take_up(&mut self) -> Result<(), Failure> {
        for open in self.shared.journal.open_runs().await? {
            let crashed = open.state == RunState::Running;
            let Some(run) = self.read_back(open).await? else { continue };
            self.order += 1;
            let run = Run { order: self.order, instance: self.shared.known_as(&run.instance), ..run };
            if crashed {
                self.occupied.enter(run.candidate());
                let (key, shared) = (run.job.key, self.shared.clone());
                self.attempts.spawn(async move { (key, recover(shared, run).await) });
            } else {
                self.wait(run);
            }
        }
        Ok(())
    }

    /// A run from its message. One that cannot be read any more, which only another version's journal can hold, stays in the journal.
    async fn read_back(&self, open: OpenRun) -> Result<Option<Run>, Failure> {
        let message = self.shared.journal.message(open.key).await?.ok_or_else(|| {
            Failure::new(Code::Internal, format!("the journal has the open run `{}` without its message", open.key))
        })?;
        let properties = properties_of(&message);
        let job = match decode_job(&properties, &message.body, &self.shared.settings.host) {
            Ok(job) => job,
            Err(refusal) => {
                tracing::error!(run = %open.key, reason = refusal.text, "cannot read an open run of the journal; it is left there");
                return Ok(None);
            }
        };
        let not_before = match open.state {
            RunState::Waiting { not_before } => not_before,
            RunState::Running | RunState::Ended { .. } => None,
        };
        let past = Past { charged: open.failures, interruptions: open.crashes };
        let run = Run::new(job, &properties, open.urgent, 0);
        Ok(Some(Run { attempts: open.attempt, past, not_before, ..run }))
    }

    /// Works until a stop is asked for.
    pub async fn drive(&mut self, session: &mut dyn HostSession, shutdown: &Shutdown) {
        let mut prunes = interval(PRUNE_INTERVAL);
        prunes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_what_may();
            session.want_jobs(self.has_room());
            let wake = self.next_moment();
            tokio::select! {
                delivery = session.next(), if self.intakes.len() < INTAKES_MAX => {
                    self.order += 1;
                    self.intakes.spawn(intake::take(self.shared.clone(), delivery, self.order));
                }
                Some(taken) = self.intakes.join_next() => self.taken(taken),
                Some(ended) = self.attempts.join_next() => self.ended(ended),
                () = async { match wake { Some(wake) => sleep_until(wake).await, None => std::future::pending().await } } => {}
                _ = prunes.tick() => self.prune(),
                () = shutdown.reached(Stage::Drain) => return,
            }
        }
    }

    /// Stops: lets attempts end within the drain limit, then asks the rest to stop and lets them unwind. What waits stays in the
    /// journal.
    pub async fn drain(&mut self, shutdown: &Shutdown) {
        let limit = Instant::now() + self.shared.settings.drain_limit;
        while !self.attempts.is_empty() || !self.intakes.is_empty() {
            tokio::select! {
                Some(taken) = self.intakes.join_next() => self.taken(taken),
                Some(ended) = self.attempts.join_next() => self.ended(ended),
                () = sleep_until(limit) => break,
                () = shutdown.reached(Stage::Now) => break,
            }
        }
        for stopper in self.stoppers.values() {
            stopper.stop(Failure::new(Code::HostDraining, "the worker is being stopped"));
        }
        let limit = Instant::now() + UNWIND_MAX;
        while !self.attempts.is_empty() {
            tokio::select! {
                Some(ended) = self.attempts.join_next() => self.ended(ended),
                () = sleep_until(limit) => {
                    tracing::error!(attempts = self.attempts.len(), "attempts did not unwind in time; the next start ends them");
                    return;
                }
            }
        }
    }

    /// Runs that wait, and attempts that run.
    pub fn counts(&self) -> (usize, usize) {
        (self.waiting.len(), self.occupied.len())
    }

    fn has_room(&self) -> bool {
        self.runs.len() + self.intakes.len() + self.occupied.len() < self.shared.settings.open_runs_max
    }

    fn start_what_may(&mut self) {
        let now = Timestamp::now();
        while let Some(next) = self.waiting.take_next(&self.occupied, self.shared.settings.slots, now) {
            let Some(run) = self.runs.remove(&next.key) else { continue };
            let (stopper, stop) = Stopper::new();
            self.stoppers.insert(next.key, stopper.clone());
            let (key, shared) = (next.key, self.shared.clone());
            self.occupied.enter(next);
            self.attempts.spawn(async move { (key, attempt(shared, run, stopper, stop).await) });
        }
        self.shared.status.set_waiting(self.waiting.len());
    }

    fn wait(&mut self, run: Run) {
        self.waiting.add(run.candidate());
        self.runs.insert(run.job.key, run);
    }

    fn taken(&mut self, taken: Result<Option<Run>, JoinError>) {
        match taken {
            Ok(Some(run)) => self.wait(run),
            Ok(None) => {}
            // The delivery was not acknowledged: the broker hands it over again.
            Err(error) => tracing::error!(%error, "taking a delivery ended in a panic"),
        }
    }

    fn ended(&mut self, ended: Result<(RunKey, Option<Run>), JoinError>) {
        match ended {
            Ok((key, again)) => {
                self.occupied.leave(key);
                self.stoppers.remove(&key);
                if let Some(run) = again {
                    self.wait(run);
                }
            }
            // Its run is still running in the journal, and its instance stays taken: the next start unwinds it.
            Err(error) => tracing::error!(%error, "an attempt ended in a panic; it is unwound at the next start"),
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let now = Timestamp::now();
        let pause = self.waiting.next_moment(now)?.duration_since(now);
        Some(Instant::now() + Duration::try_from(pause).unwrap_or_default())
    }

    fn prune(&self) {
        let shared = self.shared.clone();
        // Bounded by the journal: a pruning takes away a limited number of runs at a time.
        tokio::spawn(async move {
            if let Err(failure) = shared.journal.prune(Timestamp::now(), shared.settings.keep).await {
                tracing::warn!(failure = format!("{failure:#}"), "cannot prune the journal");
            }
        });
    }
}
