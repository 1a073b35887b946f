//! A worker's configuration: one TOML file, and environment variables that override it.
//!
//! It promises: a key that nobody reads is refused, every error names the file or variable and the key, every value has
//! been checked when [`Config`] exists, and no error repeats a value of a key that may hold a secret. It deliberately
//! knows no other part of the program: its values are plain, and what they mean is said where they are used.
//!
//! `broker.uri` in the file is `LONGSHORE__BROKER__URI` in the environment.

mod check;
mod error;
mod raw;
mod source;
mod values;

use std::collections::HashMap;
use std::path::Path;

pub use error::ConfigError;
pub use values::{
    AutoTransfer, BackupConfig, BrokerConfig, ClientFiles, Config, LibvirtConfig, LogConfig, LogFormat, NamedFile,
    QueueType, RestoreConfig, ScratchConfig, WorkerConfig,
};

/// Reads the file, then the environment of this process, and checks what comes of it.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    load_with(file, std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))))
}

/// As [`load`], with an environment that is given.
///
/// # Errors
/// The first thing that is wrong.
pub fn load_with(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let environment: HashMap<String, String> =
        environment.into_iter().filter(|(name, _)| name.starts_with(source::VARIABLE_PREFIX)).collect();
    let layers = source::Layers { file, environment: &environment };
    check::check(layers.read()?, &layers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use secrecy::ExposeSecret;

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        /// The error of a file with `text`, the folder's name taken out.
        fn refusal(&self, text: &str, environment: &[(&str, &str)]) -> String {
            let file = self.write("worker.toml", text, 0o600);
            let error = load_with(Some(&file), owned(environment)).unwrap_err();
            error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
        }
    }

    fn owned(environment: &[(&str, &str)]) -> Vec<(String, String)> {
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const URI: &str = "[broker]\nuri = \"amqp://worker:hunter2@broker\"\n";

    #[test]
    fn every_file_in_config_loads() {
        let files = Files::new();
        let uri_file = files.write("broker.uri", "amqps://worker:hunter2@broker/longshore\n", 0o600);
        let environment = [("LONGSHORE__BROKER__URI_FILE", uri_file.to_str().unwrap())];
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut loaded = Vec::new();
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let config = load_with(Some(&path), owned(&environment)).unwrap();
            let uri = config.broker.uri().unwrap();
            assert_eq!(uri.expose_secret(), "amqps://worker:hunter2@broker/longshore");
            assert!(!format!("{config:?}").contains("hunter2"));
            loaded.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        loaded.sort();
        assert_eq!(loaded, ["worker.min.toml", "worker.toml"]);
    }

    #[test]
    fn the_complete_file_states_the_defaults() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let files = Files::new();
        let uri_file = files.write("broker.uri", "amqp://broker", 0o600);
        let load = |name: &str| {
            let environment = [("LONGSHORE__BROKER__URI_FILE", uri_file.to_str().unwrap()), ("LONGSHORE__HOST", "h")];
            let mut config = load_with(Some(&folder.join(name)), owned(&environment)).unwrap();
            config.scratch.limit_bytes = None;
            config.log.level_place.clear();
            format!("{config:?}")
        };
        assert_eq!(load("worker.toml"), load("worker.min.toml"));
    }

    #[test]
    fn the_environment_wins_over_the_file_and_suffices_alone() {
        let files = Files::new();
        let file = files.write("worker.toml", &format!("host = \"kvm-07\"\n{URI}[worker]\nslots = 2\n"), 0o600);
        let over = owned(&[("LONGSHORE__WORKER__SLOTS", "5"), ("LONGSHORE__HOST", "07"), ("LONGSHORE_BLESS", "1")]);
        let config = load_with(Some(&file), over).unwrap();
        assert_eq!((config.worker.slots, config.worker.slots_per_repository, config.host().unwrap()), (5, 5, "07"));
        let alone =
            owned(&[("LONGSHORE__BROKER__URI", "amqp://broker"), ("LONGSHORE__BACKUP__SAME_DEVICE_OK", "true")]);
        let alone = alone.into_iter().chain(owned(&[("LONGSHORE__BROKER__CONTROLLERS", "ops, night-shift,")]));
        let config = load_with(None, alone).unwrap();
        assert!(config.backup.same_device_ok);
        assert_eq!(config.broker.controllers, ["ops", "night-shift"]);
        let listed = files.write("listed.toml", &format!("{URI}controllers = ['ops']\n"), 0o600);
        assert_eq!(load_with(Some(&listed), []).unwrap().broker.controllers, ["ops"]);
        assert_eq!(config.broker.uri_place, "`broker.uri` in the environment (`LONGSHORE__BROKER__URI`)");
    }

    #[test]
    fn broken_files_are_refused_with_file_and_key() {
        let files = Files::new();
        for (text, refusal) in [
            ("slots = 3", "unknown key `slots` in `worker.toml`"),
            ("[broker]\nurl = 'amqp://broker'", "unknown key `broker.url` in `worker.toml`"),
            ("[brokers]\nuri = 'amqp://broker'", "unknown key `brokers` in `worker.toml`"),
            (
                "broker = 'amqp://worker:hunter2@broker'",
                "`broker` in `worker.toml` is not allowed: a value of another type is wanted",
            ),
            ("[broker]\nuri = ['hunter2']", "`broker.uri` in `worker.toml` is not allowed: a string is wanted"),
            (
                "[broker]\nuri = 'amqp://worker:hunter2@broker",
                "`worker.toml` is not TOML: at line 2, column 36: invalid literal string, expected `'`",
            ),
            ("host = 'KVM.07'", "`host` in `worker.toml` is not allowed: it has 1 to 63 of a-z, 0-9 and `-`"),
            (
                &format!("host = 'h'\n{URI}[worker]\nrun_dir = '/{}'", "r".repeat(49)),
                "`worker.run_dir` in `worker.toml` is not allowed: it has at most 49 bytes on this host, since sockets lie \
                 below it (unix(7))",
            ),
            ("[worker]\nslots = 'many'", "`worker.slots` in `worker.toml` is not allowed: an integer is wanted"),
        ] {
            assert_eq!(files.refusal(text, &[]), refusal);
        }
        for (text, refusal) in [
            ("[worker]\nslots = 0", "`worker.slots` in `worker.toml` is not allowed: it is from 1 to 256"),
            ("[worker]\nslots = 4294967297", "`worker.slots` in `worker.toml` is not allowed: it is from 1 to 256"),
            (
                "[worker]\nslots = -1",
                "`worker.slots` in `worker.toml` is not allowed: an unsigned 64 bit or less integer is wanted",
            ),
            (
                "[worker]\nstate_dir = 'state'",
                "`worker.state_dir` in `worker.toml` is not allowed: it is an absolute path",
            ),
            (
                "[restore]\ndirectories = ['/images', '/images/../etc']",
                "`restore.directories` in `worker.toml` is not allowed: each is an absolute path without `.`, `..` and `//`",
            ),
            ("[log]\nformat = 'xml'", "`log.format` in `worker.toml` is not allowed: it is `text` or `json`"),
        ] {
            assert_eq!(files.refusal(&format!("{URI}{text}"), &[]), refusal);
        }
    }

    #[test]
    fn without_a_uri_there_is_a_configuration_for_whoever_needs_none() {
        let files = Files::new();
        let config = load_with(Some(&files.write("worker.toml", "host = 'h'", 0o600)), []).unwrap();
        let missing = config.broker.uri().unwrap_err().to_string();
        let said = "the broker's URI, in a file of its own or as `broker.uri` (`LONGSHORE__BROKER__URI`)";
        let place = files.dir.path().join("worker.toml");
        assert_eq!(missing, format!("`broker.uri_file` is missing in `{}`: {said}", place.display()));
        let missing = load_with(None, []).unwrap().broker.uri().unwrap_err().to_string();
        assert!(missing.contains("in the environment (`LONGSHORE__BROKER__URI_FILE`)"), "{missing}");
    }

    #[test]
    fn a_wrong_variable_is_refused_by_its_name() {
        let files = Files::new();
        for (name, value, refusal) in [
            (
                "LONGSHORE__BROKER__URL",
                "amqp://broker",
                "unknown key `broker.url` in the environment (`LONGSHORE__BROKER__URL`)",
            ),
            (
                "LONGSHORE__WORKER__SLOTS",
                "0",
                "`worker.slots` in the environment (`LONGSHORE__WORKER__SLOTS`) is not allowed: it is from 1 to 256",
            ),
            (
                "LONGSHORE__WORKER__SLOTS",
                "two",
                "`worker.slots` in the environment (`LONGSHORE__WORKER__SLOTS`) is not allowed: an integer is wanted",
            ),
        ] {
            assert_eq!(files.refusal(URI, &[(name, value)]), refusal);
        }
    }

    #[test]
    fn a_file_with_the_uri_that_others_can_read_is_refused() {
        let files = Files::new();
        let uri_file = files.write("broker.uri", "amqp://worker:hunter2@broker", 0o644);
        let refusal = files.refusal(&format!("[broker]\nuri_file = '{}'", uri_file.display()), &[]);
        assert_eq!(
            refusal,
            "`broker.uri_file` in `worker.toml` is not allowed: `broker.uri` can be read by others; `chmod 600` it"
        );
        let open = files.write("open.toml", URI, 0o644);
        let refusal = load_with(Some(&open), []).unwrap_err().to_string();
        assert!(refusal.contains("`broker.uri`") && refusal.contains("`chmod 600` it"), "{refusal}");
        let over = owned(&[("LONGSHORE__BROKER__URI", "amqp://worker:hunter2@broker")]);
        load_with(Some(&files.write("open.toml", "", 0o644)), over).unwrap();
        load_with(Some(&files.write("open.toml", "[broker]\nuri = 'amqps://worker@broker'", 0o644)), []).unwrap();
        let key = files.write("client.key", "hunter2", 0o640);
        let client = format!("{URI}client_certificate_file = '/c.pem'\nclient_key_file = '{}'", key.display());
        assert_eq!(
            files.refusal(&client, &[]),
            "`broker.client_key_file` in `worker.toml` is not allowed: `client.key` can be read by others; `chmod 600` it"
        );
        assert_eq!(
            files.refusal(&format!("{URI}client_certificate_file = '/c.pem'"), &[]),
            "`broker.client_certificate_file` in `worker.toml` is not allowed: `broker.client_key_file` belongs to it and \
             is missing"
        );
        let missing = load_with(Some(Path::new("/nonexistent/worker.toml")), []).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read `/nonexistent/worker.toml`");
    }
}
