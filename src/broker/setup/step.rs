//! One step of a setup: what it makes, where that is looked at in the management API, and the request that makes it so.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::password::hashed;
use super::policy::{PRIORITY, Policy};
use crate::broker::access::{Rights, TopicRight};
use crate::broker::management::{Method, Request};
use crate::broker::topology::{Exchange, ExchangeType, Queue};

/// What needs no escape in a segment of a path.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A step. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The virtual host is there.
    VirtualHost,
    /// An exchange is there.
    Exchange(Exchange),
    /// A policy is as it should be.
    Policy(Policy),
    /// A queue is there.
    Queue(Queue),
    /// A queue is bound.
    Binding(Queue),
    /// A user is there, for now without a way in. One with a tag is somebody else's.
    User(String),
    /// A user's keys on one topic exchange.
    Topic {
        /// The user.
        user: String,
        /// The keys.
        right: TopicRight,
    },
    /// A user's rights in the virtual host.
    Rights {
        /// The user.
        user: String,
        /// The rights.
        rights: Rights,
    },
    /// A bound on what a user opens.
    Limit {
        /// The user.
        user: String,
        /// RabbitMQ's name for the bound.
        name: &'static str,
        /// The bound.
        most: u32,
    },
    /// A user logs in with the password of its file.
    Password(String),
    /// A user has no password, and so no way in but its certificate.
    NoPassword(String),
}

/// A segment of a path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

impl Step {
    /// Its kind, for programs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Step::VirtualHost => "virtual_host",
            Step::Exchange(_) => "exchange",
            Step::Policy(_) => "policy",
            Step::Queue(_) => "queue",
            Step::Binding(_) => "binding",
            Step::User(_) => "user",
            Step::Topic { .. } => "topic",
            Step::Rights { .. } => "rights",
            Step::Limit { .. } => "limit",
            Step::Password(_) => "password",
            Step::NoPassword(_) => "no_password",
        }
    }

    /// Where what it makes is looked at.
    pub(super) fn place(&self, vhost: &str) -> String {
        let vhost = segment(vhost);
        match self {
            Step::VirtualHost => format!("vhosts/{vhost}"),
            Step::Exchange(exchange) => format!("exchanges/{vhost}/{}", segment(exchange.name)),
            Step::Policy(policy) => format!("policies/{vhost}/{}", segment(policy.name)),
            Step::Queue(queue) => format!("queues/{vhost}/{}", segment(&queue.name)),
            Step::Binding(queue) => {
                format!("bindings/{vhost}/e/{}/q/{}", segment(queue.exchange), segment(&queue.name))
            }
            Step::Topic { user, .. } => format!("topic-permissions/{vhost}/{}", segment(user)),
            Step::Rights { user, .. } => format!("permissions/{vhost}/{}", segment(user)),
            Step::User(user) | Step::Limit { user, .. } | Step::Password(user) | Step::NoPassword(user) => {
                format!("users/{}", segment(user))
            }
        }
    }

    /// The request that makes it so. A password goes as its hash, so that it travels nowhere.
    pub(super) fn request(&self, vhost: &str, password: Option<&SecretString>) -> Request {
        let place = self.place(vhost);
        let put = |place: String, body: Value| Request { method: Method::Put, place, body: Some(body) };
        match self {
            Step::VirtualHost => put(place, json!({})),
            Step::Exchange(exchange) => {
                put(place, json!({ "type": exchange_type(*exchange), "durable": true, "arguments": {} }))
            }
            Step::Policy(policy) => put(place, policy_body(policy)),
            Step::Queue(queue) => {
                put(place, json!({ "durable": true, "arguments": { "x-queue-type": queue.queue_type.as_str() } }))
            }
            Step::Binding(queue) => {
                let body = json!({ "routing_key": queue.binding_key, "arguments": {} });
                Request { method: Method::Post, place, body: Some(body) }
            }
            Step::Topic { right, .. } => {
                let (write, read) = (right.write.expression(), right.read.expression());
                put(place, json!({ "exchange": right.exchange, "write": write, "read": read }))
            }
            Step::Rights { rights, .. } => put(place, rights_body(rights)),
            Step::Limit { user, name, most } => {
                put(format!("user-limits/{}/{name}", segment(user)), json!({ "value": most }))
            }
            Step::User(_) | Step::NoPassword(_) => put(place, json!({ "password_hash": "", "tags": "" })),
            Step::Password(_) => {
                let hash = password.map(hashed).unwrap_or_default();
                put(
                    place,
                    json!({ "password_hash": hash, "hashing_algorithm": super::password::ALGORITHM, "tags": "" }),
                )
            }
        }
    }
}

/// An exchange's type, as the API has it.
pub(super) const fn exchange_type(exchange: Exchange) -> &'static str {
    match exchange.exchange_type {
        ExchangeType::Direct => "direct",
        ExchangeType::Topic => "topic",
    }
}

/// A policy, as the API has it.
pub(super) fn policy_body(policy: &Policy) -> Value {
    json!({ "pattern": policy.pattern, "apply-to": "queues", "definition": policy.definition, "priority": PRIORITY })
}

/// Rights, as the API has them.
pub(super) fn rights_body(rights: &Rights) -> Value {
    json!({
        "configure": rights.configure.expression(),
        "write": rights.write.expression(),
        "read": rights.read.expression(),
    })
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::VirtualHost => write!(f, "the virtual host"),
            Step::Exchange(exchange) => write!(f, "exchange {} ({})", exchange.name, exchange_type(*exchange)),
            Step::Policy(Policy { name, pattern, definition }) => {
                let keys =
                    definition.iter().map(|(key, value)| format!(" {key}={}", value.to_string().replace('"', "")));
                write!(f, "policy {name} for {pattern}:{}", keys.collect::<String>())
            }
            Step::Queue(queue) => write!(f, "queue {} ({})", queue.name, queue.queue_type.as_str()),
            Step::Binding(queue) => write!(f, "queue {} takes {} of {}", queue.name, queue.binding_key, queue.exchange),
            Step::User(user) => write!(f, "user {user}"),
            Step::Topic { user, right: TopicRight { exchange, write, read } } => {
                write!(f, "keys of {user} on {exchange}: writes {}, binds {}", write.expression(), read.expression())
            }
            Step::Rights { user, rights: Rights { configure, write, read, .. } } => {
                let [configure, write, read] = [configure, write, read].map(|names| names.expression());
                write!(f, "rights of {user}: configure {configure}, write {write}, read {read}")
            }
            Step::Limit { user, name, most } => write!(f, "bound of {user}: {name} {most}"),
            Step::Password(user) => write!(f, "password of {user}"),
            Step::NoPassword(user) => write!(f, "no password for {user}: it logs in with its certificate alone"),
        }
    }
}
