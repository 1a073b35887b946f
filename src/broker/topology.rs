//! Every exchange, queue and binding, and the routing keys of what is sent to a host, in one table.
//!
//! It promises that nobody else spells one of these names. The keys of events and dead letters follow from what is in them, so the
//! messages say those themselves ([`Event::routing_key`](crate::message::Event::routing_key),
//! [`DeadLetter::routing_key`](crate::message::DeadLetter::routing_key)). A queue's type is its only argument, because an argument can never
//! be changed afterwards (`PRECONDITION_FAILED`); limits, overflow and dead-lettering are policies. Publishers declare what
//! all hosts share and never a host's queues: a mistyped host must come back unroutable.

use serde::{Deserialize, Serialize};

use crate::message::key::{of_job, urgent, word};
use crate::model::id::HostId;

/// Jobs, by `<host>` or `<host>.urgent`.
pub const JOBS_EXCHANGE: &str = "longshore.jobs";
/// Control messages, by `<host>.<command>`.
pub const CONTROL_EXCHANGE: &str = "longshore.control";
/// Events, by `<kind>.<event>.<host>`; what became of a dead letter, by `letter.<event>.<user>`.
pub const EVENTS_EXCHANGE: &str = "longshore.events";
/// Dead letters, by `<kind>.<code>.<host>`.
pub const DEAD_EXCHANGE: &str = "longshore.dead";
/// Where dead letters wait. Always a durable classic queue: a quorum queue has a delivery limit on 4.x and would lose letters
/// that were looked at too often.
pub const DEAD_QUEUE: &str = "longshore.dead";
/// What those who deal with dead letters ask and answer one another: who reads them, by `asked.<user>` and `held.<user>`. Nothing is kept.
pub const LETTERS_EXCHANGE: &str = "longshore.letters";
/// First words of the keys of [`LETTERS_EXCHANGE`]: of a question, and of an answer.
pub const LETTERS_WORDS: [&str; 2] = ["asked", "held"];
/// The command that a host sends to itself to prove that its control queue is read.
pub const PING_COMMAND: &str = "ping";

/// How an exchange compares keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeType {
    /// The whole key.
    Direct,
    /// Word by word, with `*` and `#` in the binding.
    Topic,
}

/// An exchange. All are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it compares keys.
    pub exchange_type: ExchangeType,
}

/// All exchanges.
pub const EXCHANGES: [Exchange; 5] = [
    Exchange { name: JOBS_EXCHANGE, exchange_type: ExchangeType::Direct },
    Exchange { name: CONTROL_EXCHANGE, exchange_type: ExchangeType::Topic },
    Exchange { name: EVENTS_EXCHANGE, exchange_type: ExchangeType::Topic },
    Exchange { name: DEAD_EXCHANGE, exchange_type: ExchangeType::Topic },
    Exchange { name: LETTERS_EXCHANGE, exchange_type: ExchangeType::Topic },
];

/// How the broker keeps a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueType {
    /// On one node: small and fast.
    #[default]
    Classic,
    /// On several nodes of a cluster.
    Quorum,
}

impl Queue {
    /// Whether it is for a host's urgent jobs.
    pub fn is_of_urgent_jobs(&self) -> bool {
        self.exchange == JOBS_EXCHANGE && of_job(&self.binding_key).is_some_and(|(_, is_urgent)| is_urgent)
    }
}

impl QueueType {
    /// The value of the argument `x-queue-type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        }
    }
}

/// A durable queue and what is bound to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// How the broker keeps it.
    pub queue_type: QueueType,
    /// The exchange that feeds it.
    pub exchange: &'static str,
    /// The key by which it is bound.
    pub binding_key: String,
}

/// Queues that belong to no host.
pub fn shared_queues() -> Vec<Queue> {
    vec![Queue {
        name: DEAD_QUEUE.to_owned(),
        queue_type: QueueType::Classic,
        exchange: DEAD_EXCHANGE,
        binding_key: "#".to_owned(),
    }]
}

/// The queues of one host. Declared by enrolment, or by the host's worker where it may.
pub fn host_queues(host: &HostId, jobs_type: QueueType) -> Vec<Queue> {
    vec![
        Queue {
            name: control_queue(host),
            queue_type: QueueType::Classic,
            exchange: CONTROL_EXCHANGE,
            binding_key: format!("{host}.*"),
        },
        Queue {
            name: urgent_jobs_queue(host),
            queue_type: jobs_type,
            exchange: JOBS_EXCHANGE,
            binding_key: urgent_jobs_key(host),
        },
        Queue { name: jobs_queue(host), queue_type: jobs_type, exchange: JOBS_EXCHANGE, binding_key: jobs_key(host) },
    ]
}

/// `longshore.jobs.<host>`.
pub fn jobs_queue(host: &HostId) -> String {
    format!("{JOBS_EXCHANGE}.{host}")
}

/// `longshore.jobs.<host>.urgent`.
pub fn urgent_jobs_queue(host: &HostId) -> String {
    format!("{JOBS_EXCHANGE}.{}", urgent(host))
}

/// `longshore.control.<host>`.
pub fn control_queue(host: &HostId) -> String {
    format!("{CONTROL_EXCHANGE}.{host}")
}

/// Routing key of a job.
pub fn jobs_key(host: &HostId) -> String {
    host.to_string()
}

/// Routing key of a restore or of ad-hoc work.
pub fn urgent_jobs_key(host: &HostId) -> String {
    urgent(host)
}

/// Routing key of a control message. `command` may come from a person and is made safe.
pub fn control_key(host: &HostId, command: &str) -> String {
    format!("{host}.{}", word(command))
}

/// Routing key of a question who reads the dead letters.
pub fn letters_asked_key(user: &str) -> String {
    format!("{}.{user}", LETTERS_WORDS[0])
}

/// Routing key of the answer.
pub fn letters_held_key(user: &str) -> String {
    format!("{}.{user}", LETTERS_WORDS[1])
}

/// Whether a topic binding takes a key: `*` stands for one word, `#` for any number.
pub fn topic_matches(binding_key: &str, routing_key: &str) -> bool {
    // One row of the usual dynamic programme: `reached[i]` says that the binding so far can end before word `i`. Linear in
    // binding times key, where the recursive form is exponential in the number of `#`.
    let words: Vec<&str> = routing_key.split('.').collect();
    let mut reached = vec![false; words.len() + 1];
    reached[0] = true;
    for part in binding_key.split('.') {
        let mut next = vec![false; words.len() + 1];
        let mut any_before = false;
        for end in 0..=words.len() {
            any_before |= reached[end];
            next[end] = match part {
                "#" => any_before,
                _ => end > 0 && reached[end - 1] && (part == "*" || part == words[end - 1]),
            };
        }
        reached = next;
    }
    reached[words.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn host() -> HostId {
        "kvm-07".parse().unwrap()
    }

    #[test]
    fn a_host_has_the_queues_of_the_design() {
        let queues = host_queues(&host(), QueueType::Quorum);
        let shown: Vec<String> = queues
            .iter()
            .map(|q| format!("{} {} {} {}", q.name, q.queue_type.as_str(), q.exchange, q.binding_key))
            .collect();
        assert_eq!(
            shown,
            [
                "longshore.control.kvm-07 classic longshore.control kvm-07.*",
                "longshore.jobs.kvm-07.urgent quorum longshore.jobs kvm-07.urgent",
                "longshore.jobs.kvm-07 quorum longshore.jobs kvm-07",
            ]
        );
    }

    #[test]
    fn topic_bindings_match_as_the_broker_does() {
        for (binding, key, taken) in [
            ("kvm-07.*", "kvm-07.cancel", true),
            ("kvm-07.*", "kvm-07", false),
            ("kvm-07.*", "kvm-07.a.b", false),
            ("kvm-07.*", "kvm-08.cancel", false),
            ("#", "a.b.c", true),
            ("#", "", true),
            ("backup.#", "backup", true),
            ("backup.#", "backup.progress.kvm-07", true),
            ("*.*.kvm-07", "backup.progress.kvm-07", true),
            ("#.kvm-07", "kvm-07", true),
            ("#.kvm-07.#", "a.kvm-07.b.c", true),
            ("a.#.b", "a.x.y", false),
        ] {
            assert_eq!(topic_matches(binding, key), taken, "{binding} {key}");
        }
    }

    proptest! {
        #[test]
        fn a_key_matches_itself_and_the_open_binding(key in "[a-z]{0,3}(\\.[a-z]{0,3}){0,5}") {
            prop_assert!(topic_matches(&key, &key));
            prop_assert!(topic_matches("#", &key));
        }
    }
}
