//! A dead letter: a message that nobody will work on until somebody looks at it, with the reason and the original.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codec::{BODY_BYTES_MAX, Encoding};
use super::envelope::{CLOUD_EVENTS_PREFIX, Properties, TRACEPARENT};
use super::event::FailureReport;
use super::key::word;
use super::redact::redact;
use super::secret::masked;
use super::told::ToldEvent;
use crate::model::id::{HostId, JobId};
use crate::model::job::JobKind;

/// The original body: as text where it is text, so that a person can read it, else in base64. Exactly one is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{ "required": ["text"] }, { "required": ["base64"] }]))]
pub struct OriginalBody {
    /// A JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Any other body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl OriginalBody {
    /// The bytes, or none if the letter holds neither form or broken base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (&self.text, &self.base64) {
            (Some(text), None) => Some(text.clone().into_bytes()),
            (None, Some(base64)) => STANDARD.decode(base64).ok(),
            _ => None,
        }
    }
}

/// The original message, secrets taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Original {
    /// Its content type.
    pub content_type: String,
    /// Its type.
    pub message_type: String,
    /// Its message id.
    pub message_id: String,
    /// Its correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Program that published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// Broker user that published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// When it was published, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// Its headers, as far as they are known ones: `traceparent`, `cloudEvents_*` and what the broker says of an earlier
    /// death. Others may hold anything.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its body, or the first 256 KiB of it.
    pub body: OriginalBody,
    /// The body here is not what was published: a secret was taken out, or it was cut.
    pub altered: bool,
}

impl Original {
    /// The message as a letter may hold it: redacted, and cut at [`BODY_BYTES_MAX`].
    pub fn new(properties: &Properties, body: &[u8]) -> Self {
        let mut kept = redact(body, &properties.content_type);
        kept.truncate(BODY_BYTES_MAX);
        let altered = kept != body;
        let text = match Encoding::of(&properties.content_type) {
            Some(Encoding::Json) => String::from_utf8(kept).map_err(std::string::FromUtf8Error::into_bytes),
            _ => Err(kept),
        };
        let body = match text {
            Ok(text) => OriginalBody { text: Some(text), base64: None },
            Err(bytes) => OriginalBody { text: None, base64: Some(STANDARD.encode(bytes)) },
        };
        Self {
            content_type: masked(&properties.content_type),
            message_type: masked(&properties.message_type),
            message_id: masked(&properties.message_id),
            correlation_id: properties.correlation_id.as_deref().map(masked),
            app_id: properties.app_id.as_deref().map(masked),
            user_id: properties.user_id.clone(),
            timestamp: properties.timestamp,
            headers: known_headers(properties),
            body,
            altered,
        }
    }
}

/// Headers that RabbitMQ adds to a message that it dead-lettered once, as text.
const DEATH_HEADERS: [&str; 3] = ["x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"];

fn known_headers(properties: &Properties) -> BTreeMap<String, String> {
    let trace = properties.traceparent().map(|trace| (TRACEPARENT.to_owned(), trace.to_owned()));
    let attribute = |name: &str| {
        name.strip_prefix(CLOUD_EVENTS_PREFIX).is_some_and(|rest| {
            !rest.is_empty() && rest.len() <= 20 && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
    };
    let known = properties.headers.iter().filter(|(name, _)| attribute(name) || DEATH_HEADERS.contains(&name.as_str()));
    known.map(|(name, value)| (name.clone(), masked(value))).chain(trace).collect()
}

/// Where the original was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Origin {
    /// The queue.
    pub queue: String,
    /// The routing key it was published with.
    pub routing_key: String,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// The host that gave the message up.
    pub host: HostId,
    /// When it did.
    pub time: Timestamp,
    /// The job, as far as it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The run, as far as it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// The job's kind, if it is one that the host knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<JobKind>,
    /// Attempts that were made; 0 for a message that started no run.
    pub attempts: u32,
    /// Why.
    pub failure: FailureReport,
    /// Where the original was read from.
    pub origin: Origin,
    /// The original message.
    pub original: Original,
    /// What the last attempt told, in its order, and before it why earlier ones failed, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<ToldEvent>,
    /// Events of them that had no room.
    #[serde(default, skip_serializing_if = "is_none")]
    pub events_left_out: u32,
}

/// Whether there is nothing to count.
fn is_none(count: &u32) -> bool {
    *count == 0
}

impl DeadLetter {
    /// Message type of a dead letter.
    pub const MESSAGE_TYPE: &'static str = "longshore.dead-letter.v1";

    /// Routing key: `<kind>.<code>.<host>`, the kind `unknown` where it could not be read. The code is a text, in a letter that was
    /// read anybody's, and stays one word.
    pub fn routing_key(&self) -> String {
        let kind = self.kind.map_or("unknown", JobKind::as_str);
        format!("{kind}.{}.{}", word(&self.failure.code), self.host)
    }
}
