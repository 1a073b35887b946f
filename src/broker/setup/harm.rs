//! What makes a broker lose messages of one of our queues: keys of policies that are not ours and count there.
//!
//! It promises to name queue, key and policy of each key by which messages age away, are dropped or go elsewhere, and of each that ours
//! would set and that does not count. Pure: what the management API answered goes in.

use std::fmt;

use serde_json::{Map, Value};

use super::policy::{PRIORITY, Policy};

/// Keys that lose messages, or send them elsewhere, where they are not ours.
const LOSING: [&str; 6] =
    ["message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit", "dead-letter-exchange"];
/// Keys of ours without which messages are lost: a broker then has a limit of its own, or drops the oldest.
const NEEDED: [&str; 4] = ["delivery-limit", "dead-letter-exchange", "dead-letter-strategy", "overflow"];

/// A key that counts for a queue and must not, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    queue: String,
    key: &'static str,
    value: Option<Value>,
    by: String,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, key, value, by } = self;
        match value {
            Some(value) => write!(f, "queue `{queue}` loses messages: {by} sets `{key}` to {value}"),
            None => write!(f, "queue `{queue}` loses messages: `{key}` is not set, and {by} counts"),
        }
    }
}

/// Whether a policy may do harm at all: another one than ours that sets such a key, or counts in place of ours.
pub fn is_suspect(policy: &Value, of_operators: bool, ours: &[Policy]) -> bool {
    let text = |key: &str| policy.get(key).and_then(Value::as_str).unwrap_or_default();
    let is_ours = !of_operators && ours.iter().any(|one| one.name == text("name"));
    let before_ours = policy.get("priority").and_then(Value::as_i64).is_some_and(|priority| priority >= PRIORITY);
    let sets = |key: &str| policy.get("definition").is_some_and(|keys| keys.get(key).is_some());
    !is_ours && text("apply-to") != "exchanges" && (before_ours || LOSING.iter().any(|key| sets(key)))
}

/// What harms a queue. `answer` is what the API says of it, `ours` what our policy for it sets, if it has one.
pub fn harms(queue: &str, answer: &Value, ours: Option<&Policy>, operators: &Value) -> Vec<Harm> {
    let none = Map::new();
    let ours = ours.map_or(&none, |policy| &policy.definition);
    let counts = answer.get("effective_policy_definition").and_then(Value::as_object).unwrap_or(&none);
    let foreign = LOSING.into_iter().filter(|key| counts.contains_key(*key) && counts.get(*key) != ours.get(*key));
    let missing = NEEDED.into_iter().filter(|key| ours.contains_key(*key) && counts.get(*key) != ours.get(*key));
    let missing = missing.filter(|key| !(LOSING.contains(key) && counts.contains_key(*key)));
    let harm = |key: &'static str| Harm {
        queue: queue.to_owned(),
        key,
        value: counts.get(key).cloned(),
        by: culprit(answer, operators, key),
    };
    foreign.chain(missing).map(harm).collect()
}

/// The policy that a key comes from.
fn culprit(answer: &Value, operators: &Value, key: &str) -> String {
    let name = |kind: &str| answer.get(kind).and_then(Value::as_str).filter(|name| !name.is_empty());
    let sets = |one: &&Value| {
        one.get("name").and_then(Value::as_str) == name("operator_policy")
            && one.get("definition").is_some_and(|keys| keys.get(key).is_some())
    };
    match (operators.as_array().into_iter().flatten().find(sets), name("operator_policy"), name("policy")) {
        (Some(_), Some(operators), _) => format!("the operator policy `{operators}`"),
        (_, _, Some(policy)) => format!("the policy `{policy}`"),
        _ => "no policy".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::policy::policies;
    use super::*;
    use crate::broker::topology::QueueType;

    fn shown(answer: &Value, ours: Option<&Policy>) -> Vec<String> {
        let operators = json!([{ "name": "small", "definition": { "max-length": 9 } }]);
        harms("q", answer, ours, &operators).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_could_do_harm_is_suspect() {
        let ours = policies(QueueType::Quorum, 1000, "4.0.5".parse().unwrap());
        let policy = |name: &str, apply: &str, priority: i64, key: &str| json!({ "name": name, "apply-to": apply, "priority": priority, "definition": { key: 1 } });
        assert!(is_suspect(&policy("all", "all", 0, "message-ttl"), false, &ours));
        assert!(is_suspect(&policy("first", "queues", PRIORITY, "ha-mode"), false, &ours));
        assert!(is_suspect(&policy("longshore-jobs", "queues", 0, "expires"), true, &ours), "an operator's");
        assert!(!is_suspect(&policy("all", "queues", 0, "ha-mode"), false, &ours));
        assert!(!is_suspect(&policy("all", "exchanges", 99, "message-ttl"), false, &ours));
        assert!(!is_suspect(&policy("longshore-jobs", "queues", PRIORITY, "max-length"), false, &ours));
    }

    #[test]
    fn our_own_keys_and_harmless_ones_do_no_harm() {
        let ours = policies(QueueType::Quorum, 1000, "4.0.5".parse().unwrap()).remove(0);
        let answer = json!({ "policy": ours.name, "effective_policy_definition": ours.definition });
        assert_eq!(shown(&answer, Some(&ours)), [""; 0]);
        for harmless in [json!({}), json!([]), json!({ "queue-mode": "lazy", "ha-mode": "all" })] {
            assert_eq!(shown(&json!({ "effective_policy_definition": harmless }), None), [""; 0]);
        }
    }

    #[test]
    fn each_key_by_which_messages_go_is_named_with_its_policy() {
        for key in LOSING {
            let answer = json!({ "policy": "all", "operator_policy": null, "effective_policy_definition": { key: 5 } });
            assert_eq!(shown(&answer, None), [format!("queue `q` loses messages: the policy `all` sets `{key}` to 5")]);
        }
        let keys = json!({ "max-length": 9, "expires": 8 });
        let answer = json!({ "policy": "all", "operator_policy": "small", "effective_policy_definition": keys });
        let harms = shown(&answer, None).join("\n");
        assert!(harms.contains("the operator policy `small` sets `max-length`"), "{harms}");
        assert!(harms.contains("the policy `all` sets `expires`"), "{harms}");
    }

    #[test]
    fn a_policy_in_place_of_ours_takes_away_what_keeps_jobs() {
        let ours = policies(QueueType::Quorum, 1000, "4.0.5".parse().unwrap()).remove(1);
        let answer = json!({ "policy": "all", "effective_policy_definition": { "dead-letter-exchange": "x" } });
        let harms = shown(&answer, Some(&ours)).join("\n");
        assert!(harms.contains(r#"the policy `all` sets `dead-letter-exchange` to "x""#), "{harms}");
        assert!(harms.contains("`delivery-limit` is not set, and the policy `all` counts"), "{harms}");
        assert_eq!(harms.matches("dead-letter-exchange").count(), 1, "{harms}");
    }
}
