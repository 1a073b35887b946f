//! Bodies in and out: MessagePack and JSON, with their limits.
//!
//! Both encodings carry the same model, that of the JSON Schemas: maps with field names, uuids and times as text. Which
//! one a body is in is said by its content type and never guessed.

use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer};
use serde::{Deserialize, Serialize};

use super::named::named;
use super::refusal::Refusal;
use super::secret::masked;
use super::walk::{Head, Walk};
use crate::failure::{Code, Failure};

/// Longest body of a job or an event, bytes.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// Longest body of a dead letter, bytes: an original of [`BODY_BYTES_MAX`] in its worst escaping, and what is around it.
pub const LETTER_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Deepest nesting of maps and arrays, the outermost map counted.
pub const DEPTH_MAX: usize = 32;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// MessagePack, maps with field names.
    MessagePack,
    /// JSON in UTF-8.
    Json,
}

impl Encoding {
    /// Every content type that is read, ours first.
    pub const READ: [&'static str; 4] =
        ["application/vnd.msgpack", "application/json", "application/msgpack", "application/x-msgpack"];

    /// The content type that we write.
    pub const fn content_type(self) -> &'static str {
        match self {
            Encoding::MessagePack => "application/vnd.msgpack",
            Encoding::Json => "application/json",
        }
    }

    /// The encoding that a content type names. Parameters are tolerated, but a charset other than UTF-8 is not.
    pub fn of(content_type: &str) -> Option<Self> {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next()?.to_ascii_lowercase();
        let foreign_charset = parts.filter_map(|part| part.split_once('=')).any(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset") && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        match essence.as_str() {
            _ if foreign_charset => None,
            "application/vnd.msgpack" | "application/msgpack" | "application/x-msgpack" => Some(Encoding::MessagePack),
            "application/json" => Some(Encoding::Json),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Encoding::MessagePack => "MessagePack",
            Encoding::Json => "JSON",
        }
    }
}

/// Why a body could not be read, and where.
struct Fault {
    path: String,
    reason: String,
}

/// Longest part of a path or reason that is repeated, characters.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// Makes a text of a decoder fit for a refusal: values that it quotes may be secrets in a wrong place.
fn without_values(text: &str) -> String {
    let mut shown = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        match (quoted, c) {
            (true, _) if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => {
                quoted = !quoted;
                shown.push('"');
            }
            (true, _) => {}
            (false, c) => shown.extend(c.escape_default()),
        }
    }
    shown.replace("\"\"", "").split_whitespace().collect::<Vec<_>>().join(" ").replace(" ,", ",")
}

/// Makes a text of the message fit for a refusal.
pub(super) fn shortened(text: &str) -> String {
    masked(text).chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_default).collect()
}

fn tracked<'de, S: DeserializeSeed<'de>, D: Deserializer<'de>>(seed: S, deserializer: D) -> Result<S::Value, Fault> {
    let mut track = serde_path_to_error::Track::new();
    seed.deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track)).map_err(|error| Fault {
        path: shortened(&track.path().to_string()),
        reason: without_values(&error.to_string()),
    })
}

fn read<'de, S: DeserializeSeed<'de>>(body: &'de [u8], encoding: Encoding, seed: S) -> Result<S::Value, Fault> {
    let outermost = |reason: String| Fault { path: ".".to_owned(), reason };
    match encoding {
        Encoding::Json => {
            let mut json = serde_json::Deserializer::from_slice(body);
            let value = tracked(seed, &mut json)?;
            json.end().map_err(|error| outermost(without_values(&error.to_string())))?;
            Ok(value)
        }
        Encoding::MessagePack => {
            let mut rest = body;
            let mut msgpack = rmp_serde::Deserializer::new(&mut rest).with_human_readable();
            msgpack.set_max_depth(2 * DEPTH_MAX);
            let value = tracked(seed, &mut msgpack)?;
            match rest.len() {
                0 => Ok(value),
                more => Err(outermost(format!("{more} bytes follow the end of the map"))),
            }
        }
    }
}

fn malformed(encoding: Encoding, fault: &Fault) -> Refusal {
    let place = if fault.path == "." { String::new() } else { format!(" at `{}`", fault.path) };
    Refusal::new(
        Code::MalformedMessage,
        format!("cannot read the body as {}{place}: {}", encoding.name(), fault.reason),
    )
}

struct Named<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Named<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        named(deserializer)
    }
}

/// Reads a value whose body has been walked through before.
pub(super) fn shape<T: DeserializeOwned>(body: &[u8], encoding: Encoding) -> Result<T, Refusal> {
    read(body, encoding, Named(PhantomData)).map_err(|fault| malformed(encoding, &fault))
}

/// Looks at size and structure: everything that can be said without knowing what the message is.
pub(super) fn walk(body: &[u8], encoding: Encoding, bytes_max: usize, head: &mut Head) -> Result<(), Refusal> {
    if body.len() > bytes_max {
        return Err(Refusal::new(Code::MessageTooLarge, format!("the body is longer than {bytes_max} bytes")));
    }
    let walked = read(body, encoding, Walk::new(head, DEPTH_MAX));
    walked.map_err(|fault| {
        if head.too_deep {
            let text = format!("the body is nested deeper than {DEPTH_MAX} levels");
            return Refusal::new(Code::MessageTooLarge, text);
        }
        malformed(encoding, &fault)
    })
}

/// Writes a value of ours.
///
/// # Errors
/// `internal`: a value that no body can hold, which would be a mistake in its type.
pub(super) fn write<T: Serialize>(value: &T, encoding: Encoding) -> Result<Vec<u8>, Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::Internal, format!("cannot write a message as {}", encoding.name())).because(error)
    };
    match encoding {
        Encoding::Json => serde_json::to_vec(value).map_err(|error| failed(&error)),
        Encoding::MessagePack => {
            let mut body = Vec::new();
            let mut serializer = rmp_serde::Serializer::new(&mut body).with_struct_map().with_human_readable();
            value.serialize(&mut serializer).map_err(|error| failed(&error))?;
            Ok(body)
        }
    }
}
