//! Taking secrets out of a body that is to be kept in a dead letter.
//!
//! A job with a secret in it is refused, but the refused body is exactly what an operator will look at. What a secret is
//! is said in [`secret`](super::secret).

use serde_json::{Map, Value};

use super::codec::{BODY_BYTES_MAX, Encoding, shape, walk, write};
use super::secret::{REDACTED, Rule, secret_in};
use super::walk::Head;
use crate::model::repository::is_secret_option;

/// The body without its secrets; without any, the same bytes. A body that cannot be read, in which nobody can tell where
/// a secret would end, is cut off in front of the first word that announces one.
pub fn redact(body: &[u8], content_type: &str) -> Vec<u8> {
    let Some(encoding) = Encoding::of(content_type) else { return cut(body) };
    match secret_found(body, encoding) {
        Some(false) => body.to_vec(),
        // Of a key that is there twice, the value keeps one: the other is left out, whatever it was.
        Some(true) => shape::<Value>(body, encoding)
            .ok()
            .and_then(|value| write(&mask(value, Rule::Outermost), encoding).ok())
            .filter(|masked| secret_found(masked, encoding) == Some(false))
            .unwrap_or_else(|| cut(body)),
        None => cut(body),
    }
}

/// Whether there is a secret in a body, or nothing if it cannot be read. Sees every field as it comes, also one that
/// is there twice.
fn secret_found(body: &[u8], encoding: Encoding) -> Option<bool> {
    let mut head = Head::default();
    walk(body, encoding, BODY_BYTES_MAX, &mut head).ok()?;
    Some(head.secret.is_some())
}

/// The value with its secrets masked. The depth of the recursion is bounded by the walk before it.
fn mask(value: Value, rule: Rule) -> Value {
    match value {
        Value::Object(_) | Value::Array(_) if rule == Rule::Secret => REDACTED.into(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|field| mask_field(field, rule)).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(|item| mask(item, rule.of_item())).collect(),
        Value::String(mut text) => {
            if let Some(start) = rule.start_in(&text) {
                text.truncate(start);
                text.push_str(REDACTED);
            }
            text.into()
        }
        other if rule.forbids_other(other.is_null()) => REDACTED.into(),
        other => other,
    }
}

fn mask_field((name, value): (String, Value), rule: Rule) -> (String, Value) {
    if rule.forbids_name(&name) {
        return (REDACTED.to_owned(), REDACTED.into());
    }
    let value = mask(value, rule.of_field(&name));
    (name, value)
}

/// The bytes up to the first thing that looks like the announcement of a secret.
fn cut(body: &[u8]) -> Vec<u8> {
    match announcement(body) {
        Some(position) => [body.get(..position).unwrap_or_default(), REDACTED.as_bytes()].concat(),
        None if announcement(&plain(body)).is_some() => REDACTED.as_bytes().to_vec(),
        None => body.to_vec(),
    }
}

/// The body as a reader of JSON escapes, or of wider characters, would see it: `p\u0061ss`, `p\0a\0s\0s\0`.
fn plain(body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((byte, after)) = rest.split_first() {
        let escape = after.split_at_checked(5).filter(|(escape, _)| *byte == b'\\' && escape.first() == Some(&b'u'));
        let hex = escape.and_then(|(escape, _)| std::str::from_utf8(escape.get(1..)?).ok());
        match (hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()), escape) {
            (Some(character), Some((_, after_escape))) => {
                plain.push(character);
                rest = after_escape;
            }
            _ => {
                if *byte != 0 {
                    plain.push(*byte);
                }
                rest = after;
            }
        }
    }
    plain
}

/// Where the first word that announces a secret, or a user's password, begins in bytes of any kind.
fn announcement(body: &[u8]) -> Option<usize> {
    // Of the same length, so that positions hold: what is no ASCII is no letter either.
    let text: String = body.iter().map(|b| if b.is_ascii() { char::from(*b) } else { '\u{1}' }).collect();
    let lower = text.to_ascii_lowercase();
    let alone = runs(&lower, |c| c.is_ascii_alphabetic())
        .find(|(_, word)| ["pass", "cred", "credentials", "key"].contains(word))
        .map(|(begin, _)| begin);
    let named = runs(&lower, |c| c.is_ascii_alphanumeric())
        .find(|(begin, word)| is_secret_option(word) && has_value(text.get(begin + word.len()..).unwrap_or_default()))
        .map(|(begin, _)| begin);
    // The last ones: in MessagePack, the length in front of a text may be a letter.
    let parts = ["password", "passwd", "passphrase", "secret", "pass=", "cred=", "credentials=", "key="];
    let part = parts.iter().filter_map(|part| lower.find(part)).min();
    // A body that breaks off within `user:password@` breaks off at the password.
    [alone, named, part, secret_in(&format!("{text}@"))].into_iter().flatten().min()
}

/// The longest runs of certain characters, and where they begin.
fn runs(text: &str, of: fn(char) -> bool) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    text.split(move |c| !of(c)).filter_map(move |run| {
        let begin = end;
        // What splits is one byte long.
        end = begin + run.len() + 1;
        (!run.is_empty()).then_some((begin, run))
    })
}

/// Whether a value may follow: after a colon or equals sign, or the marker byte of MessagePack.
fn has_value(after: &str) -> bool {
    let after = after.trim_start_matches(|c: char| c == ' ' || "\"'\\".contains(c));
    after.starts_with(|c: char| c == ':' || c == '=' || c.is_control())
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
        let value = serde_json::json!({"repository": {"options": "vers=4.2,hard"}, "labels": {"monkey": "nightly"}});
        for (_, body, content_type) in both(&value) {
            assert_eq!(redact(&body, content_type), body);
        }
        let twice = br#"{"options": "hard", "options": "ro"}"#;
        assert_eq!(redact(twice, "application/json"), twice);
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
            serde_json::json!({"repository": {"address": "smb://bob:hunter2@nas/share"}}),
            serde_json::json!({"repository": {"address": "bob:hunter2@nas:/share"}}),
            serde_json::json!({"repository": {"address": r"\\bob:hunter2@nas\share"}}),
            serde_json::json!({"repository": {"mountopts": "password=hunter2"}}),
            serde_json::json!({"mount": {"from": ["bob:hunter2@nas:/share"]}}),
            serde_json::json!({"repository": {"credentials": {"user": "bob", "Password": {"is": "hunter2"}}}}),
            serde_json::json!({"repository": {"address": "//nas/share,password=hunter2"}}),
            serde_json::json!({"repository": {"credentials": {"user": "bob", "pw": "hunter2"}}}),
            serde_json::json!({"repository": {"credentials": {"reference": "bob:hunter2"}}}),
            serde_json::json!({"repository": {"credentials": {"reference": {"is": "hunter2"}}}}),
            serde_json::json!({"repository": {"credentials": {"sealed": {"open": "hunter2"}}}}),
            serde_json::json!({"repository": {"credentials": "bob:hunter2"}}),
            serde_json::json!({"repository": {"credentials": ["bob", "hunter2"]}}),
            serde_json::json!({"credentials": {"reference": "hunter2"}}),
            serde_json::json!({"deep": [{"passphrase": "hunter2"}]}),
            serde_json::json!({"labels": {"key": "hunter2"}}),
            serde_json::json!({"labels": {"password=hunter2": "x"}}),
        ] {
            for (kept, ..) in both(&value) {
                assert!(!kept.contains("hunter2"), "{kept}");
                assert!(kept.contains(REDACTED), "{kept}");
            }
        }
    }

    #[test]
    fn a_field_that_is_there_twice_hides_no_secret() {
        let json = br#"{"options": "password=hunter2", "options": "ro"}"#;
        let packed = b"\x82\xa7options\xb0password=hunter2\xa7options\xa2ro";
        for kept in [redact(json, "application/json"), redact(packed, "application/vnd.msgpack")] {
            let kept = String::from_utf8_lossy(&kept).into_owned();
            assert!(!kept.contains("hunter2"), "{kept}");
            assert!(kept.contains("ro"), "{kept}");
        }
    }

    #[test]
    fn bytes_and_extensions_hide_no_secret() {
        for packed in [&b"\x81\xa1x\xc4\x10password=hunter2"[..], b"\x81\xa1x\xc7\x10\x01password=hunter2"] {
            let kept = redact(packed, "application/vnd.msgpack");
            assert!(!String::from_utf8_lossy(&kept).contains("hunter2"), "{kept:?}");
        }
        let innocent = b"\x82\xa1x\xc4\x02ab\xa1y\xc7\x02\x01cd";
        assert_eq!(redact(innocent, "application/vnd.msgpack"), innocent);
    }

    #[test]
    fn an_unreadable_body_is_cut_before_the_first_word_that_announces_a_secret() {
        let truncated = br#"{"job_id": "x", "repository": {"options": "vers=3.0,password=hunter2"#;
        for content_type in ["application/json", "application/vnd.msgpack", "text/plain"] {
            let kept = redact(truncated, content_type);
            assert_eq!(kept, br#"{"job_id": "x", "repository": {"options": "vers=3.0,[redacted]"#);
        }
        for text in [
            r#"{"address": "smb://bob:hunter2@nas/s"#,
            r#"{"address": "bob:hunter2@nas:/s", "#,
            r#"{"address": "smb://bob:hunter2"#,
            r#"{"smbPassword": "hunter2"#,
            r#"{"credfile": "hunter2"#,
            r#"{"nas.pass_file": "hunter2"#,
            "\u{a7}options\u{d9}Apass=hunter2,vers=3.0",
            r#"{"p\u0061ssword": "hunter2"#,
            "p\0a\0s\0s\0w\0o\0r\0d\0=\0h\0unter2",
        ] {
            let kept = redact(text.as_bytes(), "text/plain");
            assert!(!String::from_utf8_lossy(&kept).contains("unter2"), "{text}");
        }
        for text in ["keyboard, passing", r#"{"start_before": "2026-03-01T06:00:00Z","requested_by":"a@b"#] {
            assert_eq!(redact(text.as_bytes(), "text/plain"), text.as_bytes());
        }
    }
}
