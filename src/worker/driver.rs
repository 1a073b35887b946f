//! The one task that decides what the worker does next: takes deliveries, starts attempts, and stops.
//!
//! ```text
//!  session ──delivery──► intake (many at a time) ──run──► waiting ──admit──► attempt (slots) ──ended──► forgotten
//!                                                            ▲                    │
//!                                                            └────── retrying ────┘
//! ```
//!
//! It holds no truth of its own: what waits and what runs is in the journal, and is read back from there at start.

mod resting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::admit::{Candidate, Names, Occupied, Waiting};
use super::attempt::{attempt, recover};
use super::backlog::{outbox_is_full, wanted_next};
use super::conclude::{Told, cancel, conclude};
use super::drain::DrainWish;
use super::ended::Ended;
use super::intake::Came;
use super::lane::{Lane, Turn};
use super::rest::{Left, Next, Stopping, UNWIND_MAX};
use super::run::Run;
use super::settle::Ending;
use super::shared::Shared;
use super::standing::Standing;
use super::take_up::{after_a_panic, read_back};
use super::{intake, left_over, pause, pulse};
use crate::broker::{Delivery, HostQueue, HostSession, Publisher, SessionState, WantedJobs};
use crate::failure::{Code, Failure};
use crate::journal::RunState;
use crate::model::job::RunKey;
use crate::saga::Stopper;
use crate::shutdown::{Shutdown, Stage};
use crate::supervisor::Supervisor;

/// Deliveries being written down at a time; they share the journal's commits.
const INTAKES_MAX: usize = 256;
/// Time between two looks at what has ended long enough ago to be taken out of the journal.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// How long attempts wait for libvirt to tell the names of the instances, by which two jobs of one instance are kept apart. Where it
/// does not, libvirt's own lock and the lease on the share do that.
const NAMES_MAX: Duration = Duration::from_secs(10);
/// The worker's state of mind.
pub struct Driver {
    shared: Arc<Shared>,
    publisher: Arc<dyn Publisher>,
    waiting: Waiting,
    occupied: Occupied,
    runs: BTreeMap<RunKey, Run>,
    intakes: JoinSet<Came>,
    /// Control messages, and those of them that are being obeyed.
    lane: Lane<Delivery>,
    obeying: JoinSet<Came>,
    attempts: JoinSet<Option<Run>>,
    /// Whose attempt each of those tasks is.
    keys: HashMap<Id, RunKey>,
    stoppers: BTreeMap<RunKey, Stopper>,
    /// Runs that were cancelled while they were at work, or perhaps just being taken.
    cancelled: BTreeSet<RunKey>,
    order: u64,
    wanted: WantedJobs,
    outbox_full: bool,
    /// Attempts may start.
    ready: bool,
    /// On its way to rest.
    stopping: Option<Stopping>,
    /// The process was told to end.
    signalled: bool,
    /// And once more.
    hurries: bool,
    /// Tells whoever started the process how it stands.
    standing: Standing,
    /// Tells that it comes to rest.
    telling: Option<AbortOnDropHandle<()>>,
}

impl Driver {
    /// With nothing in hand.
    pub fn new(shared: Arc<Shared>, publisher: Arc<dyn Publisher>, supervisor: Supervisor) -> Self {
        Self {
            shared,
            publisher,
            waiting: Waiting::default(),
            occupied: Occupied::default(),
            runs: BTreeMap::new(),
            intakes: JoinSet::new(),
            lane: Lane::new(),
            obeying: JoinSet::new(),
            attempts: JoinSet::new(),
            keys: HashMap::new(),
            stoppers: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            order: 0,
            wanted: WantedJobs::None,
            outbox_full: false,
            ready: false,
            stopping: None,
            signalled: false,
            hurries: false,
            standing: Standing::new(supervisor),
            telling: None,
        }
    }

    /// Takes up what an earlier worker left in the journal: waiting runs wait again, cut-off attempts are unwound.
    pub async fn take_up(&mut self) -> Result<(), Failure> {
        left_over::take_up(&self.shared).await?;
        pause::take_up(&self.shared).await?;
        for open in self.shared.journal.open_runs().await? {
            let (key, crashed) = (open.key, open.state == RunState::Running);
            let run = match read_back(&self.shared, open).await {
                Ok(Some(run)) => run,
                Ok(None) => continue,
                Err(failure) if failure.code == Code::JournalFailed => return Err(failure),
                Err(failure) => {
                    tracing::error!(run = %key, failure = format!("{failure:#}"), "an open run of the journal is left alone");
                    continue;
                }
            };
            self.order += 1;
            let run = Run { order: self.order, ..run };
            if run.held {
                let repository = run.job.repository.id;
                self.shared.circuits.send_modify(|circuits| circuits.suspect(repository));
            }
            match run.cancelled.clone() {
                _ if crashed => {
                    self.occupied.enter(run.candidate());
                    let shared = self.shared.clone();
                    self.follow(key, async move { recover(shared, run).await });
                }
                Some(reason) => cancel(&self.shared, run, reason).await,
                None => self.wait(run),
            }
        }
        Ok(())
    }

    /// Works until it has come to rest and is to end. Starts no attempt before the host id is known to be ours: until then another
    /// worker may be at work with it, and with a copy of this journal.
    pub async fn drive(&mut self, session: &mut dyn HostSession, shutdown: &Shutdown) -> Ended {
        let mut prunes = interval(PRUNE_INTERVAL);
        prunes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut names, mut unsent) = (self.shared.names(), self.shared.counters.kept.subscribe());
        let mut pauses = self.shared.pauses.subscribe();
        let mut circuits = self.shared.circuits.subscribe();
        self.standing.ready();
        let mut ready = pin!(ready(session.state(), self.shared.names()));
        loop {
            self.end_what_is_late();
            self.evict_what_waits();
            // What a controller wants comes first, and may be that nothing is to begin.
            if self.ready && !self.rests() && self.lane.len() == 0 {
                self.start_what_may();
            }
            self.shared.status.set_waiting(self.waiting.len());
            self.look_at_the_outbox(*unsent.borrow_and_update());
            self.want(session);
            if let Some(ended) = self.come_to_rest() {
                return ended;
            }
            let wake = self.next_moment();
            tokio::select! {
                delivery = session.next(), if self.takes_more() => self.take(delivery),
                Some(taken) = self.intakes.join_next() => {
                    self.taken(taken);
                }
                Some(obeyed) = self.obeying.join_next() => {
                    self.lane.obeyed();
                    if let Some(wish) = self.taken(obeyed) {
                        self.stop(session, *wish);
                    }
                    self.obey_next();
                }
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                () = async { match wake { Some(wake) => sleep_until(wake).await, None => std::future::pending().await } } => {}
                () = &mut ready, if !self.ready => {
                    // Before anything starts, whatever else is news.
                    self.learn(&mut names);
                    // What a controller has wanted while no worker was there has come by now: the session's own ping came after it.
                    while self.takes_more() && let Some(delivery) = session.next().now_or_never() {
                        self.take(delivery);
                    }
                    self.ready = true;
                }
                Ok(()) = names.changed() => self.learn(&mut names),
                Ok(()) = unsent.changed() => {}
                Ok(()) = pauses.changed() => {}
                Ok(()) = circuits.changed() => self.release_held(),
                _ = prunes.tick() => self.prune(),
                // Of this loop and no task beside it: where it is stuck, there is no sign of life.
                () = self.standing.due() => self.tell_standing(&session.state().borrow()),
                () = shutdown.reached(Stage::Drain), if !self.signalled => {
                    self.signalled = true;
                    self.stop(session, DrainWish::of_signal());
                }
                // What runs may no longer go on.
                () = shutdown.reached(Stage::Now), if self.signalled && !self.hurries => {
                    self.hurries = true;
                    self.stopping.iter_mut().for_each(|stopping| stopping.at_once(Instant::now()));
                }
            }
        }
    }

    /// Lets unwind what an earlier worker left, where nothing else may be done. What does not in time, the next start ends.
    pub async fn let_unwind(&mut self) {
        let limit = Instant::now() + UNWIND_MAX;
        while !self.attempts.is_empty() {
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                () = self.standing.due() => self.tell_standing(&SessionState::HostIdInUse),
                () = sleep_until(limit) => return,
            }
        }
    }

    fn takes_more(&self) -> bool {
        self.intakes.len() + self.lane.len() < INTAKES_MAX
    }

    fn take(&mut self, delivery: Delivery) {
        self.order += 1;
        let turn = if delivery.queue == HostQueue::Control { Turn::of(&delivery.routing_key) } else { None };
        match turn {
            Some(turn) => self.lane.push(turn, delivery),
            None => _ = self.intakes.spawn(intake::take(self.shared.clone(), delivery, self.order)),
        }
        self.obey_next();
    }

    fn obey_next(&mut self) {
        while let Some(delivery) = self.lane.take_next() {
            self.obeying.spawn(intake::take(self.shared.clone(), delivery, self.order));
        }
    }

    /// What is in the way of rest.
    fn left(&self) -> Left {
        let intakes = self.intakes.len() + self.lane.len();
        Left { attempts: self.attempts.len(), intakes, waiting: self.waiting.len() }
    }

    fn learn(&mut self, names: &mut watch::Receiver<Option<Arc<Names>>>) {
        if let Some(names) = names.borrow_and_update().clone() {
            self.occupied.learn(names);
        }
    }

    fn open_runs(&self) -> usize {
        self.runs.len() + self.intakes.len() + self.occupied.len()
    }

    fn look_at_the_outbox(&mut self, unsent: usize) {
        let full = outbox_is_full(self.outbox_full, unsent);
        if full != self.outbox_full {
            self.outbox_full = full;
            tracing::warn!(unsent, taking_jobs = !full, "so many messages could not be sent, and wait in the outbox");
        }
    }

    fn want(&mut self, session: &mut dyn HostSession) {
        let by_runs = wanted_next(self.wanted, self.open_runs(), self.shared.settings.open_runs_max);
        // What a host that rests would take it could only let wait, out of sight of whoever looks at its queues.
        self.wanted = if self.outbox_full || self.rests() { WantedJobs::None } else { by_runs };
        session.want_jobs(self.wanted);
    }

    /// Ends the runs that may not be started any more. It takes no slot, so that they are told of in time.
    fn end_what_is_late(&mut self) {
        while let Some(late) = self.waiting.take_late(Timestamp::now()) {
            let Some(run) = self.runs.remove(&late.key) else { continue };
            let moment = late.start_before.map(|moment| moment.to_string()).unwrap_or_default();
            let mut failure =
                Failure::new(Code::StartBeforePassed, format!("the job was to be started before {moment}"));
            if let Some(trouble) = self.shared.circuits.borrow().why_open(late.repository) {
                failure = failure.caused_by("its repository fails").because_of(trouble);
            }
            let (key, shared) = (late.key, self.shared.clone());
            self.follow(key, async move { conclude(&shared, run, 0, Told::of(Ending::Failed(failure))).await });
        }
    }

    fn start_what_may(&mut self) {
        let now = Timestamp::now();
        while let Some(next) = self.next_to_start(now) {
            let Some(run) = self.runs.remove(&next.key) else { continue };
            self.shared.circuits.send_if_modified(|circuits| circuits.started(&next));
            let (stopper, stop) = Stopper::new();
            self.stoppers.insert(next.key, stopper.clone());
            let (key, shared) = (next.key, self.shared.clone());
            self.occupied.enter(next);
            self.follow(key, async move { attempt(shared, run, stopper, stop).await });
        }
    }

    /// Runs that were held back for the sake of a repository wait no longer than nothing is known of it but that it fails.
    fn release_held(&mut self) {
        let circuits = self.shared.circuits.borrow();
        for run in self.runs.values_mut().filter(|run| run.held) {
            if !circuits.keeps_waiting(run.job.repository.id) && self.waiting.take(&run.candidate()).is_some() {
                (run.held, run.not_before) = (false, None);
                self.waiting.add(run.candidate());
            }
        }
    }

    fn next_to_start(&mut self, now: Timestamp) -> Option<Candidate> {
        let circuits = self.shared.circuits.borrow();
        self.waiting.take_next(&self.occupied, &circuits, self.shared.settings.slots, now)
    }

    /// Starts what ends an attempt of the run.
    fn follow(&mut self, key: RunKey, attempt: impl Future<Output = Option<Run>> + Send + 'static) {
        let task = self.attempts.spawn(attempt);
        self.keys.insert(task.id(), key);
    }

    fn wait(&mut self, run: Run) {
        let key = run.job.key;
        if self.cancelled.remove(&key) {
            return self.end_cancelled(run);
        }
        self.waiting.add(run.candidate());
        self.runs.insert(key, run);
    }

    /// A run is cancelled: what waits ends, what is at work is stopped, and what is just being taken ends when it has been.
    fn cancel(&mut self, key: RunKey) {
        if let Some(run) = self.runs.remove(&key) {
            self.waiting.take(&run.candidate());
            return self.end_cancelled(run);
        }
        if let Some(stopper) = self.stoppers.get(&key) {
            stopper.stop(Failure::new(Code::Cancelled, "the run was cancelled"));
        }
        self.cancelled.insert(key);
    }

    /// Takes no slot, as there is nothing to do.
    fn end_cancelled(&mut self, run: Run) {
        let (key, shared, number) = (run.job.key, self.shared.clone(), run.attempts);
        self.follow(key, async move { conclude(&shared, run, number, Told::of(Ending::Cancelled)).await });
    }

    /// Whoever is neither at work nor being taken will not come, or finds its cancellation in the journal when it does.
    fn forget_cancelled(&mut self) {
        if self.intakes.is_empty() && !self.cancelled.is_empty() {
            let at_work: BTreeSet<_> = self.keys.values().copied().collect();
            self.cancelled.retain(|key| at_work.contains(key));
        }
    }

    /// Answers that the host is to come to rest, where that is what came.
    fn taken(&mut self, taken: Result<Came, JoinError>) -> Option<Box<DrainWish>> {
        let mut drained = None;
        match taken {
            Ok(Came::Run(run)) => self.wait(*run),
            Ok(Came::Cancelled(key)) => self.cancel(key),
            Ok(Came::Drained(wish)) => drained = Some(wish),
            Ok(Came::Nothing) => {}
            // Not acknowledged, so the broker hands it over again once the channel is gone; taken, the next start goes on with it.
            Err(error) => tracing::error!(%error, "taking a delivery ended in a panic"),
        }
        self.forget_cancelled();
        drained
    }

    fn ended(&mut self, ended: Result<(Id, Option<Run>), JoinError>) {
        let (task, again) = match ended {
            Ok((task, again)) => (task, Ok(again)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(key) = self.keys.remove(&task) else { return };
        self.stoppers.remove(&key);
        // One that ended in a panic, or was never begun, has not said so.
        self.shared.circuits.send_if_modified(|circuits| circuits.let_go(key, None));
        if matches!(again, Ok(None)) {
            self.cancelled.remove(&key);
        }
        match again {
            Ok(again) => {
                self.occupied.leave(key);
                if let Some(mut run) = again {
                    let held = run.held;
                    if held {
                        // What is wrong may be wrong with its job alone: whoever else waits goes first.
                        self.order += 1;
                        run.order = self.order;
                    }
                    self.wait(run);
                    if held {
                        // Another may have completed since.
                        self.release_held();
                    }
                }
            }
            // Its run is still running in the journal, and its instance stays taken until what it held is given back.
            Err(error) => {
                tracing::error!(run = %key, %error, "an attempt ended in a panic");
                let shared = self.shared.clone();
                self.order += 1;
                let order = self.order;
                self.follow(key, async move { Some(Run { order, ..after_a_panic(shared, key).await? }) });
            }
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let (now, here) = (Timestamp::now(), Instant::now());
        let of_circuits = self.shared.circuits.borrow().next_moment(now);
        let moment = self.waiting.next_moment(now).into_iter().chain(of_circuits).min();
        let pause = moment.map(|moment| moment.duration_since(now));
        let waiting = pause.map(|pause| here + Duration::try_from(pause).unwrap_or_default());
        let left = self.left();
        let stopping = self.stopping.map(|stopping| match stopping.next(here, left) {
            Next::Wait(until) => until,
            // It has just been asked what to do, and there is more by now.
            Next::Ask | Next::GiveUp | Next::AtRest => here,
        });
        waiting.into_iter().chain(stopping).min()
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

/// Resolves when attempts may start: the host id is ours, and the names of its instances are known as far as they can be.
async fn ready(session: watch::Receiver<SessionState>, mut names: watch::Receiver<Option<Arc<Names>>>) {
    let told = async { timeout(NAMES_MAX, names.wait_for(Option::is_some)).await.is_ok() };
    let ((), told) = tokio::join!(pulse::held(session), told);
    if !told {
        tracing::warn!("libvirt does not tell which instance has which name; jobs are started all the same");
    }
}
