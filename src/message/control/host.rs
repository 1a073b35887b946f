//! What a controller wants of a whole host.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{invalid, said};
use crate::message::refusal::Refusal;

/// Longest time that a drain lets jobs go on, seconds: a week.
const LIMIT_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

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

/// The host comes to rest, for an upgrade or for good. It begins no job from now on; what is at work may end in its time, and what has not
/// is taken back at its next step and kept in the journal, as what waits is. Then the worker ends, in good order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    /// Who wants it, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub requested_by: Option<String>,
    /// Why, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// How long what is at work may go on, seconds, at most a week; `worker.drain_seconds` of the host's configuration where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 604_800))]
    pub limit_seconds: Option<u64>,
    /// Nothing is kept: what waits ends at once, and what is at work when its time is over, as failed with the code `host_draining`, in the dead
    /// letters.
    #[serde(default)]
    pub evict: bool,
    /// The worker does not end: the host stays as if it was paused, until a `resume`.
    #[serde(default)]
    pub stay: bool,
    /// Not to be obeyed after this moment, by the host's clock: a worker that starts later is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obey_before: Option<Timestamp>,
}

/// The host tells anew how it stands: `worker.online`, a heartbeat, an inventory, and of each run that has not ended its last event but progress, with
/// the id that it had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Announce {}

impl Announce {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.control.announce.v1";
    /// Second word of the routing key.
    pub const COMMAND: &'static str = "announce";
}

impl Drain {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.control.drain.v1";
    /// Second word of the routing key.
    pub const COMMAND: &'static str = "drain";

    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.limit_seconds.is_some_and(|seconds| seconds > LIMIT_SECONDS_MAX) {
            return Err(invalid("limit_seconds", &format!("it is at most {LIMIT_SECONDS_MAX}")));
        }
        said(self.requested_by.as_deref(), self.reason.as_deref())
    }
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

    use super::super::Control;
    use super::super::tests::code_of;
    use super::*;
    use crate::failure::Code;
    use crate::message::words::WORDS_BYTES_MAX;

    #[test]
    fn no_words_are_needed_and_no_odd_ones_are_taken() {
        for command in [Pause::COMMAND, Resume::COMMAND, Drain::COMMAND] {
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
        let forever = json!({ "limit_seconds": LIMIT_SECONDS_MAX + 1 });
        assert_eq!(code_of(Drain::COMMAND, &forever), Err(Code::InvalidField));
    }
}
