//! The checked configuration.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::error::ConfigError;

/// Everything a worker is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The host id; the short host name unless set, and none if that does not fit: only a worker needs one.
    pub host: Option<String>,
    /// The broker.
    pub broker: BrokerConfig,
    /// libvirt.
    pub libvirt: LibvirtConfig,
    /// The worker itself.
    pub worker: WorkerConfig,
    /// Scratch of pull backups.
    pub scratch: ScratchConfig,
    /// Credentials of shares.
    pub credentials: CredentialsConfig,
    /// Backup jobs.
    pub backup: BackupConfig,
    /// Restore jobs.
    pub restore: RestoreConfig,
    /// The log.
    pub log: LogConfig,
}

impl Config {
    /// The host id, for what cannot do without.
    ///
    /// # Errors
    /// It is not set, and this machine's own name cannot stand in for it.
    pub fn host(&self) -> Result<&str, ConfigError> {
        self.host.as_deref().ok_or_else(|| ConfigError::Missing {
            key: "host".to_owned(),
            place: "the configuration".to_owned(),
            rule: format!("this machine's own name does not fit: {HOST_RULE}"),
        })
    }
}

/// What a host id looks like.
pub(super) const HOST_RULE: &str = "it has 1 to 63 of a-z, 0-9 and `-`";

/// How the bytes of a running instance travel where the job leaves it to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoTransfer {
    /// We read from QEMU: its guest never waits for the share.
    Pull,
    /// QEMU writes to the share itself, without scratch.
    Push,
}

/// Type of the job queues. It is part of a queue's identity on the broker: changing it later needs new queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// Durable classic queues: the cheapest, for a single broker.
    Classic,
    /// Quorum queues, for a cluster.
    Quorum,
}

/// The broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// AMQP URI with user, password and virtual host, if there is one: not every command speaks to the broker.
    pub uri: Option<SecretString>,
    /// Key and file or variable that it comes from, for errors of those who read it; where it was looked for, if there is none.
    pub uri_place: String,
    /// Authorities of whom one must have signed the broker's certificate; the system's when absent.
    pub ca_file: Option<NamedFile>,
    /// Certificate and key with which we prove who we are, in place of a password.
    pub client: Option<ClientFiles>,
    /// Broker users whose control messages the worker obeys.
    pub controllers: Vec<String>,
    /// Type of the job queues.
    pub queue_type: QueueType,
    /// Deliveries that may be on their way to the journal at a time.
    pub job_prefetch: u16,
    /// AMQP heartbeat.
    pub heartbeat: Duration,
    /// Longest wait for the broker's confirm.
    pub publish_wait: Duration,
}

impl BrokerConfig {
    /// The URI, for what cannot do without.
    ///
    /// # Errors
    /// It is not set.
    pub fn uri(&self) -> Result<&SecretString, ConfigError> {
        self.uri.as_ref().ok_or_else(|| ConfigError::Missing {
            key: "broker.uri_file".to_owned(),
            place: self.uri_place.clone(),
            rule: "the broker's URI, in a file of its own or as `broker.uri` (`LONGSHORE__BROKER__URI`)".to_owned(),
        })
    }
}

/// A file that a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The file.
    pub path: PathBuf,
    /// Key and file or variable that it comes from, for errors of those who read it.
    pub place: String,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate.
    pub certificate: NamedFile,
    /// Its key, which nobody else can read.
    pub key: NamedFile,
}

/// libvirt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtConfig {
    /// Connection URI.
    pub uri: String,
}

/// The worker itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The journal; must survive a reboot.
    pub state_dir: PathBuf,
    /// Sockets, mount points and the like; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Jobs at a time. With more than one, the last is kept for urgent work.
    pub slots: u32,
    /// Of these, on one repository.
    pub slots_per_repository: u32,
    /// Jobs in the journal that have not ended, beyond which no normal ones are taken from the queue; urgent ones up to twice as many.
    pub waiting_max: u32,
    /// Time that running jobs get to finish on SIGTERM.
    pub drain: Duration,
    /// Between two heartbeat events.
    pub heartbeat: Duration,
    /// Between two inventory events.
    pub inventory: Duration,
}

/// Scratch of pull backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchConfig {
    /// A directory on a local disk.
    pub dir: PathBuf,
    /// Limit for one job, bytes; without it, what is free less a tenth.
    pub limit_bytes: Option<u64>,
}

/// Credentials of shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsConfig {
    /// Where the files are that jobs refer to.
    pub dir: PathBuf,
}

/// Backup jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupConfig {
    /// Time without a byte moved after which an attempt fails.
    pub stall: Duration,
    /// Longest time that the guard lets a guest be frozen.
    pub freeze_limit: Duration,
    /// A directory repository may be on the same device as its parent directory.
    pub same_device_ok: bool,
    /// What a job means that leaves it to the host.
    pub auto: AutoTransfer,
}

/// Restore jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreConfig {
    /// Directories below which volumes may be made that were not there; absolute.
    pub directories: Vec<PathBuf>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives such as `info,longshore::broker=debug`.
    pub level: String,
    /// Key and file or variable that it comes from, for errors of those who read it.
    pub level_place: String,
    /// Its form.
    pub format: LogFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_the_host_id_complains_that_there_is_none() {
        let environment = [("LONGSHORE__BROKER__URI".to_owned(), "amqp://broker".to_owned())];
        let config = crate::config::load_with(None, environment).map(|config| Config { host: None, ..config });
        let refusal = config.map_or_else(|error| error.to_string(), |config| format!("{:?}", config.host()));
        assert!(refusal.contains("Missing") && refusal.contains("does not fit"), "{refusal}");
    }
}
