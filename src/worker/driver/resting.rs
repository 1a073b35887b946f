//! How the driver comes to rest, and goes on where it is told to before it has. What is decided there, [`rest`](super::super::rest) decides.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::super::conclude::{Told, conclude};
use super::super::drain::DrainWish;
use super::super::ended::Ended;
use super::super::rest::{Cause, Next, Stopping};
use super::super::settle::Ending;
use super::super::{pulse, standing};
use super::Driver;
use crate::broker::{HostSession, SessionState};
use crate::failure::{Code, Failure};
use crate::message::event::{Draining, HostDetail};
use crate::shutdown::{Shutdown, Stage};

/// Longest time that a worker which keeps nothing waits until its events and dead letters are sent: what the broker refuses is tried
/// again after a minute.
const TELL_MAX: Duration = Duration::from_secs(150);
/// Runs that are evicted at a time, beside the attempts: each holds its message, and waits for its commit.
const ENDED_AT_ONCE_MAX: usize = 64;
/// Pause between two looks at what is not sent yet.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Driver {
    /// Waits until all is told of what has ended, since the host may be gone for good then: not for longer than [`TELL_MAX`], and not for
    /// whoever is in a hurry.
    pub async fn has_told_all(&mut self, session: &watch::Receiver<SessionState>, shutdown: &Shutdown) {
        let until = Instant::now() + TELL_MAX;
        let mut said = false;
        while self.shared.journal.outbox_depth().await.map_or(true, |depth| depth > 0) {
            if !std::mem::replace(&mut said, true) {
                tracing::info!("waits until what has ended is told");
            }
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = self.standing.due() => self.tell_standing(&session.borrow()),
                () = sleep_until(until) => return,
                () = shutdown.reached(Stage::Now) => return,
            }
        }
    }

    /// Waits until it is told that the worker comes to rest, or cannot be: not for long, and not for whoever is in a hurry.
    pub async fn has_told(&mut self, shutdown: &Shutdown) {
        let Some(telling) = self.telling.take() else { return };
        tokio::select! {
            _told = telling => {}
            () = shutdown.reached(Stage::Now) => {}
        }
    }

    /// Begins to come to rest. No job is wanted from now on, and none begins.
    pub(super) fn stop(&mut self, session: &mut dyn HostSession, wish: DrainWish) {
        let limit = wish.limit.unwrap_or(self.shared.settings.drain_limit);
        let mut stopping = Stopping::new(self.stopping, wish.cause, Instant::now() + limit);
        // A signal takes nothing from what a pause is about: its end is waited for as well, where anything of it is left.
        let has_more = !self.runs.is_empty() || !self.attempts.is_empty() || !self.intakes.is_empty();
        stopping.evict |= wish.cause == Cause::Signal && has_more && self.a_pause_evicts();
        self.shared.drain_evicts.store(stopping.evict, Ordering::Relaxed);
        self.stopping = Some(stopping);
        // Before it is told: whoever hears of it may count on it.
        self.want(session);
        let (waiting, running) = (self.waiting.len() as u32, self.occupied.len() as u32);
        let (evict, stay, limit_seconds) = (stopping.evict, !stopping.leave, limit.as_secs());
        let DrainWish { user, requested_by, reason, .. } = wish;
        tracing::info!(waiting, running, limit_seconds, evict, stay, user, reason, "stopping");
        if stopping.leave {
            self.standing.ends(limit, if stopping.evict { TELL_MAX } else { Duration::ZERO });
        }
        self.tell_standing(&session.state().borrow());
        // Said only by a worker that has held its host id: another one may be the host's, and not drain at all.
        if self.ready || pulse::is_held(&session.state().borrow()) {
            let draining = Draining { running, waiting, limit_seconds, evict, stay, user, requested_by, reason };
            let (shared, publisher) = (self.shared.clone(), self.publisher.clone());
            // A broker that is away must not make the worker deaf to the next signal.
            self.telling = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                pulse::tell(&shared, publisher.as_ref(), HostDetail::Draining(draining)).await;
            })));
        }
    }

    /// Does what is due on the way to rest. Answers how the worker has come to its end, when it is to.
    pub(super) fn come_to_rest(&mut self) -> Option<Ended> {
        let left = self.left();
        let stopping = self.stopping.as_mut()?;
        if !stopping.leave && !self.shared.pauses.is_on() {
            tracing::info!("told to go on before it was at rest");
            self.go_on();
            return None;
        }
        match stopping.next(Instant::now(), left) {
            Next::Wait(_) => None,
            Next::Ask => {
                stopping.asked(Instant::now());
                for stopper in self.stoppers.values() {
                    stopper.stop(Failure::new(Code::HostDraining, "the worker is being stopped"));
                }
                None
            }
            end @ (Next::GiveUp | Next::AtRest) => {
                if end == Next::GiveUp {
                    let attempts = left.attempts;
                    tracing::error!(attempts, "attempts did not unwind in time; the next start ends them");
                }
                if stopping.leave {
                    return Some(Ended::with(left, stopping.drained, stopping.evict));
                }
                tracing::info!("at rest, and paused");
                self.go_on();
                None
            }
        }
    }

    /// As if it had not been told to come to rest. What has been asked to stop stops all the same, and begins again.
    fn go_on(&mut self) {
        self.stopping = None;
        self.shared.drain_evicts.store(false, Ordering::Relaxed);
    }

    pub(super) fn tell_standing(&mut self, session: &SessionState) {
        let (running, waiting) = (self.occupied.len(), self.waiting.len());
        let paused = self.shared.pauses.now();
        self.standing.lives(standing::line(session, paused.as_ref(), self.stopping.is_some(), running, waiting));
    }

    /// Nothing is to begin.
    pub(super) fn rests(&self) -> bool {
        self.stopping.is_some() || self.shared.pauses.is_on()
    }

    /// Nothing that was sent before may still say otherwise.
    fn a_pause_evicts(&self) -> bool {
        self.ready && self.lane.len() == 0 && self.shared.pauses.evicts()
    }

    /// Ends what waits, where a drain keeps nothing, or a pause that one has left. It takes no slot.
    pub(super) fn evict_what_waits(&mut self) {
        let (paused, by_pause) = (self.shared.pauses.is_on(), self.a_pause_evicts());
        let by_drain = self.stopping.is_some_and(|stopping| stopping.evict && (stopping.leave || paused));
        while (by_drain || by_pause)
            && self.attempts.len() < self.occupied.len() + ENDED_AT_ONCE_MAX
            && let Some((key, run)) = self.runs.pop_first()
        {
            self.waiting.take(&run.candidate());
            let (shared, number) = (self.shared.clone(), run.attempts);
            self.follow(key, async move { conclude(&shared, run, number, Told::of(Ending::Evicted)).await });
        }
    }
}
