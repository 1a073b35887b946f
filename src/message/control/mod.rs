//! Control messages: what a controller tells a worker besides jobs. The routing key is `<host>.<command>`, into the host's control queue.
//!
//! It promises for their bodies what is promised for jobs: whatever comes in, the answer is a checked value or a [`Refusal`]. Whether
//! the sender may command the host is asked before, of the message alone ([`vouch::command`](super::vouch::command)).

mod cancel;
mod host;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::cancel::Cancel;
pub use self::host::{Announce, Drain, Pause, Resume};
use super::codec::{BODY_BYTES_MAX, Encoding, shape, walk, write};
use super::decode::{encoding_of, refuse_secret, wrong_type};
use super::encode::{seconds, within};
use super::envelope::{APP_ID, Encoded, Properties};
use super::refusal::Refusal;
use super::walk::Head;
use super::words;
use crate::failure::{Code, Failure};
use crate::model::id::EventId;

/// What a controller tells a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Control {
    /// One run is to end.
    Cancel(Cancel),
    /// The host begins nothing from now on.
    Pause(Pause),
    /// The host goes on.
    Resume(Resume),
    /// The host comes to rest.
    Drain(Drain),
    /// The host tells anew how it stands.
    Announce(Announce),
}

impl Control {
    /// Every message type.
    pub const MESSAGE_TYPES: [&'static str; 5] =
        [Cancel::MESSAGE_TYPE, Pause::MESSAGE_TYPE, Resume::MESSAGE_TYPE, Drain::MESSAGE_TYPE, Announce::MESSAGE_TYPE];

    /// Second word of the routing key.
    pub const fn command(&self) -> &'static str {
        match self {
            Control::Cancel(_) => Cancel::COMMAND,
            Control::Pause(_) => Pause::COMMAND,
            Control::Resume(_) => Resume::COMMAND,
            Control::Drain(_) => Drain::COMMAND,
            Control::Announce(_) => Announce::COMMAND,
        }
    }

    /// Message type.
    pub const fn message_type(&self) -> &'static str {
        match self {
            Control::Cancel(_) => Cancel::MESSAGE_TYPE,
            Control::Pause(_) => Pause::MESSAGE_TYPE,
            Control::Resume(_) => Resume::MESSAGE_TYPE,
            Control::Drain(_) => Drain::MESSAGE_TYPE,
            Control::Announce(_) => Announce::MESSAGE_TYPE,
        }
    }

    fn check(self) -> Result<Self, Refusal> {
        match &self {
            Control::Cancel(cancel) => cancel.check(),
            Control::Pause(pause) => pause.check(),
            Control::Resume(resume) => resume.check(),
            Control::Drain(drain) => drain.check(),
            Control::Announce(_) => Ok(()),
        }
        .map(|()| self)
    }
}

/// Reads what came under that command, the second word of its routing key; none where this version does not know the command.
///
/// # Errors
/// The first gate that the message does not pass.
pub fn decode_control(command: &str, properties: &Properties, body: &[u8]) -> Option<Result<Control, Refusal>> {
    let read = match command {
        Cancel::COMMAND => read(Cancel::MESSAGE_TYPE, properties, body).map(Control::Cancel),
        Pause::COMMAND => read(Pause::MESSAGE_TYPE, properties, body).map(Control::Pause),
        Resume::COMMAND => read(Resume::MESSAGE_TYPE, properties, body).map(Control::Resume),
        Drain::COMMAND => read(Drain::MESSAGE_TYPE, properties, body).map(Control::Drain),
        Announce::COMMAND => read(Announce::MESSAGE_TYPE, properties, body).map(Control::Announce),
        _ => return None,
    };
    Some(read.and_then(Control::check))
}

fn read<T: DeserializeOwned>(message_type: &str, properties: &Properties, body: &[u8]) -> Result<T, Refusal> {
    let encoding = encoding_of(properties)?;
    let mut head = Head::default();
    walk(body, encoding, BODY_BYTES_MAX, &mut head)?;
    if properties.message_type != message_type {
        return Err(wrong_type(&properties.message_type, message_type));
    }
    refuse_secret(&head)?;
    shape(body, encoding)
}

/// A control message, as its controller sends it.
///
/// # Errors
/// `message_too_large`.
pub fn encode_control(control: &Control, encoding: Encoding, published: Timestamp) -> Result<Encoded, Failure> {
    let correlation_id = match control {
        Control::Cancel(cancel) => Some(cancel.job_id.to_string()),
        Control::Pause(_) | Control::Resume(_) | Control::Drain(_) | Control::Announce(_) => None,
    };
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: control.message_type().to_owned(),
        message_id: EventId::draw().to_string(),
        correlation_id,
        app_id: Some(APP_ID.to_owned()),
        timestamp: seconds(published),
        persistent: true,
        ..Properties::default()
    };
    Ok(Encoded { properties, body: within(write(control, encoding)?, BODY_BYTES_MAX, "control message")? })
}

fn invalid(field: &str, rule: &str) -> Refusal {
    Refusal::new(Code::InvalidField, format!("`{field}` is not allowed: {rule}"))
}

/// Checks what a person says.
fn said(requested_by: Option<&str>, reason: Option<&str>) -> Result<(), Refusal> {
    for (field, said) in [("requested_by", requested_by), ("reason", reason)] {
        if !said.is_none_or(words::may_be_said) {
            return Err(invalid(field, &words::rule()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// Reads a body under its command, with the type that goes with it.
    pub(super) fn code_of(command: &str, body: &Value) -> Result<Control, Code> {
        let properties = Properties {
            content_type: "application/json".to_owned(),
            message_type: format!("longshore.control.{command}.v1"),
            ..Properties::default()
        };
        let read = decode_control(command, &properties, &serde_json::to_vec(body).unwrap()).unwrap();
        read.map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_command_takes_its_own_message_type_alone_and_an_unknown_one_none() {
        let properties = Properties {
            content_type: "application/json".to_owned(),
            message_type: Pause::MESSAGE_TYPE.to_owned(),
            ..Properties::default()
        };
        let read =
            |command| decode_control(command, &properties, b"{}").map(|read| read.map_err(|refusal| refusal.code));
        assert_eq!(read("pause"), Some(Ok(Control::Pause(Pause::default()))));
        assert_eq!(read("resume"), Some(Err(Code::UnsupportedVersion)));
        assert_eq!(read("reboot"), None);
    }

    #[test]
    fn what_is_written_is_read_back_under_its_command() {
        let pause =
            Pause { reason: Some("new disks".to_owned()), until: Some(Timestamp::UNIX_EPOCH), ..Pause::default() };
        let job = json!({ "job_id": "019a0f3e-7c00-7000-8000-000000000001", "run": 2 });
        let cancel = code_of(Cancel::COMMAND, &job).unwrap();
        let drain = Drain { evict: true, limit_seconds: Some(60), ..Drain::default() };
        let [resume, announce] = [Control::Resume(Resume::default()), Control::Announce(Announce {})];
        for control in [cancel, Control::Pause(pause), resume, Control::Drain(drain), announce] {
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                let Encoded { properties, body } = encode_control(&control, encoding, Timestamp::UNIX_EPOCH).unwrap();
                assert_eq!(decode_control(control.command(), &properties, &body), Some(Ok(control.clone())));
                assert!(Control::MESSAGE_TYPES.contains(&properties.message_type.as_str()) && properties.persistent);
            }
        }
    }
}
