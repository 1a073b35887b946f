//! A backup repository: a share with an identity, as CloudStack's form describes it (type, address, mount options).
//!
//! Whatever reaches mount(8) later has passed through here: the address and each option are checked against injection
//! when they are parsed, so a value of these types can be handed to a mount call as it is.
//! CloudStack's script passes both through a shell and mount(8) unquoted; what came of that is in its issues 14007 to
//! 14013. Here nothing depends on quoting: a character that any layer below could take for syntax is not let in.

mod address;
mod options;

use std::path::PathBuf;

pub use address::{ADDRESS_BYTES_MAX, parse_address};
pub use options::{OPTIONS_BYTES_MAX, is_secret_name, is_secret_option, parse_options, secret_start};

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
    Sealed(Sealed),
}

/// Credentials that only one host can open, for one job on one share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Encapsulated key.
    #[serde(with = "serde_bytes")]
    pub enc: Vec<u8>,
    /// Sealed bytes.
    #[serde(with = "serde_bytes")]
    pub ciphertext: Vec<u8>,
    /// What they were sealed for, as the job that they came with says it. For anything else they do not open.
    pub bound_to: String,
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

/// An address or option that may not reach mount(8). The text never repeats a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRepository {
    /// The address has not the form of its type.
    #[error("the address does not fit the type: {rule}")]
    Address {
        /// What an address of that type looks like.
        rule: &'static str,
    },
    /// An option is not allowed.
    #[error("mount option {position}{} is not allowed: {rule}", .key.as_ref().map(|key| format!(" (`{key}`)")).unwrap_or_default())]
    Option {
        /// Its place in the list, from 1.
        position: usize,
        /// Its name, if that is well formed.
        key: Option<String>,
        /// Why.
        rule: &'static str,
    },
    /// The options as a whole are not allowed.
    #[error("the mount options are not allowed: {rule}")]
    Options {
        /// Why.
        rule: &'static str,
    },
    /// An option carries a secret.
    #[error("mount option {position} carries a secret; give credentials by reference instead")]
    Secret {
        /// Its place in the list, from 1.
        position: usize,
    },
}

impl MountOption {
    /// The option as one element of a list, without a comma in it.
    pub fn to_element(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={value}", self.key),
            None => self.key.clone(),
        }
    }
}

impl Repository {
    /// The path of a directory repository.
    pub fn directory(&self) -> Option<PathBuf> {
        (self.repository_type == RepositoryType::Directory).then(|| PathBuf::from(&self.address))
    }
}
