//! Taking secrets out of a body that is to be kept: in the journal, or in a dead letter.
//!
//! A job with a secret in its mount options is refused, but the refused body is exactly what an operator will look at.

use serde_json::Value;

use super::codec::{BODY_BYTES_MAX, Encoding, shape, walk, write};
use super::walk::Head;
use crate::model::repository::secret_start;

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Names of fields that hold nothing but a secret, wherever in a body they are.
const SECRET_FIELDS: [&str; 6] = ["password", "password2", "passwd", "pass", "passphrase", "secret"];

/// The body without its secrets; without any, the same bytes. A body that cannot be read, in which nobody can tell where
/// a secret would end, is cut off in front of the first word that announces one.
pub fn redact(body: &[u8], content_type: &str) -> Vec<u8> {
    let readable = Encoding::of(content_type).and_then(|encoding| {
        walk(body, encoding, BODY_BYTES_MAX, &mut Head::default()).ok()?;
        Some((encoding, shape::<Value>(body, encoding).ok()?))
    });
    let Some((encoding, mut value)) = readable else { return cut(body) };
    if !mask(&mut value, None) {
        return body.to_vec();
    }
    write(&value, encoding).unwrap_or_else(|_| cut(body))
}

/// Replaces secrets in `value`, which is the field `name` of a map; says whether there were any.
/// The depth of the recursion is bounded by the walk before it.
fn mask(value: &mut Value, name: Option<&str>) -> bool {
    if name.is_some_and(|name| SECRET_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field))) {
        *value = REDACTED.into();
        return true;
    }
    match value {
        Value::Object(fields) => {
            let inside_credentials = name == Some("credentials");
            fields.iter_mut().fold(false, |found, (name, value)| {
                // Whatever else a publisher puts there is most likely the secret itself.
                if inside_credentials && !matches!(name.as_str(), "reference" | "sealed") {
                    *value = REDACTED.into();
                    return true;
                }
                mask(value, Some(name)) | found
            })
        }
        Value::Array(items) => items.iter_mut().fold(false, |found, item| mask(item, name) | found),
        Value::String(text) => {
            let start = match name {
                Some("options") => secret_start(text),
                Some("address") => secret_start(text).or_else(|| user_info(text)),
                Some("credentials") => Some(0),
                _ => None,
            };
            let Some(start) = start else { return false };
            text.truncate(start);
            text.push_str(REDACTED);
            true
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Where the password begins in an address such as `//user:password@server/share`.
fn user_info(address: &str) -> Option<usize> {
    let before_host = address.split_at_checked(address.rfind('@')?)?.0;
    let authority = before_host.strip_prefix("//")?;
    Some("//".len() + authority.find([':', '%'])? + 1)
}

fn cut(body: &[u8]) -> Vec<u8> {
    let words = ["password", "passwd", "pass", "passphrase", "secret", "secretfile", "credentials", "cred", "key"];
    let first = words.iter().filter_map(|word| position_of_word(body, word.as_bytes())).min();
    match first {
        Some(position) => [body.get(..position).unwrap_or_default(), REDACTED.as_bytes()].concat(),
        None => body.to_vec(),
    }
}

fn position_of_word(body: &[u8], word: &[u8]) -> Option<usize> {
    let in_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphabetic);
    body.windows(word.len()).enumerate().find_map(|(position, found)| {
        let before = position.checked_sub(1).and_then(|index| body.get(index));
        let alone = !in_word(before) && !in_word(body.get(position + word.len()));
        (alone && found.eq_ignore_ascii_case(word)).then_some(position)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn both(value: &Value) -> [(String, Vec<u8>, &'static str); 2] {
        [Encoding::Json, Encoding::MessagePack].map(|encoding| {
            let body = write(value, encoding).unwrap();
            let kept = redact(&body, encoding.content_type());
            let text = String::from_utf8_lossy(&kept).into_owned();
            (text, body, encoding.content_type())
        })
    }

    #[test]
    fn a_body_without_secrets_is_kept_byte_for_byte() {
        let value = serde_json::json!({"repository": {"options": "vers=4.2,hard"}, "labels": {"key": "nightly"}});
        for (_, body, content_type) in both(&value) {
            assert_eq!(redact(&body, content_type), body);
        }
    }

    #[test]
    fn no_secret_of_a_readable_body_is_kept_wherever_it_stands() {
        for value in [
            serde_json::json!({"repository": {"options": "vers=3.0,password=hunter2,ro"}}),
            serde_json::json!({"repository": {"options": "Password = hunter2"}}),
            serde_json::json!({"repository": {"options": "password=with,a comma,hunter2"}}),
            serde_json::json!({"repository": {"options": "username=bob%hunter2"}}),
            serde_json::json!({"repository": {"options": ["secret=hunter2"]}}),
            serde_json::json!({"repository": {"address": "//bob:hunter2@nas/share"}}),
            serde_json::json!({"repository": {"credentials": {"user": "bob", "Password": {"is": "hunter2"}}}}),
            serde_json::json!({"repository": {"address": "//nas/share,password=hunter2"}}),
            serde_json::json!({"repository": {"credentials": {"user": "bob", "pw": "hunter2"}}}),
            serde_json::json!({"repository": {"credentials": "bob:hunter2"}}),
            serde_json::json!({"repository": {"credentials": ["bob", "hunter2"]}}),
            serde_json::json!({"deep": [{"passphrase": "hunter2"}]}),
        ] {
            for (kept, ..) in both(&value) {
                assert!(!kept.contains("hunter2"), "{kept}");
                assert!(kept.contains(REDACTED), "{kept}");
            }
        }
    }

    #[test]
    fn an_unreadable_body_is_cut_before_the_first_word_that_announces_a_secret() {
        let truncated = br#"{"job_id": "x", "repository": {"options": "vers=3.0,password=hunter2"#;
        for content_type in ["application/json", "application/vnd.msgpack", "text/plain"] {
            let kept = redact(truncated, content_type);
            assert_eq!(kept, br#"{"job_id": "x", "repository": {"options": "vers=3.0,[redacted]"#);
        }
        assert_eq!(redact(b"keyboard, passing", "text/plain"), b"keyboard, passing");
    }
}
