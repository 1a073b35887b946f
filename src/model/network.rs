//! How QEMU reaches a volume on the network: where its servers are, and as whom. What proves who that is stays where it is kept: here is
//! only by what name it is found there.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The way to a volume on the network. Backups of older versions say nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAccess {
    /// Its servers; where there are none, a configuration on the host names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<NetworkHost>,
    /// The configuration, where it is not the host's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// As whom the servers are asked, where the definition says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What proves that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// The snapshot of the volume that is the disk, and not what the volume holds now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

impl NetworkAccess {
    /// Nothing is said.
    pub fn is_unsaid(&self) -> bool {
        *self == Self::default()
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkHost {
    /// Name or address.
    pub name: String,
    /// Port, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// By what a secret is found in the hypervisor's store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// Its uuid.
    Uuid(Uuid),
    /// The name of what it is used for.
    Usage(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Uuid(uuid) => write!(f, "{uuid}"),
            SecretRef::Usage(name) => write!(f, "{}", name.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::instance::{DiskSource, ImageFormat};

    #[test]
    fn a_source_of_an_older_version_is_read_and_written_as_it_was() {
        let old = r#"{"network":{"protocol":"rbd","name":"pool/image"}}"#;
        let source: DiskSource = serde_json::from_str(old).unwrap();
        let DiskSource::Network { format, access, .. } = &source else { unreachable!("it is on the network") };
        assert!(*format == ImageFormat::Raw && access.is_unsaid());
        assert_eq!(serde_json::to_string(&source).unwrap(), old);
    }

    #[test]
    fn all_that_is_said_of_the_way_comes_back_and_makes_no_other_place() {
        let access = NetworkAccess {
            hosts: vec![
                NetworkHost { name: "mon1".into(), port: Some(6789) },
                NetworkHost { name: "::1".into(), port: None },
            ],
            config: Some("/etc/ceph/other.conf".into()),
            user: Some("vm".into()),
            secret: Some(SecretRef::Usage("client.vm secret".into())),
            snapshot: None,
        };
        let at = |access| DiskSource::Network {
            protocol: "rbd".into(),
            name: "pool/image".into(),
            format: ImageFormat::Raw,
            access: Box::new(access),
        };
        let source = at(access);
        let read: DiskSource = serde_json::from_str(&serde_json::to_string(&source).unwrap()).unwrap();
        assert_eq!(read, source);
        let moved = at(NetworkAccess::default());
        assert!(moved.is_same_place(&source) && moved != source);
        let other = DiskSource::Network {
            protocol: "rbd".into(),
            name: "pool/other".into(),
            format: ImageFormat::Raw,
            access: Box::default(),
        };
        assert!(!moved.is_same_place(&other) && source.secret().is_some() && moved.secret().is_none());
    }
}
