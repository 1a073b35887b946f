//! From what stands in the file to what the program uses: defaults, ranges, words.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::error::ConfigError;
use super::raw::{Raw, RawBackup, RawBroker, RawLog, RawRestore, RawScratch, RawWorker, Words};
use super::source::Layers;
use super::values::{
    AutoTransfer, BackupConfig, BrokerConfig, ClientFiles, Config, CredentialsConfig, HOST_RULE, LibvirtConfig,
    LogConfig, LogFormat, NamedFile, QueueType, RestoreConfig, ScratchConfig, WorkerConfig,
};

/// A number that a key may have, and the one it has when it is absent.
struct Number {
    default: u64,
    range: RangeInclusive<u64>,
}

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Longest path of a unix socket, bytes: `sun_path` has 108 with its closing zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What a mover puts below `worker.run_dir`: `/<attempt>/sockets/<disk>` and an ending.
const MOVER_SOCKET_BYTES: usize = 1 + ATTEMPT_BYTES + 9 + 16 + 12;
/// What a pull export puts there, besides the host id: `/<host>.<attempt>/nbd`.
const EXPORT_SOCKET_BYTES: usize = 1 + 1 + ATTEMPT_BYTES + 4;
/// An attempt's name: twelve digits of the job id, the run and the attempt, with room for three digits each.
const ATTEMPT_BYTES: usize = 12 + 1 + 3 + 1 + 3;

pub(super) fn check(raw: Raw, layers: &Layers<'_>) -> Result<Config, ConfigError> {
    let checker = Checker { layers };
    let uri = raw.libvirt.uri.unwrap_or_else(|| "qemu:///system".to_owned());
    let host = checker.host(raw.host)?;
    Ok(Config {
        broker: checker.broker(raw.broker)?,
        libvirt: LibvirtConfig { uri },
        worker: checker.worker(raw.worker, host.as_deref().unwrap_or_default())?,
        host,
        scratch: checker.scratch(raw.scratch)?,
        credentials: CredentialsConfig {
            dir: checker.directory("credentials.dir", raw.credentials.dir, "/etc/longshore/credentials")?,
        },
        backup: checker.backup(&raw.backup)?,
        restore: checker.restore(raw.restore)?,
        log: checker.log(raw.log)?,
    })
}

struct Checker<'a> {
    layers: &'a Layers<'a>,
}

impl Checker<'_> {
    fn value(&self, key: &str, rule: impl Into<String>) -> ConfigError {
        ConfigError::Value { key: key.to_owned(), place: self.layers.place(key), rule: rule.into() }
    }

    fn named_place(&self, key: &str) -> String {
        format!("`{key}` in {}", self.layers.place(key))
    }

    fn number(&self, key: &str, given: Option<u64>, number: &Number) -> Result<u64, ConfigError> {
        let value = given.unwrap_or(number.default);
        if number.range.contains(&value) {
            return Ok(value);
        }
        Err(self.value(key, format!("it is from {} to {}", number.range.start(), number.range.end())))
    }

    fn narrow<T: TryFrom<u64>>(&self, key: &str, given: Option<u64>, number: &Number) -> Result<T, ConfigError> {
        let value = self.number(key, given, number)?;
        T::try_from(value).map_err(|_| self.value(key, "it is too large"))
    }

    fn seconds(&self, key: &str, given: Option<u64>, number: &Number) -> Result<Duration, ConfigError> {
        self.number(key, given, number).map(Duration::from_secs)
    }

    fn word<T: Copy>(
        &self,
        key: &str,
        given: Option<&String>,
        words: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let found = words.iter().find(|(word, _)| word == given).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let wanted = words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(" or ");
            self.value(key, format!("it is {wanted}"))
        })
    }

    fn directory(&self, key: &str, given: Option<String>, default: &str) -> Result<PathBuf, ConfigError> {
        let path = PathBuf::from(given.unwrap_or_else(|| default.to_owned()));
        if path.is_absolute() { Ok(path) } else { Err(self.value(key, "it is an absolute path")) }
    }

    /// The directory that sockets lie below, whose paths the kernel bounds: better refused here than by every job.
    fn run_dir(&self, given: Option<String>, host: &str) -> Result<PathBuf, ConfigError> {
        let key = "worker.run_dir";
        let path = self.directory(key, given, "/run/longshore")?;
        let longest = SOCKET_PATH_BYTES_MAX - MOVER_SOCKET_BYTES.max(EXPORT_SOCKET_BYTES + host.len());
        if path.as_os_str().len() <= longest {
            return Ok(path);
        }
        let rule = format!("it has at most {longest} bytes on this host, since sockets lie below it (unix(7))");
        Err(self.value(key, rule))
    }

    fn host(&self, given: Option<String>) -> Result<Option<String>, ConfigError> {
        let fits = |host: &String| {
            let characters = host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            (1..=63).contains(&host.len()) && characters
        };
        if let Some(host) = given {
            return if fits(&host) { Ok(Some(host)) } else { Err(self.value("host", HOST_RULE)) };
        }
        let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let short = name.and_then(|name| name.split('.').next().map(str::to_lowercase));
        Ok(short.filter(fits))
    }

    /// The URI, if there is one, and where it comes from. What is right with it is known to the broker's door.
    fn uri(
        &self,
        uri: Option<String>,
        uri_file: Option<String>,
    ) -> Result<(Option<SecretString>, String), ConfigError> {
        match (uri, uri_file) {
            (Some(uri), None) => {
                if let Some(file) = self.layers.file_of("broker.uri")
                    && holds_password(&uri)
                {
                    self.closed("broker.uri", file)?;
                }
                Ok((Some(uri.into()), self.named_place("broker.uri")))
            }
            (None, Some(path)) => {
                let uri = self.secret_file("broker.uri_file", Path::new(&path))?;
                Ok((Some(uri.into()), format!("{}, which names `{path}`", self.named_place("broker.uri_file"))))
            }
            (Some(_), Some(_)) => {
                let other = self.named_place("broker.uri");
                Err(self.value("broker.uri_file", format!("{other} is set, too; one is enough")))
            }
            (None, None) => Ok((None, self.layers.place("broker.uri_file"))),
        }
    }

    fn secret_file(&self, key: &str, path: &Path) -> Result<String, ConfigError> {
        self.closed(key, path)?;
        Ok(fs::read_to_string(path).map_err(|error| self.unreadable(key, path, &error))?.trim().to_owned())
    }

    /// Refuses a file with a secret that others can read.
    fn closed(&self, key: &str, path: &Path) -> Result<(), ConfigError> {
        if fs::metadata(path).map_err(|error| self.unreadable(key, path, &error))?.mode() & 0o077 != 0 {
            let rule = format!("`{}` can be read by others; `chmod 600` it", path.display());
            return Err(self.value(key, rule));
        }
        Ok(())
    }

    /// A file that a key names and that cannot be read: who looks for the remedy has to know of the key.
    fn unreadable(&self, key: &str, path: &Path, error: &std::io::Error) -> ConfigError {
        self.value(key, format!("cannot read `{}`, which it names: {error}", path.display()))
    }

    /// The certificate that stands in place of a password. Whether it is one is known to the broker's door.
    fn client(&self, certificate: Option<String>, key: Option<String>) -> Result<Option<ClientFiles>, ConfigError> {
        let (certificate_key, key_key) = ("broker.client_certificate_file", "broker.client_key_file");
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                self.closed(key_key, Path::new(&key))?;
                let (certificate, key) = (self.file(certificate_key, certificate), self.file(key_key, key));
                Ok(Some(ClientFiles { certificate, key }))
            }
            (Some(_), None) => Err(self.value(certificate_key, format!("`{key_key}` belongs to it and is missing"))),
            (None, Some(_)) => Err(self.value(key_key, format!("`{certificate_key}` belongs to it and is missing"))),
        }
    }

    fn file(&self, key: &str, path: String) -> NamedFile {
        NamedFile { path: path.into(), place: self.named_place(key) }
    }

    fn broker(&self, raw: RawBroker) -> Result<BrokerConfig, ConfigError> {
        let types = [("classic", QueueType::Classic), ("quorum", QueueType::Quorum)];
        let prefetch = Number { default: 50, range: 1..=1000 };
        // Below 5 s a busy broker counts as dead; above a minute a dead one holds the host id for minutes.
        let heartbeat = Number { default: 20, range: 5..=60 };
        let publish_wait = Number { default: 30, range: 1..=600 };
        let (uri, uri_place) = self.uri(raw.uri, raw.uri_file)?;
        Ok(BrokerConfig {
            uri,
            uri_place,
            ca_file: raw.ca_file.map(|path| self.file("broker.ca_file", path)),
            client: self.client(raw.client_certificate_file, raw.client_key_file)?,
            controllers: raw.controllers.map(Words::list).unwrap_or_default(),
            queue_type: self.word("broker.queue_type", raw.queue_type.as_ref(), &types, QueueType::Classic)?,
            job_prefetch: self.narrow("broker.job_prefetch", raw.job_prefetch, &prefetch)?,
            heartbeat: self.seconds("broker.heartbeat_seconds", raw.heartbeat_seconds, &heartbeat)?,
            publish_wait: self.seconds("broker.publish_wait_seconds", raw.publish_wait_seconds, &publish_wait)?,
        })
    }

    fn worker(&self, raw: RawWorker, host: &str) -> Result<WorkerConfig, ConfigError> {
        let slots = self.narrow("worker.slots", raw.slots, &Number { default: 3, range: 1..=256 })?;
        let per_repository = Number { default: u64::from(slots), range: 1..=256 };
        let waiting_max = Number { default: 1000, range: 1..=100_000 };
        let drain = Number { default: 120, range: 0..=DAY_SECONDS };
        let heartbeat = Number { default: 15, range: 1..=300 };
        let inventory = Number { default: 300, range: 10..=DAY_SECONDS };
        let key = "worker.slots_per_repository";
        Ok(WorkerConfig {
            state_dir: self.directory("worker.state_dir", raw.state_dir, "/var/lib/longshore/journal")?,
            run_dir: self.run_dir(raw.run_dir, host)?,
            slots,
            slots_per_repository: self.narrow(key, raw.slots_per_repository, &per_repository)?,
            waiting_max: self.narrow("worker.waiting_max", raw.waiting_max, &waiting_max)?,
            drain: self.seconds("worker.drain_seconds", raw.drain_seconds, &drain)?,
            heartbeat: self.seconds("worker.heartbeat_seconds", raw.heartbeat_seconds, &heartbeat)?,
            inventory: self.seconds("worker.inventory_seconds", raw.inventory_seconds, &inventory)?,
        })
    }

    fn scratch(&self, raw: RawScratch) -> Result<ScratchConfig, ConfigError> {
        let limit = Number { default: 0, range: 1 << 20..=u64::MAX };
        let given = raw.limit_bytes;
        Ok(ScratchConfig {
            dir: self.directory("scratch.dir", raw.dir, "/var/lib/longshore/scratch")?,
            limit_bytes: given.map(|_| self.number("scratch.limit_bytes", given, &limit)).transpose()?,
        })
    }

    fn backup(&self, raw: &RawBackup) -> Result<BackupConfig, ConfigError> {
        let stall = Number { default: 300, range: 5..=DAY_SECONDS };
        let freeze_limit = Number { default: 30, range: 1..=300 };
        let ways = [("pull", AutoTransfer::Pull), ("push", AutoTransfer::Push)];
        Ok(BackupConfig {
            stall: self.seconds("backup.stall_seconds", raw.stall_seconds, &stall)?,
            freeze_limit: self.seconds("backup.freeze_limit_seconds", raw.freeze_limit_seconds, &freeze_limit)?,
            same_device_ok: raw.same_device_ok.unwrap_or(false),
            auto: self.word("backup.auto", raw.auto.as_ref(), &ways, AutoTransfer::Pull)?,
        })
    }

    /// None means that no volume may be made.
    fn restore(&self, raw: RawRestore) -> Result<RestoreConfig, ConfigError> {
        let given = raw.directories.map(Words::list);
        let directories = given.unwrap_or_else(|| vec!["/var/lib/libvirt/images".to_owned()]).into_iter().map(|text| {
            let plain = |part: &str| !matches!(part, "" | "." | "..");
            match text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain)) {
                true => Ok(PathBuf::from(text)),
                false => Err(self.value("restore.directories", "each is an absolute path without `.`, `..` and `//`")),
            }
        });
        Ok(RestoreConfig { directories: directories.collect::<Result<_, _>>()? })
    }

    fn log(&self, raw: RawLog) -> Result<LogConfig, ConfigError> {
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Ok(LogConfig {
            format: self.word("log.format", raw.format.as_ref(), &formats, LogFormat::Text)?,
            level: raw.level.unwrap_or_else(|| "info".to_owned()),
            level_place: self.named_place("log.level"),
        })
    }
}

/// Whether `user:password@` stands in a URI, however wrong the rest of it is.
fn holds_password(uri: &str) -> bool {
    let after_scheme = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    after_scheme.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}
