//! Which calls of the fake fail or hang.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::super::StuckCall;
use crate::failure::Failure;
use crate::model::id::InstanceId;

/// Every call that can be named, which are the door's methods.
const CALLS: [&str; 18] = [
    "versions",
    "instances",
    "find",
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
    "abort_job",
    "block_jobs",
    "checkpoints",
    "delete_checkpoint",
    "watch",
];

/// What happens to one call.
pub(super) enum Ruling {
    Works,
    Fails(Failure),
    Hangs,
}

#[derive(Default)]
pub(super) struct Script {
    failures: BTreeMap<&'static str, Vec<Failure>>,
    hung: BTreeSet<&'static str>,
    stuck: Vec<StuckCall>,
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

    pub(super) fn let_go(&mut self, call: &'static str) {
        self.hung.remove(call);
        self.stuck.retain(|stuck| stuck.call != call);
    }

    pub(super) fn rule(&mut self, call: &'static str) -> Ruling {
        if self.hung.contains(call) {
            return Ruling::Hangs;
        }
        self.failures.get_mut(call).and_then(Vec::pop).map_or(Ruling::Works, Ruling::Fails)
    }

    /// A caller gave up at its deadline.
    pub(super) fn overdue(&mut self, call: &'static str, instance: Option<InstanceId>, since: Timestamp) {
        if self.hung.contains(call) {
            self.stuck.push(StuckCall { call, instance, since });
        }
    }

    pub(super) fn stuck(&self) -> Vec<StuckCall> {
        self.stuck.clone()
    }
}
