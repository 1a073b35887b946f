//! The configuration as it stands in the file. Every number is as wide as can be, so that one out of its range is refused by
//! the range of its key and not by the size of an integer.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    pub host: Option<String>,
    pub broker: RawBroker,
    pub libvirt: RawLibvirt,
    pub worker: RawWorker,
    pub scratch: RawScratch,
    pub credentials: RawCredentials,
    pub backup: RawBackup,
    pub restore: RawRestore,
    pub log: RawLog,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawBroker {
    pub uri: Option<String>,
    pub uri_file: Option<String>,
    pub ca_file: Option<String>,
    pub client_certificate_file: Option<String>,
    pub client_key_file: Option<String>,
    pub controllers: Option<Words>,
    pub queue_type: Option<String>,
    pub job_prefetch: Option<u64>,
    pub heartbeat_seconds: Option<u64>,
    pub publish_wait_seconds: Option<u64>,
}

/// A list, which in the environment is a text with commas.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Words {
    Text(String),
    List(Vec<String>),
}

impl Words {
    pub(super) fn list(self) -> Vec<String> {
        match self {
            Words::List(words) => words,
            Words::Text(text) => {
                text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
            }
        }
    }
}

impl std::fmt::Debug for RawBroker {
    /// Says nothing: the URI holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawBroker").finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawLibvirt {
    pub uri: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawWorker {
    pub state_dir: Option<String>,
    pub run_dir: Option<String>,
    pub slots: Option<u64>,
    pub slots_per_repository: Option<u64>,
    pub waiting_max: Option<u64>,
    pub drain_seconds: Option<u64>,
    pub heartbeat_seconds: Option<u64>,
    pub inventory_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawScratch {
    pub dir: Option<String>,
    pub limit_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawCredentials {
    pub dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawBackup {
    pub stall_seconds: Option<u64>,
    pub freeze_limit_seconds: Option<u64>,
    pub same_device_ok: Option<bool>,
    pub auto: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawRestore {
    pub directories: Option<Words>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawLog {
    pub level: Option<String>,
    pub format: Option<String>,
}
