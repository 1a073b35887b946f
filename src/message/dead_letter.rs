//! A dead letter: a message that nobody will work on until somebody looks at it, with the reason and the original.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codec::{BODY_BYTES_MAX, Encoding};
use super::envelope::Properties;
use super::event::FailureReport;
use super::redact::redact;
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
    /// Its string headers.
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
            content_type: properties.content_type.clone(),
            message_type: properties.message_type.clone(),
            message_id: properties.message_id.clone(),
            correlation_id: properties.correlation_id.clone(),
            app_id: properties.app_id.clone(),
            user_id: properties.user_id.clone(),
            timestamp: properties.timestamp,
            headers: properties.headers.clone(),
            body,
            altered,
        }
    }
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
}

impl DeadLetter {
    /// Message type of a dead letter.
    pub const MESSAGE_TYPE: &'static str = "longshore.dead-letter.v1";

    /// Routing key: `<kind>.<code>.<host>`, the kind `unknown` where it could not be read.
    pub fn routing_key(&self) -> String {
        let kind = self.kind.map_or("unknown", JobKind::as_str);
        format!("{kind}.{}.{}", self.failure.code, self.host)
    }
}
