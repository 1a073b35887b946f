//! Keeping a lease: a task that rewrites the counter, and knows in time when it no longer can.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{LeaseTimes, slot};
use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;
use crate::mover::blocking;
use crate::mover::share::Dir;

/// A lease that is held. Dropping it stops the counter, so that it ages as if its holder had died.
pub(in crate::mover) struct Lease {
    slots: Arc<Dir>,
    own: Arc<Dir>,
    instance: InstanceId,
    number: u64,
    keep_limit: Duration,
    state: watch::Receiver<State>,
    keeper: JoinHandle<()>,
}

#[derive(Clone)]
enum State {
    /// Written at that time last, and so not taken over by anybody before some time after.
    Kept(Instant),
    Lost(Failure),
}

impl Lease {
    pub(super) fn keep(slots: Arc<Dir>, own: Dir, instance: InstanceId, number: u64, times: LeaseTimes) -> Self {
        let own = Arc::new(own);
        let (sender, state) = watch::channel(State::Kept(Instant::now()));
        let keeper = tokio::spawn(keep(slots.clone(), own.clone(), number, times, sender));
        Self { slots, own, instance, number, keep_limit: times.keep_limit, state, keeper }
    }

    /// Whose lease it is.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The fencing number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Resolves when the lease is lost.
    pub fn lost(&self) -> impl Future<Output = Failure> + Send + 'static {
        let mut state = self.state.clone();
        async move {
            loop {
                if let State::Lost(failure) = &*state.borrow_and_update() {
                    return failure.clone();
                }
                if state.changed().await.is_err() {
                    // Given back: it can't be lost any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// The lease is still ours as far as this host can know, or `lease_lost`.
    pub fn check(&self) -> Result<(), Failure> {
        match &*self.state.borrow() {
            State::Lost(failure) => Err(failure.clone()),
            State::Kept(at) if at.elapsed() < self.keep_limit => Ok(()),
            State::Kept(_) => Err(not_kept(self.number, self.keep_limit)),
        }
    }

    /// As [`Lease::check`], and the share is asked too.
    pub async fn confirm(&self) -> Result<(), Failure> {
        self.check()?;
        let (slots, number) = (self.slots.clone(), self.number);
        let next = blocking(move || Ok(slots.stat((number + 1).to_string())?)).await?;
        if next.is_some() { Err(taken_over(self.number)) } else { self.check() }
    }

    /// Gives it back. A lost one is marked all the same: whoever took it over looks at a higher number. After an error it is
    /// still held, and kept.
    pub async fn release(&mut self) -> Result<(), Failure> {
        let own = self.own.clone();
        blocking(move || slot::release(&own)).await?;
        self.keeper.abort();
        Ok(())
    }

    /// Ends the counter, so that the task holds nothing on the share any more. The lease ages from now on.
    pub async fn stop(&mut self) {
        self.keeper.abort();
        // Aborted or ended: both are what was wanted.
        let _ended = (&mut self.keeper).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(slots: Arc<Dir>, own: Arc<Dir>, number: u64, times: LeaseTimes, state: watch::Sender<State>) {
    let mut kept = Instant::now();
    let mut counter = 0u64;
    let failure = loop {
        tokio::time::sleep(times.beat).await;
        counter += 1;
        let began = Instant::now();
        let (slots, own) = (slots.clone(), own.clone());
        let beat = blocking(move || slot::beat(&slots, &own, number, counter));
        match tokio::time::timeout_at(kept + times.keep_limit, beat).await {
            Ok(Ok(true)) => {
                kept = began;
                state.send_replace(State::Kept(began));
            }
            Ok(Ok(false)) => break taken_over(number),
            Ok(Err(failure)) if began >= kept + times.keep_limit => {
                break not_kept(number, times.keep_limit).because(&failure);
            }
            Ok(Err(failure)) => tracing::warn!(lease = number, %failure, "cannot write the lease's counter"),
            Err(_) => break not_kept(number, times.keep_limit),
        }
    };
    state.send_replace(State::Lost(failure));
}

fn taken_over(number: u64) -> Failure {
    Failure::new(Code::LeaseLost, format!("lease {number} was taken over by another worker"))
}

fn not_kept(number: u64, limit: Duration) -> Failure {
    Failure::new(
        Code::LeaseLost,
        format!("the counter of lease {number} could not be written for {} s", limit.as_secs()),
    )
}
