//! Every libvirt call runs on a thread of its own, so that one that never returns costs a thread and not the worker.
//!
//! libvirt has no cancellation: a call behind a hung monitor comes back when it comes back. Its caller is told at the
//! deadline; the thread and its place in the bound stay taken until then, [`Calls::stuck`] names it, and the log says when it
//! came back. A thread that finds its [`Caller`] gone before it has sent anything that changes a guest sends nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::super::StuckCall;
use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;

/// Stack of a call thread: libvirt's client keeps its big buffers on the heap.
const CALL_STACK_BYTES: usize = 512 * 1024;

/// What a call is about, for texts and for the list of stuck ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub call: &'static str,
    pub instance: Option<InstanceId>,
    pub deadline: Duration,
}

/// Whoever waits for a call, as seen from its thread.
pub(super) struct Caller<'a>(&'a dyn Fn() -> bool);

impl Caller<'_> {
    /// Fails once nobody waits any more. Asked right before each effect: one that comes after its caller has gone on, such as
    /// a freeze after the guest was reported as thawed, is worse than none.
    pub(super) fn still_waits(&self) -> Result<(), Failure> {
        if (self.0)() {
            return Ok(());
        }
        Err(Failure::new(Code::HypervisorTimedOut, "nobody waits for this call any more, so nothing was sent"))
    }
}

#[derive(Debug)]
struct Running {
    call: StuckCall,
    deadline: Instant,
    /// Nobody waits for it any more.
    overdue: bool,
}

/// A bounded set of call threads.
#[derive(Debug)]
pub(super) struct Calls {
    threads: Arc<Semaphore>,
    threads_max: usize,
    made: AtomicU64,
    running: Arc<Mutex<BTreeMap<u64, Running>>>,
}

impl Calls {
    pub(super) fn new(threads_max: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads_max)),
            threads_max,
            made: AtomicU64::new(0),
            running: Arc::default(),
        }
    }

    /// Runs `work` on a thread and waits for it, both within the deadline.
    pub(super) async fn run<T, F>(&self, subject: Subject, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Caller<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let until = Instant::now() + subject.deadline;
        let Ok(Ok(permit)) = tokio::time::timeout_at(until, Arc::clone(&self.threads).acquire_owned()).await else {
            let busy = format!("all {} call threads are taken by calls that have not returned", self.threads_max);
            return Err(timed_out(subject).caused_by(busy));
        };
        let number = self.begin(subject, until);
        let (answer, answered) = oneshot::channel();
        let running = Arc::clone(&self.running);
        let spawned = std::thread::Builder::new()
            .name(format!("libvirt {}", subject.call))
            .stack_size(CALL_STACK_BYTES)
            .spawn(move || {
                let _ended = Ended { running, number, _permit: permit };
                let waits = || !answer.is_closed();
                let outcome = Caller(&waits).still_waits().and_then(|()| work(&Caller(&waits)));
                // Nobody listens any more when the deadline has passed; what the call did stands all the same.
                let _ = answer.send(outcome);
            });
        if let Err(error) = spawned {
            self.end(number);
            let text = format!("cannot start a thread for the libvirt call `{}`", subject.call);
            return Err(Failure::new(Code::HypervisorUnavailable, text).because(&error));
        }
        let mut waiting = Waiting { running: &self.running, number, answered: false };
        match tokio::time::timeout_at(until, answered).await {
            Ok(answer) => {
                waiting.answered = true;
                let panicked =
                    |_| Failure::new(Code::Internal, format!("the libvirt call `{}` panicked", subject.call));
                answer.map_err(panicked)?
            }
            Err(_) => {
                let instance = subject.instance.map(tracing::field::display);
                tracing::warn!(call = subject.call, instance, "a libvirt call is stuck: its time has passed");
                Err(timed_out(subject))
            }
        }
    }

    /// Calls that nobody waits for and that have not returned.
    pub(super) fn stuck(&self) -> Vec<StuckCall> {
        lock(&self.running).values().filter(|running| running.overdue).map(|running| running.call.clone()).collect()
    }

    fn begin(&self, subject: Subject, deadline: Instant) -> u64 {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let call = StuckCall { call: subject.call, instance: subject.instance, since: Timestamp::now() };
        lock(&self.running).insert(number, Running { call, deadline, overdue: false });
        number
    }

    fn end(&self, number: u64) {
        lock(&self.running).remove(&number);
    }
}

/// Marks a call as stuck when its caller gives up, at the deadline or before.
struct Waiting<'a> {
    running: &'a Mutex<BTreeMap<u64, Running>>,
    number: u64,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered
            && let Some(late) = lock(self.running).get_mut(&self.number)
        {
            late.overdue = true;
        }
    }
}

/// Takes a call off the list when its thread ends, also by a panic.
struct Ended {
    running: Arc<Mutex<BTreeMap<u64, Running>>>,
    number: u64,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let ended = lock(&self.running).remove(&self.number);
        if let Some(Running { call, .. }) = ended.filter(|ended| ended.overdue && ended.deadline <= Instant::now()) {
            let instance = call.instance.map(tracing::field::display);
            tracing::warn!(call = call.call, instance, since = %call.since, "a libvirt call that was stuck has come back");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timed_out(subject: Subject) -> Failure {
    let on = subject.instance.map_or(String::new(), |instance| format!(" on instance `{instance}`"));
    let text = format!("the libvirt call `{}`{on} did not return within {:?}", subject.call, subject.deadline);
    Failure::new(Code::HypervisorTimedOut, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const ENOUGH: Duration = Duration::from_secs(10);

    fn subject(deadline: Duration) -> Subject {
        Subject { call: "abort_job", instance: None, deadline }
    }

    #[tokio::test]
    async fn a_call_past_its_deadline_is_reported_and_listed_until_it_returns() {
        let calls = Calls::new(1);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let failure = calls.run(subject(SOON), move |_| Ok(wait.recv().is_ok())).await.unwrap_err();
        assert_eq!(failure.code, Code::HypervisorTimedOut);
        assert_eq!(calls.stuck().iter().map(|stuck| stuck.call).collect::<Vec<_>>(), ["abort_job"]);

        let full = calls.run(subject(SOON), |_| Ok(())).await.unwrap_err();
        assert_eq!(full.code, Code::HypervisorTimedOut, "the bound holds while the thread is gone");

        release.send(()).unwrap();
        calls.run(subject(ENOUGH), |_| Ok(())).await.unwrap();
        assert!(calls.stuck().is_empty());
    }

    #[tokio::test]
    async fn a_call_whose_caller_has_gone_has_no_effect_any_more() {
        let calls = Calls::new(1);
        let (release, looked_up) = std::sync::mpsc::channel::<()>();
        let (effect, effects) = std::sync::mpsc::channel::<()>();
        let work = move |caller: &Caller<'_>| {
            looked_up.recv().unwrap();
            caller.still_waits()?;
            effect.send(()).unwrap();
            Ok(())
        };
        // Dropped before its deadline, as a task that is cancelled drops it.
        assert!(tokio::time::timeout(SOON, calls.run(subject(ENOUGH), work)).await.is_err());
        assert_eq!(calls.stuck().len(), 1, "a call that was dropped is listed as well");
        release.send(()).unwrap();
        assert!(effects.recv_timeout(ENOUGH).is_err(), "the thread ends without its effect");
        calls.run(subject(ENOUGH), |_| Ok(())).await.unwrap();
        assert!(calls.stuck().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_panics_is_a_bug_and_leaves_its_place() {
        let calls = Calls::new(1);
        let failure = calls.run::<(), _>(subject(ENOUGH), |_| panic!("in a test")).await.unwrap_err();
        assert_eq!(failure.code, Code::Internal);
        calls.run(subject(ENOUGH), |_| Ok(())).await.unwrap();
    }
}
