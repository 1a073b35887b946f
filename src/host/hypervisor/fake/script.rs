//! Which calls of the fake fail or hang.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::super::StuckCall;
use super::world::FakeDomain;
use crate::failure::Failure;
use crate::model::id::InstanceId;

/// Every call that can be named, which are the door's methods.
const CALLS: [&str; 33] = [
    "versions",
    "qemu_process",
    "memory_bytes",
    "instances",
    "find",
    "survey",
    "write_counters",
    "state",
    "agent_ping",
    "guest_info",
    "freeze",
    "thaw",
    "freeze_status",
    "begin_pull",
    "begin_push",
    "domain_job",
    "domain_job_stats",
    "ended_job",
    "forget_ended_job",
    "abort_job",
    "resume",
    "block_jobs",
    "checkpoints",
    "redefine_checkpoint",
    "delete_checkpoint",
    "forget_checkpoint",
    "identities",
    "define",
    "start",
    "attach",
    "is_attached",
    "secret",
    "watch",
];

/// What happens to one call.
pub(super) enum Ruling {
    Works,
    Fails(Failure),
    /// Until the answer comes, which it may do after the caller has gone.
    Hangs(oneshot::Receiver<()>),
}

/// What a hung call does to its domain when it comes back and nobody waits for it any more.
pub(super) type LateEffect = Box<dyn FnOnce(&mut FakeDomain) + Send>;

struct Hung {
    call: &'static str,
    instance: Option<InstanceId>,
    since: Timestamp,
    /// Closed when the caller has gone.
    answer: oneshot::Sender<()>,
    late: LateEffect,
}

#[derive(Default)]
pub(super) struct Script {
    failures: BTreeMap<&'static str, Vec<Failure>>,
    hung: BTreeSet<&'static str>,
    hung_once: BTreeSet<&'static str>,
    /// Said after the effect.
    late_failures: BTreeMap<&'static str, Failure>,
    waiting: Vec<Hung>,
}

impl Script {
    pub(super) fn fail(&mut self, call: &'static str, times: usize, failure: Failure) {
        assert!(CALLS.contains(&call), "the door has no call `{call}`");
        self.failures.entry(call).or_default().extend(std::iter::repeat_n(failure, times));
    }

    pub(super) fn hang(&mut self, call: &'static str) {
        assert!(CALLS.contains(&call), "the door has no call `{call}`");
        self.hung.insert(call);
    }

    pub(super) fn fail_after(&mut self, call: &'static str, failure: Failure) {
        assert!(["define", "attach"].contains(&call), "the call `{call}` says nothing after its effect");
        self.late_failures.insert(call, failure);
    }

    /// What the call says after its effect, once.
    pub(super) fn answer(&mut self, call: &'static str) -> Result<(), Failure> {
        self.late_failures.remove(call).map_or(Ok(()), Err)
    }

    pub(super) fn hang_once(&mut self, call: &'static str) {
        assert!(CALLS.contains(&call), "the door has no call `{call}`");
        self.hung_once.insert(call);
    }

    pub(super) fn heal(&mut self) {
        self.failures.clear();
        self.late_failures.clear();
        self.hung_once.clear();
    }

    /// Answers the effects of those calls whose callers have gone; the others go on by themselves.
    pub(super) fn let_go(&mut self, call: &'static str) -> Vec<(InstanceId, LateEffect)> {
        self.hung.remove(call);
        let mut late = Vec::new();
        for hung in self.waiting.extract_if(.., |hung| hung.call == call) {
            if hung.answer.send(()).is_err() {
                late.extend(hung.instance.map(|instance| (instance, hung.late)));
            }
        }
        late
    }

    pub(super) fn rule(&mut self, call: &'static str, instance: Option<InstanceId>, late: LateEffect) -> Ruling {
        if self.hung_once.remove(call) || self.hung.contains(call) {
            let (answer, answered) = oneshot::channel();
            self.waiting.push(Hung { call, instance, since: Timestamp::now(), answer, late });
            return Ruling::Hangs(answered);
        }
        self.failures.get_mut(call).and_then(Vec::pop).map_or(Ruling::Works, Ruling::Fails)
    }

    /// Hung calls whose callers gave up.
    pub(super) fn stuck(&self) -> Vec<StuckCall> {
        let stuck = self.waiting.iter().filter(|hung| hung.answer.is_closed());
        stuck.map(|Hung { call, instance, since, .. }| StuckCall { call, instance: *instance, since: *since }).collect()
    }
}
