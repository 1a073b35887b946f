//! Properties of a message: what can be read without decoding its body.
//!
//! Events are CloudEvents 1.0 in binary mode: the attributes are string headers, the body is the data. The prefix
//! `cloudEvents_` is the one that the AMQP binding of CloudEvents prefers; RabbitMQ shows headers to AMQP 1.0 readers as
//! application properties, which is where that binding looks.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::model::id::HostId;

/// Properties of a message, as far as Longshore uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Media type of the body.
    pub content_type: String,
    /// What the message is, such as `longshore.job.v1`.
    pub message_type: String,
    /// Job id or event id.
    pub message_id: String,
    /// Job id.
    pub correlation_id: Option<String>,
    /// Program and version that published it.
    pub app_id: Option<String>,
    /// Broker user that published it, checked by the broker where it is given.
    pub user_id: Option<String>,
    /// When it was published, seconds since 1970.
    pub timestamp: Option<u64>,
    /// String headers; others are read as their text or left out.
    pub headers: BTreeMap<String, String>,
    /// Survives a restart of the broker.
    pub persistent: bool,
}

/// A message that is ready to be published: properties and body, without exchange and routing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Properties; the broker door adds the user id.
    pub properties: Properties,
    /// Body in the encoding that the content type names.
    pub body: Vec<u8>,
}

/// Header with the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Prefix of the headers that carry the attributes of a CloudEvent.
pub const CLOUD_EVENTS_PREFIX: &str = "cloudEvents_";

/// Who tells an event, as a CloudEvent's `source`: the host.
pub fn source_of(host: &HostId) -> String {
    format!("/longshore/hosts/{host}")
}

/// Who tells what became of a dead letter, as a CloudEvent's `source`: the broker user. A source is a URI reference, so a name that
/// no role of ours has (see `longshore broker setup`) is escaped like a segment of a path; the others stand as they are.
pub fn source_of_user(user: &str) -> String {
    format!("/longshore/users/{}", utf8_percent_encode(user, ESCAPED))
}

/// What has to be escaped in a segment of a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `app-id` of what this program publishes.
pub const APP_ID: &str = concat!("longshore/", env!("CARGO_PKG_VERSION"));

/// The attributes of a CloudEvent, apart from the version of the specification.
#[derive(Clone, Copy, Debug)]
pub struct CloudEvent<'a> {
    /// Event id, the same on every resend.
    pub id: &'a str,
    /// Who tells it, as a URI reference.
    pub source: &'a str,
    /// Message type.
    pub event_type: &'a str,
    /// What it is about.
    pub subject: &'a str,
    /// When it happened, RFC 3339.
    pub time: &'a str,
}

impl CloudEvent<'_> {
    /// The attributes as headers of an AMQP 0-9-1 message.
    pub fn headers(&self) -> BTreeMap<String, String> {
        [
            ("specversion", "1.0"),
            ("id", self.id),
            ("source", self.source),
            ("type", self.event_type),
            ("subject", self.subject),
            ("time", self.time),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{CLOUD_EVENTS_PREFIX}{name}"), value.to_owned()))
        .collect()
    }
}

impl Properties {
    /// One attribute of the CloudEvent that the headers make.
    pub fn cloud_event(&self, attribute: &str) -> Option<&str> {
        self.headers.get(&format!("{CLOUD_EVENTS_PREFIX}{attribute}")).map(String::as_str)
    }

    /// The trace context, if the header is one: `00-<32 hex>-<16 hex>-<2 hex>`.
    /// Anything else is treated as absent, as the W3C text asks.
    pub fn traceparent(&self) -> Option<&str> {
        let text = self.headers.get(TRACEPARENT)?;
        let lengths = text.split('-').map(str::len);
        let hex = text.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (hex && lengths.eq([2, 32, 16, 2])).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_traceparent(text: &str) -> Properties {
        Properties { headers: [(TRACEPARENT.to_owned(), text.to_owned())].into(), ..Properties::default() }
    }

    #[test]
    fn the_source_of_a_user_is_a_uri_reference_whatever_the_name() {
        assert_eq!(source_of_user("fleet.ops_2"), "/longshore/users/fleet.ops_2");
        assert_eq!(source_of_user("a/b ü"), "/longshore/users/a%2Fb%20%C3%BC");
    }

    #[test]
    fn only_a_well_formed_traceparent_is_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(with_traceparent(good).traceparent(), Some(good));
        for bad in ["", "00-4bf9-00f0-01", &good.to_uppercase(), &format!("{good}-00"), &good.replace('-', "_")] {
            assert_eq!(with_traceparent(bad).traceparent(), None, "{bad}");
        }
    }
}
