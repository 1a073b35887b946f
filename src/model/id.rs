//! Names of things. Each is its own type, checked once where it enters, and safe in paths, routing keys and queue
//! names from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that its type does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is no {what}: {rule}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidName {
    /// Longest part of a refused value that is repeated in the error, in characters.
    const SHOWN_CHARACTERS: usize = 80;

    pub(crate) fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        let value = value.chars().take(Self::SHOWN_CHARACTERS).flat_map(char::escape_default).collect();
        Self { what, value, rule }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one, ordered by time (UUIDv7).
            pub fn draw() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A job: one request, for all of its runs.
    JobId
}
uuid_id! {
    /// A backup: one restore point. Drawn once per run of a job.
    BackupId
}
uuid_id! {
    /// A backup repository, as written in its `longshore.json`.
    RepositoryId
}
uuid_id! {
    /// An instance, which is also its libvirt uuid.
    InstanceId
}
uuid_id! {
    /// One life of a worker's journal.
    InstallationId
}
uuid_id! {
    /// One start of a worker process, within an installation.
    IncarnationId
}
uuid_id! {
    /// One event; kept on every resend, so that consumers can drop duplicates.
    EventId
}

impl EventId {
    /// The id of an event that has no record to keep its id in: the same for the same parts, so that an act that is repeated after a
    /// crash tells the same event, and another for any others. A UUIDv8 of the first 16 bytes of BLAKE3 over the parts, each after its length
    /// in bytes (8 bytes, the lowest first), so that no two lists of parts run together.
    pub fn derived(parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut first = [0; 16];
        hasher.finalize_xof().fill(&mut first);
        Self(uuid::Builder::from_custom_bytes(first).into_uuid())
    }
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $pattern:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, Self::Error> {
                let check: fn(&str) -> bool = $check;
                if check(&value) { Ok(Self(value)) } else { Err(InvalidName::new($what, &value, $rule)) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "description": $rule })
            }
        }
    };
}

text_name! {
    /// A host of the fleet. It goes into routing keys, permissions and queue names, so no dots and no wildcards.
    HostId, "host id", "it has 1 to 63 of a-z, 0-9 and `-`", "^[a-z0-9-]{1,63}$",
    |text| (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

text_name! {
    /// A disk of a domain by its target, such as `vda`. It becomes a file name on the share.
    DiskTarget, "disk target", "it has 1 to 16 of a-z and 0-9 and begins with a letter", "^[a-z][a-z0-9]{0,15}$",
    |text| (1..=16).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

text_name! {
    /// The name of an instance as libvirt shows it. It becomes part of the names of files that a restore makes for an
    /// instance.
    InstanceName, "instance name", "it has 1 to 255 bytes, none of them of a control character or `/`",
    r"^[^/\u0000-\u001f\u007f-\u009f]{1,255}$",
    |text| !text.is_empty() && text.len() <= 255 && !text.chars().any(|c| c.is_control() || c == '/')
}

/// An instance as a job names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceRef {
    /// By its uuid.
    Id(InstanceId),
    /// By its name on the host.
    Name(InstanceName),
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstanceRef::Id(id) => id.fmt(f),
            InstanceRef::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for text in ["", "kvm.07", "kvm*", "KVM", "a/b", "#", &"a".repeat(64)] {
            assert!(text.parse::<HostId>().is_err(), "{text}");
        }
        for text in ["", "../vda", "vda/..", "1da", "vda.qcow2", "vda\0"] {
            assert!(text.parse::<DiskTarget>().is_err(), "{text}");
        }
        for text in ["", "a\nb", "a/b", "\u{7f}"] {
            assert!(text.parse::<InstanceName>().is_err(), "{text}");
        }
        assert_eq!("kvm-07".parse::<HostId>().unwrap().as_str(), "kvm-07");
    }

    #[test]
    fn a_derived_event_id_is_that_of_its_parts_alone_and_stays_so() {
        let id = EventId::derived(&["letter.replayed", "019a0f3e-7c00-7000-8000-00000000000e", "2"]);
        assert_eq!(id.to_string(), "eaaff502-0131-8dbb-96ea-dae020f4b344");
        assert_eq!((id.0.get_version_num(), id.0.get_variant()), (8, uuid::Variant::RFC4122));
        let lists: [&[&str]; 7] =
            [&[], &[""], &["", ""], &["ab"], &["a", "b"], &["b", "a"], &["a\u{1}\0\0\0\0\0\0\0b"]];
        let ids: std::collections::BTreeSet<_> = lists.iter().map(|parts| EventId::derived(parts)).collect();
        assert_eq!(ids.len(), lists.len());
    }

    #[test]
    fn a_refusal_does_not_repeat_control_characters() {
        let refusal = "a\u{1b}[2J".parse::<InstanceName>().unwrap_err().to_string();
        assert!(!refusal.contains('\u{1b}'), "{refusal}");
    }
}
