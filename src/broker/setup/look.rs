//! Whether what is on the broker is what a step makes. Pure: what the management API answered goes in.

use secrecy::SecretString;
use serde_json::Value;

use super::password::is_hash_of;
use super::step::{Step, exchange_type, policy_body, rights_body};

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// As wanted.
    AsWanted,
    /// Not there.
    Missing,
    /// There, and otherwise.
    Otherwise,
}

/// What is there is somebody else's, or cannot be changed without a loss.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {is}: {remedy}")]
pub struct Conflict {
    what: String,
    is: String,
    remedy: &'static str,
}

impl Conflict {
    pub(super) fn new(what: impl Into<String>, is: impl Into<String>, remedy: &'static str) -> Self {
        Self { what: what.into(), is: is.into(), remedy }
    }
}

/// What is known of the password of a step's user.
#[derive(Clone, Copy, Debug, Default)]
pub enum Known<'a> {
    /// Its file holds this one.
    Password(&'a SecretString),
    /// It has no file.
    NoFile,
    /// It has no file, and may get a new password in place of one that the broker has.
    Replaceable,
    /// Nobody said where the files are.
    #[default]
    NotAsked,
}

/// Compares a step with the answer for its place, which is none where nothing is there.
pub fn compare(step: &Step, answer: Option<&Value>, known: Known<'_>) -> Result<Found, Conflict> {
    let Some(answer) = answer else { return Ok(Found::Missing) };
    let conflict = |what: String, is: String, remedy| Err(Conflict::new(what, is, remedy));
    let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
    let durable = answer.get("durable").and_then(Value::as_bool) == Some(true);
    Ok(match step {
        Step::VirtualHost => Found::AsWanted,
        Step::Exchange(exchange) => {
            let what = || format!("exchange `{}`", exchange.name);
            if text("type") != exchange_type(*exchange) || !durable {
                return conflict(what(), other_type(text("type"), durable), "delete it while nobody uses it");
            }
            Found::AsWanted
        }
        Step::Queue(queue) => {
            let what = || format!("queue `{}`", queue.name);
            if text("type") != queue.queue_type.as_str() || !durable {
                return conflict(what(), other_type(text("type"), durable), "empty and delete it, or keep its type");
            }
            let mut arguments = answer.get("arguments").and_then(Value::as_object).into_iter().flatten();
            if let Some((argument, _)) = arguments.find(|(name, _)| *name != "x-queue-type") {
                let is = format!("has the argument `{argument}`");
                return conflict(what(), is, "empty and delete it: an argument cannot be changed");
            }
            Found::AsWanted
        }
        Step::Policy(policy) => same(&policy_body(policy), answer),
        Step::Binding(queue) => {
            let is_it = |one: &Value| one.get("routing_key").and_then(Value::as_str) == Some(&queue.binding_key);
            if list(answer).any(is_it) { Found::AsWanted } else { Found::Missing }
        }
        Step::User(user) => {
            if let Some(tags) = tags(answer) {
                let is = format!("has the tags `{tags}`, so it is somebody else's");
                return conflict(format!("user `{user}`"), is, "take another name, or take them from it");
            }
            Found::AsWanted
        }
        Step::Topic { right, .. } => {
            let of_exchange = |one: &&Value| one.get("exchange").and_then(Value::as_str) == Some(right.exchange);
            let wanted = serde_json::json!({ "write": right.write.expression(), "read": right.read.expression() });
            list(answer).find(of_exchange).map_or(Found::Missing, |one| same(&wanted, one))
        }
        Step::Rights { rights, .. } => same(&rights_body(rights), answer),
        Step::Limit { name, most, .. } => match answer.get("limits").and_then(|limits| limits.get(name)) {
            None => Found::Missing,
            Some(found) if found.as_u64() == Some(u64::from(*most)) => Found::AsWanted,
            Some(_) => Found::Otherwise,
        },
        Step::Password(user) => match (text("password_hash"), known) {
            ("", _) => Found::Missing,
            (_, Known::NotAsked) => Found::AsWanted,
            (_, Known::Replaceable) => Found::Otherwise,
            (hash, Known::Password(password)) if is_hash_of(hash, text("hashing_algorithm"), password) => {
                Found::AsWanted
            }
            (_, Known::Password(_)) => Found::Otherwise,
            // Whoever uses the password that the broker has would be locked out.
            (_, Known::NoFile) => {
                let is = "has a password, and no file with it".to_owned();
                let remedy = "name the directory that has it, or have new ones made with `--new-passwords`";
                return conflict(format!("user `{user}`"), is, remedy);
            }
        },
        Step::NoPassword(_) if text("password_hash").is_empty() => Found::AsWanted,
        Step::NoPassword(_) => Found::Otherwise,
    })
}

fn other_type(found: &str, durable: bool) -> String {
    format!("is there as {found}{}", if durable { "" } else { ", not durable" })
}

/// Whether every part of `wanted` is in `found`, which may say more.
pub(super) fn same(wanted: &Value, found: &Value) -> Found {
    let wanted = wanted.as_object().into_iter().flatten();
    let all = wanted.into_iter().all(|(key, value)| found.get(key) == Some(value));
    if all { Found::AsWanted } else { Found::Otherwise }
}

fn list(answer: &Value) -> impl Iterator<Item = &Value> {
    answer.as_array().into_iter().flatten()
}

/// A user's tags, if it has any: a list, or before 3.9 and in some answers a text.
pub(super) fn tags(user: &Value) -> Option<String> {
    let tags = match user.get("tags")? {
        Value::Array(tags) => tags.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        tags => tags.as_str().unwrap_or_default().to_owned(),
    };
    (!tags.is_empty()).then_some(tags)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::password::{ALGORITHM, hashed};
    use super::super::policy::policies;
    use super::*;
    use crate::broker::access::{Rights, Role};
    use crate::broker::topology::{EXCHANGES, QueueType, host_queues};
    use crate::model::id::HostId;

    fn host() -> HostId {
        "kvm-07".parse().unwrap()
    }

    fn found(step: &Step, answer: Value) -> Found {
        compare(step, Some(&answer), Known::NotAsked).unwrap()
    }

    #[test]
    fn an_exchange_or_queue_of_another_make_is_a_conflict_and_not_changed() {
        let exchange = Step::Exchange(EXCHANGES[1]);
        assert_eq!(found(&exchange, json!({ "type": "topic", "durable": true, "internal": false })), Found::AsWanted);
        for other in [json!({ "type": "fanout", "durable": true }), json!({ "type": "topic", "durable": false })] {
            assert!(compare(&exchange, Some(&other), Known::NotAsked).is_err(), "{other}");
        }
        let queue = Step::Queue(host_queues(&host(), QueueType::Quorum).pop().unwrap());
        let as_made = json!({ "type": "quorum", "durable": true, "arguments": { "x-queue-type": "quorum" } });
        assert_eq!(found(&queue, as_made), Found::AsWanted);
        assert_eq!(compare(&queue, None, Known::NotAsked), Ok(Found::Missing));
        let classic = json!({ "type": "classic", "durable": true, "arguments": {} });
        let classic = compare(&queue, Some(&classic), Known::NotAsked);
        assert!(classic.unwrap_err().to_string().contains("`longshore.jobs.kvm-07` is there as classic"));
        let aging = json!({ "type": "quorum", "durable": true, "arguments": { "x-message-ttl": 1000 } });
        assert!(compare(&queue, Some(&aging), Known::NotAsked).unwrap_err().to_string().contains("x-message-ttl"));
    }

    #[test]
    fn a_policy_that_says_more_or_less_is_changed() {
        let policy = policies(QueueType::Classic, 1000, "3.10.8".parse().unwrap()).remove(0);
        let mut body = policy_body(&policy);
        assert_eq!(found(&Step::Policy(policy.clone()), body.clone()), Found::AsWanted);
        body["definition"]["expires"] = json!(1000);
        assert_eq!(found(&Step::Policy(policy.clone()), body.clone()), Found::Otherwise);
        body["definition"] = json!({});
        assert_eq!(found(&Step::Policy(policy), body), Found::Otherwise);
    }

    #[test]
    fn a_user_with_a_tag_is_somebody_elses() {
        let user = Step::User("kvm-07".to_owned());
        assert_eq!(found(&user, json!({ "tags": [] })), Found::AsWanted);
        assert_eq!(found(&user, json!({ "tags": "" })), Found::AsWanted);
        for tags in [json!(["administrator"]), json!("monitoring"), json!(["impersonator"])] {
            assert!(compare(&user, Some(&json!({ "tags": tags })), Known::NotAsked).is_err());
        }
    }

    #[test]
    fn wider_rights_are_seen() {
        let rights = Rights::of("kvm-07", &[Role::Host(host())]);
        let topic = Step::Topic { user: "kvm-07".to_owned(), right: rights.topics[0].clone() };
        let body = topic.request("v", None).body.unwrap();
        assert_eq!(found(&topic, json!([{ "exchange": "amq.topic", "write": ".*", "read": ".*" }])), Found::Missing);
        assert_eq!(found(&topic, json!([body])), Found::AsWanted);
        let open = json!([{ "exchange": "longshore.events", "write": ".*", "read": "^$" }]);
        assert_eq!(found(&topic, open), Found::Otherwise);
        let step = Step::Rights { user: "kvm-07".to_owned(), rights: rights.clone() };
        let mut body = rights_body(&rights);
        assert_eq!(found(&step, body.clone()), Found::AsWanted);
        body["configure"] = json!(".*");
        assert_eq!(found(&step, body), Found::Otherwise);
    }

    #[test]
    fn a_password_is_known_by_its_hash() {
        let step = Step::Password("kvm-07".to_owned());
        let password = SecretString::from("s3cr3t");
        let answer = json!({ "password_hash": hashed(&password), "hashing_algorithm": ALGORITHM });
        assert_eq!(compare(&step, Some(&answer), Known::Password(&password)), Ok(Found::AsWanted));
        assert_eq!(compare(&step, Some(&answer), Known::Password(&"other".into())), Ok(Found::Otherwise));
        assert_eq!(compare(&step, Some(&answer), Known::NotAsked), Ok(Found::AsWanted));
        for known in [Known::Password(&password), Known::NoFile, Known::Replaceable, Known::NotAsked] {
            assert_eq!(compare(&step, Some(&json!({ "password_hash": "" })), known), Ok(Found::Missing));
        }
        let none = Step::NoPassword("kvm-07".to_owned());
        assert_eq!(found(&none, answer), Found::Otherwise);
        assert_eq!(found(&none, json!({ "password_hash": "" })), Found::AsWanted);
    }

    #[test]
    fn a_password_that_no_file_has_is_replaced_only_where_that_was_said() {
        let step = Step::Password("kvm-07".to_owned());
        let answer = json!({ "password_hash": hashed(&"s3cr3t".into()), "hashing_algorithm": ALGORITHM });
        let refusal = compare(&step, Some(&answer), Known::NoFile).unwrap_err().to_string();
        assert!(refusal.contains("user `kvm-07` has a password") && refusal.contains("--new-passwords"), "{refusal}");
        assert_eq!(compare(&step, Some(&answer), Known::Replaceable), Ok(Found::Otherwise));
    }

    #[test]
    fn a_binding_and_a_bound_are_found() {
        let queue = host_queues(&host(), QueueType::Classic).pop().unwrap();
        let binding = Step::Binding(queue);
        assert_eq!(found(&binding, json!([{ "routing_key": "kvm-07.urgent" }])), Found::Missing);
        assert_eq!(found(&binding, json!([{ "routing_key": "x" }, { "routing_key": "kvm-07" }])), Found::AsWanted);
        let limit = Step::Limit { user: "kvm-07".to_owned(), name: "max-channels", most: 32 };
        assert_eq!(found(&limit, json!({ "limits": {} })), Found::Missing);
        assert_eq!(found(&limit, json!({ "limits": { "max-channels": 32 } })), Found::AsWanted);
        assert_eq!(found(&limit, json!({ "limits": { "max-channels": -1 } })), Found::Otherwise);
    }
}
