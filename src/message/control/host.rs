//! What a controller wants of a whole host.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::said;
use crate::message::refusal::Refusal;

/// The host begins no job from now on. What is at work goes on; what waits in its journal waits, retries included, and what is in its
/// queues stays there. It holds also through a restart of the worker, until it is ended by a `resume` or its own time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pause {
    /// Who wants it, in the controller's words, 1 to 1024 bytes. Told in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub requested_by: Option<String>,
    /// Why, in the controller's words, 1 to 1024 bytes. Told in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// When it ends by itself, by the host's clock; never where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// The host goes on. One that is not paused does nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resume {
    /// Who wants it, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub requested_by: Option<String>,
    /// Why, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
}

impl Pause {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.control.pause.v1";
    /// Second word of the routing key.
    pub const COMMAND: &'static str = "pause";

    pub(super) fn check(&self) -> Result<(), Refusal> {
        said(self.requested_by.as_deref(), self.reason.as_deref())
    }
}

impl Resume {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.control.resume.v1";
    /// Second word of the routing key.
    pub const COMMAND: &'static str = "resume";

    pub(super) fn check(&self) -> Result<(), Refusal> {
        said(self.requested_by.as_deref(), self.reason.as_deref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::tests::code_of;
    use super::super::{Control, WORDS_BYTES_MAX};
    use super::*;
    use crate::failure::Code;

    #[test]
    fn a_pause_needs_no_words_and_takes_no_odd_ones() {
        for command in [Pause::COMMAND, Resume::COMMAND] {
            assert_eq!(code_of(command, &json!({})).unwrap().command(), command);
            for (body, code) in [
                (json!({ "reason": "" }), Code::InvalidField),
                (json!({ "reason": "a\tb" }), Code::InvalidField),
                (json!({ "requested_by": "x".repeat(WORDS_BYTES_MAX + 1) }), Code::InvalidField),
                (json!({ "reason": 7 }), Code::MalformedMessage),
                (json!({ "password": "secret" }), Code::SecretInOptions),
                (json!([]), Code::MalformedMessage),
            ] {
                assert_eq!(code_of(command, &body), Err(code), "{command} {body}");
            }
        }
        let until = "2026-03-01T02:00:00Z";
        let paused = code_of(Pause::COMMAND, &json!({ "until": until })).unwrap();
        assert_eq!(paused, Control::Pause(Pause { until: until.parse().ok(), ..Pause::default() }));
        assert_eq!(code_of(Pause::COMMAND, &json!({ "until": "soon" })), Err(Code::MalformedMessage));
    }
}
