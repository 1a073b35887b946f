//! Properties as lapin has them and as we have them.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::broker::Properties;

/// AMQP's delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// AMQP's delivery mode of a message that does not.
const TRANSIENT: u8 = 1;
/// Headers with further routing keys. The broker takes the second off; one that is there all the same was not looked at by it.
const CC_HEADERS: [&str; 2] = ["CC", "BCC"];

/// A text that AMQP's short strings, at most 255 bytes, cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("the {what} has {bytes} bytes, more than the 255 that AMQP allows")]
pub(super) struct TooLong {
    what: &'static str,
    bytes: usize,
}

/// A text as AMQP's short string.
pub(super) fn short(what: &'static str, text: &str) -> Result<ShortString, TooLong> {
    ShortString::try_new(text).map_err(|_| TooLong { what, bytes: text.len() })
}

/// Properties for lapin. Where they name no user it is `user`, the one who is connected: the broker checks that, so a reader can
/// rely on it.
pub(super) fn to_lapin(
    properties: &Properties,
    user: &str,
    expiration_ms: Option<u64>,
) -> Result<BasicProperties, TooLong> {
    let mut headers = FieldTable::default();
    for (name, value) in &properties.headers {
        headers.insert(short("header's name", name)?, AMQPValue::LongString(LongString::from(value.as_str())));
    }
    let mut basic = BasicProperties::default()
        .with_content_type(short("content type", &properties.content_type)?)
        .with_type(short("message type", &properties.message_type)?)
        .with_message_id(short("message id", &properties.message_id)?)
        .with_delivery_mode(if properties.persistent { PERSISTENT } else { TRANSIENT });
    if !properties.headers.is_empty() {
        basic = basic.with_headers(headers);
    }
    if let Some(id) = &properties.correlation_id {
        basic = basic.with_correlation_id(short("correlation id", id)?);
    }
    if let Some(id) = &properties.app_id {
        basic = basic.with_app_id(short("app id", id)?);
    }
    basic = basic.with_user_id(short("user id", properties.user_id.as_deref().unwrap_or(user))?);
    if let Some(seconds) = properties.timestamp {
        basic = basic.with_timestamp(seconds);
    }
    if let Some(milliseconds) = expiration_ms {
        basic = basic.with_expiration(ShortString::try_new(milliseconds.to_string()).unwrap_or_default());
    }
    Ok(basic)
}

/// Properties from lapin, and whether there was a CC header.
pub(super) fn from_lapin(basic: &BasicProperties) -> (Properties, bool) {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let mut properties = Properties {
        content_type: text(basic.content_type()).unwrap_or_default(),
        message_type: text(basic.kind()).unwrap_or_default(),
        message_id: text(basic.message_id()).unwrap_or_default(),
        correlation_id: text(basic.correlation_id()),
        app_id: text(basic.app_id()),
        user_id: text(basic.user_id()),
        timestamp: *basic.timestamp(),
        persistent: *basic.delivery_mode() == Some(PERSISTENT),
        ..Properties::default()
    };
    let mut has_cc = false;
    for (name, value) in basic.headers().iter().flat_map(FieldTable::inner) {
        has_cc |= CC_HEADERS.iter().any(|header| name.as_str().eq_ignore_ascii_case(header));
        if let Some(value) = header_text(value) {
            properties.headers.insert(name.to_string(), value);
        }
    }
    (properties, has_cc)
}

/// A header's value as text, if it has one.
fn header_text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        _ => return None,
    })
}

/// A body, cut so that nobody keeps more of it than is needed to refuse it, without the room that lapin left for it to grow.
pub(super) fn cut(mut body: Vec<u8>, bytes_max: usize) -> Vec<u8> {
    body.truncate(bytes_max);
    body.shrink_to_fit();
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn properties_come_back_as_they_were_sent(
            message_id in "\\PC{0,60}",
            correlation_id in proptest::option::of("\\PC{0,60}"),
            timestamp in proptest::option::of(any::<u64>()),
            headers in proptest::collection::btree_map("[a-zA-Z_]{1,20}", "\\PC{0,300}", 0..4),
            persistent: bool,
        ) {
            let has_cc = headers.keys().any(|name| name.eq_ignore_ascii_case("cc"));
            let sent = Properties { message_id, correlation_id, timestamp, headers, persistent, ..Properties::default() };
            let read = Properties { user_id: Some("worker".to_owned()), ..sent.clone() };
            prop_assert_eq!(from_lapin(&to_lapin(&sent, "worker", None).unwrap()), (read, has_cc));
        }
    }

    #[test]
    fn a_text_too_long_for_amqp_is_an_error_and_no_panic() {
        let properties = Properties { message_id: "x".repeat(256), ..Properties::default() };
        assert_eq!(
            to_lapin(&properties, "worker", None).unwrap_err().to_string(),
            "the message id has 256 bytes, more than the 255 that AMQP allows"
        );
    }

    #[test]
    fn a_cc_header_of_any_type_is_seen() {
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("kvm-08".into())].into()));
        let (properties, has_cc) = from_lapin(&BasicProperties::default().with_headers(headers));
        assert!(has_cc);
        assert!(properties.headers.is_empty());
    }
}
