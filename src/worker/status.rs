//! What the worker has in hand at this moment, for its heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::left_over::KnownLeftOver;
use crate::host::remains::Seen;
use crate::message::event::{LeftOver, RunningJob};
use crate::model::job::RunKey;

/// Left-overs that are told; older ones are not told any more, and are again by the next worker. A host with more has a
/// problem that one look shows.
const LEFT_OVERS_MAX: usize = 64;

/// Shared by the attempts, which write, and the heartbeat, which reads.
#[derive(Debug, Default)]
pub struct Status {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<RunKey, RunningJob>,
    waiting: usize,
    left_overs: Vec<KnownLeftOver>,
    /// Names of left-overs that are being looked at.
    looking: BTreeSet<String>,
    /// Names of those that are nowhere to be seen, as the last look has found.
    nowhere: BTreeSet<String>,
}

/// A moment's view.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The attempts that run.
    pub running: Vec<RunningJob>,
    /// Runs that wait in the journal.
    pub waiting: usize,
    /// What could not be removed yet.
    pub left_overs: Vec<LeftOver>,
}

impl Status {
    /// An attempt began.
    pub fn enter(&self, key: RunKey, job: RunningJob) {
        self.inner().running.insert(key, job);
    }

    /// An attempt got on.
    pub fn progress(&self, key: RunKey, step: &str, done_bytes: u64, total_bytes: u64) {
        if let Some(job) = self.inner().running.get_mut(&key) {
            job.step = Some(step.to_owned());
            job.done_bytes = done_bytes;
            job.total_bytes = total_bytes;
        }
    }

    /// An attempt ended.
    pub fn leave(&self, key: RunKey) {
        self.inner().running.remove(&key);
    }

    /// How many runs wait.
    pub fn set_waiting(&self, count: usize) {
        self.inner().waiting = count;
    }

    /// Something could not be removed. Known already, by its name, it is replaced.
    pub fn left_over(&self, left_over: KnownLeftOver) {
        let mut inner = self.inner();
        inner.left_overs.retain(|known| known.name != left_over.name);
        inner.left_overs.push(left_over);
        let over = inner.left_overs.len().saturating_sub(LEFT_OVERS_MAX);
        inner.left_overs.drain(..over);
    }

    /// What could not be removed.
    pub fn left_overs(&self) -> Vec<KnownLeftOver> {
        self.inner().left_overs.clone()
    }

    /// That one is going to be looked at; false while it already is.
    pub fn begin_look(&self, name: &str) -> bool {
        self.inner().looking.insert(name.to_owned())
    }

    /// What came of that look.
    pub fn looked(&self, name: &str, seen: Seen) {
        let mut inner = self.inner();
        inner.looking.remove(name);
        match seen {
            Seen::Nowhere => drop(inner.nowhere.insert(name.to_owned())),
            Seen::There | Seen::Gone => drop(inner.nowhere.remove(name)),
        }
    }

    /// Nothing is seen of it, nor of what it would be in.
    pub fn is_nowhere(&self, name: &str) -> bool {
        self.inner().nowhere.contains(name)
    }

    /// These are gone.
    pub fn forget(&self, names: &[String]) {
        let mut inner = self.inner();
        inner.left_overs.retain(|known| !names.contains(&known.name));
        inner.nowhere.retain(|known| !names.contains(known));
    }

    /// What there is now.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.inner();
        Snapshot {
            running: inner.running.values().cloned().collect(),
            waiting: inner.waiting,
            left_overs: inner.left_overs.iter().map(|known| known.report.clone()).collect(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing here panics while it holds the lock, and a stale view is better than no heartbeat.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
