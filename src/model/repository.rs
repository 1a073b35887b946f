//! A backup repository: a share with an identity, as CloudStack's form describes it (type, address, mount options).
//!
//! Whatever reaches mount(8) later has passed through here: the address and each option are checked against injection
//! when they are parsed, so a value of these types can be handed to a mount call as it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::id::RepositoryId;

/// What kind of share a repository is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RepositoryType {
    /// A directory of the host, mounted by somebody else or local.
    Directory,
    /// NFS.
    Nfs,
    /// SMB.
    Cifs,
    /// CephFS.
    Ceph,
}

/// One mount option: `key` or `key=value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOption {
    /// The option's name.
    pub key: String,
    /// Its value, if it has one.
    pub value: Option<String>,
}

/// Where the credentials of a share are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// A file on the host by its name in the host's credentials directory.
    Reference {
        /// File name, no path.
        name: String,
    },
    /// HPKE to the host's key; opened only while mounting.
    Sealed {
        /// Encapsulated key.
        #[serde(with = "serde_bytes")]
        enc: Vec<u8>,
        /// Sealed bytes.
        #[serde(with = "serde_bytes")]
        ciphertext: Vec<u8>,
    },
}

/// A backup repository as a job names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// The identity that `longshore.json` on the share must have.
    pub id: RepositoryId,
    /// Kind of share.
    pub repository_type: RepositoryType,
    /// Address in the form of its type; for a directory an absolute path.
    pub address: String,
    /// Checked mount options, in the order given.
    pub options: Vec<MountOption>,
    /// Where the credentials are, if the share wants any.
    pub credentials: Option<Credentials>,
}

impl Repository {
    /// The path of a directory repository.
    pub fn directory(&self) -> Option<PathBuf> {
        (self.repository_type == RepositoryType::Directory).then(|| PathBuf::from(&self.address))
    }
}
