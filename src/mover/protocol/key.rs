//! The keys to the storage of volumes, on their way from the hypervisor's store to the mover. They are in no record and no argument, and
//! no text of theirs shows them.

use std::fmt;

use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

use crate::model::network::SecretRef;

/// A key, in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct StorageKey(Zeroizing<String>);

impl StorageKey {
    /// Of that text.
    pub fn new(base64: Zeroizing<String>) -> Self {
        Self(base64)
    }

    /// The text, for the file that a tool reads.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKey(***)")
    }
}

impl Serialize for StorageKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StorageKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A key by the name that definitions give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKey {
    /// The name.
    pub secret: SecretRef,
    /// The key.
    pub key: StorageKey,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mover::protocol::Request;

    #[test]
    fn a_key_is_shown_by_no_request() {
        let key = StorageKey::new(Zeroizing::new("aHVudGVyMg==".to_owned()));
        let keys = vec![NamedKey { secret: SecretRef::Usage("client.vm".into()), key }];
        let request = Request::Keys { keys };
        let shown = format!("{request:?}");
        assert!(shown.contains("client.vm") && !shown.contains("aHVudGVyMg"), "{shown}");
        let bytes = rmp_serde::to_vec_named(&request).unwrap();
        assert_eq!(rmp_serde::from_slice::<Request>(&bytes).unwrap(), request);
    }
}
