//! Limits, overflow and dead-lettering of the job queues: policies, since an argument of a queue can never be changed.
//!
//! Of all that a broker can do to a queue, only these are wanted. No job may vanish by its age or by its queue's (`message-ttl`,
//! `expires`); only a quorum queue may give a job up, into the dead letters; and nothing limits the dead letters themselves. The
//! consumer timeout stays the broker's: what a worker at its bound has not yet taken from a connection is un-acked for as long as
//! its jobs run.

use serde_json::{Map, Value, json};

use super::version::ServerVersion;
use crate::broker::topology::{DEAD_EXCHANGE, JOBS_EXCHANGE, QueueType};

/// Among policies that match a queue the one with the highest counts, alone.
pub const PRIORITY: i64 = 50;
/// Name of the policy for normal jobs.
pub const JOBS_POLICY: &str = "longshore-jobs";
/// Name of the one for urgent jobs, which classic queues do without.
pub const URGENT_JOBS_POLICY: &str = "longshore-urgent-jobs";
/// Deliveries after which a quorum queue gives a job up. It is 4.x's own default: a lost connection counts as one for all jobs that
/// were on their way, so a low limit would give up jobs that nobody has tried.
const DELIVERY_LIMIT: u32 = 20;
/// Shortest and longest wait before a job is delivered again that a worker could not keep, milliseconds.
const REDELIVERY_WAIT_MS: (u32, u32) = (5_000, 300_000);

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: &'static str,
    /// The queues that it is for.
    pub pattern: String,
    /// Its keys.
    pub definition: Map<String, Value>,
}

/// The policies for job queues of a type, of which the normal one of each host holds at most `backlog_max` jobs that wait.
pub fn policies(jobs_type: QueueType, backlog_max: u32, version: ServerVersion) -> Vec<Policy> {
    let prefix = JOBS_EXCHANGE.replace('.', r"\.");
    let of_type = match jobs_type {
        QueueType::Classic => Map::new(),
        QueueType::Quorum => quorum(version),
    };
    let mut bounded = of_type.clone();
    bounded.insert("max-length".to_owned(), json!(backlog_max));
    bounded.insert("overflow".to_owned(), json!("reject-publish"));
    let normal = Policy { name: JOBS_POLICY, pattern: format!(r"^{prefix}\.[a-z0-9-]+$"), definition: bounded };
    let urgent =
        Policy { name: URGENT_JOBS_POLICY, pattern: format!(r"^{prefix}\.[a-z0-9-]+\.urgent$"), definition: of_type };
    // A policy without a key is refused.
    [normal, urgent].into_iter().filter(|policy| !policy.definition.is_empty()).collect()
}

fn quorum(version: ServerVersion) -> Map<String, Value> {
    let mut definition = Map::new();
    let mut set = |key: &str, value| definition.insert(key.to_owned(), value);
    set("delivery-limit", json!(DELIVERY_LIMIT));
    set("dead-letter-exchange", json!(DEAD_EXCHANGE));
    // At least once asks for this overflow, and is at most once without a word where it is missing.
    set("dead-letter-strategy", json!("at-least-once"));
    set("overflow", json!("reject-publish"));
    set("queue-leader-locator", json!("balanced"));
    if version >= ServerVersion::DELAYS_REDELIVERY {
        set("delayed-retry-type", json!("failed"));
        set("delayed-retry-min", json!(REDELIVERY_WAIT_MS.0));
        set("delayed-retry-max", json!(REDELIVERY_WAIT_MS.1));
    }
    definition
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(jobs_type: QueueType, version: &str) -> Vec<String> {
        let policies = policies(jobs_type, 1000, version.parse().unwrap());
        policies.into_iter().map(|p| format!("{} {} {}", p.name, p.pattern, Value::Object(p.definition))).collect()
    }

    #[test]
    fn classic_queues_have_a_bound_on_the_backlog_of_normal_jobs_and_nothing_else() {
        let bound = r#"longshore-jobs ^longshore\.jobs\.[a-z0-9-]+$ {"max-length":1000,"overflow":"reject-publish"}"#;
        for version in ["3.10.8", "4.3.6"] {
            assert_eq!(shown(QueueType::Classic, version), [bound]);
        }
    }

    #[test]
    fn quorum_queues_give_jobs_up_into_the_dead_letters_and_newer_brokers_wait_before_they_deliver_again() {
        let old = shown(QueueType::Quorum, "3.10.8");
        assert_eq!(old, shown(QueueType::Quorum, "4.2.9"));
        assert_eq!(old.len(), 2);
        for policy in &old {
            assert!(policy.contains(r#""delivery-limit":20"#), "{policy}");
            assert!(policy.contains(r#""dead-letter-exchange":"longshore.dead""#), "{policy}");
        }
        assert!(old[0].contains("max-length") && !old[1].contains("max-length"));
        for policy in shown(QueueType::Quorum, "4.3.0") {
            assert!(policy.contains(r#""delayed-retry-type":"failed""#), "{policy}");
        }
    }

    #[test]
    fn no_policy_lets_a_job_age() {
        for jobs_type in [QueueType::Classic, QueueType::Quorum] {
            for policy in shown(jobs_type, "4.3.6") {
                assert!(!policy.contains("ttl") && !policy.contains("expires") && !policy.contains("-1"), "{policy}");
            }
        }
    }
}
