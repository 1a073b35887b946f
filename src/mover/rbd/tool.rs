//! Running the program `rbd`: what it is asked of an image, and what its answers mean.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Cluster, Image};
use crate::failure::{Code, Failure};
use crate::mover::command::{Command, Finished, find, shown_end};

/// What QEMU's tools say of a driver that they do not have.
pub(in crate::mover) const NO_DRIVER: &str = "Unknown driver";
/// The program, and the package that has it.
const PROGRAM: &str = "rbd";
const PACKAGE: &str = "ceph-common";
/// The program of that package that does not go on without a configuration, where it is looked for, and one that says nothing.
const ASKS_FOR_CONFIG: &str = "ceph";
const USUAL_CONFIG: &str = "/etc/ceph/ceph.conf";
const NO_CONFIG: &str = "/dev/null";

/// How long a cluster may take to let a client in, and how long to do one thing, before the program gives it up by itself.
const CLUSTER_SECONDS: u64 = 30;
/// How long the program may run in all for a small thing.
pub(super) const RUN_SECONDS_MAX: u64 = 2 * CLUSTER_SECONDS + 15;
/// How long a cluster goes on to name a client that was killed: its `osd_client_watch_timeout` of 30 s, and some.
pub(in crate::mover) const WATCHERS_GO: Duration = Duration::from_secs(45);
/// Pause between two looks.
const LOOK_AGAIN_SECONDS: u64 = 3;

/// `EPERM` as an exit status, which is that of many failures as well, and `EACCES`.
const NOT_PERMITTED: i32 = 1;
const DENIED: i32 = 13;
/// What programs and QEMU's tools say of either.
pub(in crate::mover) const DENIED_TEXTS: [&str; 2] = ["Operation not permitted", "Permission denied"];
/// `ENOENT` as an exit status, of the image and not of its pool.
const MISSING: i32 = 2;
const MISSING_IMAGE: &str = "error opening image";
/// A monitor does not take the key; where it is asked by both of its protocols the program goes on until it gives the cluster up.
const BAD_KEY: &str = "handle_auth_bad_method";

/// How long a tool of QEMU's may take to say whether it has a driver.
const ASK_SECONDS_MAX: u64 = 20;

/// What this host lacks for RBD images, each with the package that has it.
pub async fn missing() -> Vec<(&'static str, &'static str)> {
    // Where there is the driver, it fails for the configuration that there is not.
    let node = r#"json:{"driver":"rbd","pool":"none","image":"none","conf":"/dev/null/none"}"#;
    let asked = Command::new("qemu-img").args(["info", node]).run(Duration::from_secs(ASK_SECONDS_MAX)).await;
    let has_driver = asked.is_ok_and(|asked| !asked.stderr.contains(NO_DRIVER));
    let program = find(PROGRAM).is_none().then_some(("`rbd`", PACKAGE));
    program.into_iter().chain((!has_driver).then_some(("QEMU's RBD driver", "qemu-block-extra"))).collect()
}

impl Image {
    /// Nobody who may write has it open: `in_use_elsewhere`. Who only reads is not seen. A client that was killed,
    /// such as the one of a mover or of an instance, is given the time that the cluster takes to notice. `device` is the code of a
    /// failure that lies in the cluster.
    pub async fn must_be_unused(&self, device: Code) -> Result<(), Failure> {
        self.must_be_unused_within(device, WATCHERS_GO).await
    }

    /// Likewise, with so much time for one that was killed.
    pub async fn must_be_unused_within(&self, device: Code, limit: Duration) -> Result<(), Failure> {
        let until = Instant::now() + limit;
        loop {
            let watchers = self.watchers(device).await?;
            if watchers.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!("another process or host has the RBD image `{}` open", self.spec());
                let failure = Failure::new(Code::InUseElsewhere, text);
                return Err(watchers.iter().fold(failure, |failure, watcher| failure.caused_by(watcher.clone())));
            }
            sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await;
        }
    }

    /// Who has it open, a line each.
    async fn watchers(&self, device: Code) -> Result<Vec<String>, Failure> {
        let failed = || format!("cannot see who has the RBD image `{}` open", self.spec());
        let status = self.asked(&["status"], device, &failed).await?;
        let status = status.ok_or_else(|| Failure::new(device, failed()).caused_by("there is no such image"))?;
        watchers(&status).ok_or_else(|| Failure::new(Code::ImageToolFailed, failed()))
    }

    /// What the program answers to a question about the image; none where there is no such image.
    pub(super) async fn asked(
        &self,
        question: &[&str],
        device: Code,
        failed: &(dyn Fn() -> String + Sync),
    ) -> Result<Option<Value>, Failure> {
        let Some(answer) = self.answer(question, device, failed).await? else { return Ok(None) };
        let answer = serde_json::from_slice(&answer);
        answer.map(Some).map_err(|error| Failure::new(Code::ImageToolFailed, failed()).because(&error))
    }

    /// The same as it was said, of which there is only the end where it is long.
    pub(super) async fn answer(
        &self,
        question: &[&str],
        device: Code,
        failed: &(dyn Fn() -> String + Sync),
    ) -> Result<Option<Vec<u8>>, Failure> {
        let spec = self.spec();
        let arguments = [question, &["--format=json", &spec]].concat();
        let limit = Duration::from_secs(RUN_SECONDS_MAX);
        let finished = self.cluster.run(&arguments, limit, device, failed).await?;
        if finished.status.code() == Some(MISSING) && finished.stderr.contains(MISSING_IMAGE) {
            return Ok(None);
        }
        if !finished.status.success() {
            return Err(refused(&finished, device, failed()));
        }
        Ok(Some(finished.stdout))
    }

    /// Has the program change something, within that time. No error repeats what is `hidden`, the last argument.
    pub(super) async fn changed(
        &self,
        arguments: &[&str],
        hidden: Option<&str>,
        limit: Duration,
        failed: &(dyn Fn() -> String + Sync),
    ) -> Result<(), Failure> {
        let command = self.cluster.command(PROGRAM, failed)?.args(arguments);
        let command = hidden.into_iter().fold(command, Command::hidden_arg);
        let finished = command.run(limit).await.map_err(|error| error.failure(Code::VolumeIo, failed()))?;
        match finished.status.success() {
            true => Ok(()),
            false => Err(refused(&finished, Code::VolumeIo, failed())),
        }
    }
}

impl Cluster {
    /// Runs the program to its end.
    pub(super) async fn run(
        &self,
        arguments: &[&str],
        limit: Duration,
        device: Code,
        failed: &(dyn Fn() -> String + Sync),
    ) -> Result<Finished, Failure> {
        let run = self.command(PROGRAM, failed)?.args(arguments).run(limit).await;
        run.map_err(|error| error.failure(device, failed()))
    }

    /// One of Ceph's programs that knows its way to the cluster.
    pub(super) fn command(
        &self,
        program: &'static str,
        failed: &(dyn Fn() -> String + Sync),
    ) -> Result<Command, Failure> {
        match find(program) {
            Some(_) => Ok(Command::new(program).args(self.arguments(program))),
            None => Err(Failure::new(Code::DiskUnsupported, failed())
                .caused_by(format!("`{program}` is missing: install the package `{PACKAGE}`"))),
        }
    }

    /// By which the program finds the cluster and is let in, as QEMU does.
    fn arguments(&self, program: &str) -> Vec<String> {
        let Cluster { access, key } = self;
        let mut arguments = vec![
            format!("--client-mount-timeout={CLUSTER_SECONDS}"),
            format!("--rados-osd-op-timeout={CLUSTER_SECONDS}"),
            format!("--rados-mon-op-timeout={CLUSTER_SECONDS}"),
        ];
        let monitors = access.hosts.iter().map(|host| {
            let name = if host.name.contains(':') { format!("[{}]", host.name) } else { host.name.clone() };
            host.port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"))
        });
        let monitors = monitors.collect::<Vec<_>>().join(",");
        if !monitors.is_empty() {
            arguments.push(format!("--mon-host={monitors}"));
        }
        let config = access.config.as_ref().map(|path| path.display().to_string());
        // Without a configuration the others go on with what they were told, and this one does not.
        let config = config.or_else(|| (program == ASKS_FOR_CONFIG && !has_config()).then(|| NO_CONFIG.to_owned()));
        arguments.extend(config.map(|path| format!("--conf={path}")));
        arguments.extend(access.user.as_ref().map(|user| format!("--id={user}")));
        arguments.extend(key.as_ref().map(|key| format!("--keyfile={}", key.path().display())));
        arguments
    }
}

/// Whether the programs find a configuration by themselves.
fn has_config() -> bool {
    std::path::Path::new(USUAL_CONFIG).exists()
}

/// What the program failed for.
pub(super) fn refused(finished: &Finished, device: Code, text: String) -> Failure {
    let is_denied = match finished.status.code() {
        Some(DENIED) => true,
        Some(NOT_PERMITTED) => DENIED_TEXTS.iter().any(|text| finished.stderr.contains(text)),
        _ => false,
    };
    let code = if is_denied || finished.stderr.contains(BAD_KEY) { Code::VolumeDenied } else { device };
    Failure::new(code, text).caused_by(format!("{}: {}", finished.status, shown_end(&finished.stderr)))
}

/// The watchers in what `rbd status` says, which versions before 14 wrote as a map.
fn watchers(status: &Value) -> Option<Vec<String>> {
    let shown = |watcher: &Value| {
        let field = |name| watcher.get(name).map(Value::to_string).unwrap_or_default();
        format!("client {} at {}", field("client"), field("address"))
    };
    match status.get("watchers")? {
        Value::Array(list) => Some(list.iter().map(shown).collect()),
        Value::Object(map) => Some(map.values().map(shown).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use serde_json::json;

    use super::super::tests::source;
    use super::super::{Image, Keys};
    use super::*;
    use crate::model::network::{NetworkAccess, NetworkHost};

    #[test]
    fn whoever_has_it_open_is_found_in_what_each_version_says() {
        assert_eq!(watchers(&json!({"watchers": []})).unwrap(), Vec::<String>::new());
        let watcher = json!({"address": "192.0.2.1:0/15", "client": 4139, "cookie": 1});
        let expected = ["client 4139 at \"192.0.2.1:0/15\""];
        assert_eq!(watchers(&json!({"watchers": [watcher]})).unwrap(), expected);
        assert_eq!(watchers(&json!({"watchers": {"watcher": watcher}})).unwrap(), expected);
        assert_eq!(watchers(&json!({})), None);
    }

    #[test]
    fn a_key_that_is_not_taken_is_told_from_a_cluster_that_does_not_answer() {
        let code = |status: i32, stderr: &str| {
            let status = ExitStatus::from_raw(status << 8);
            let finished = Finished { status, stdout: Vec::new(), stderr: stderr.to_owned() };
            refused(&finished, Code::SourceReadFailed, String::new()).code
        };
        assert_eq!(code(13, "rbd: couldn't connect to the cluster!"), Code::VolumeDenied);
        assert_eq!(code(1, "rbd: error opening image: (1) Operation not permitted"), Code::VolumeDenied);
        assert_eq!(code(1, "rbd: too many arguments"), Code::SourceReadFailed);
        assert_eq!(
            code(110, "monclient(hunting): handle_auth_bad_method server allowed_methods [2]"),
            Code::VolumeDenied
        );
        assert_eq!(code(110, "rbd: couldn't connect to the cluster!"), Code::SourceReadFailed);
        assert_eq!(code(2, "(2) No such file or directory"), Code::SourceReadFailed);
    }

    #[test]
    fn the_cluster_is_found_by_what_the_definition_says_and_nothing_else() {
        let access = NetworkAccess {
            hosts: vec![
                NetworkHost { name: "mon1".into(), port: Some(6321) },
                NetworkHost { name: "::1".into(), port: None },
            ],
            user: Some("vm".into()),
            ..NetworkAccess::default()
        };
        let image = Image::of(&source("pool/image", access), &Keys::default()).unwrap();
        let arguments = image.cluster.arguments(PROGRAM);
        assert!(arguments.contains(&"--mon-host=mon1:6321,[::1]".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"--id=vm".to_owned()), "{arguments:?}");
        assert!(!arguments.iter().any(|one| one.contains("key") || one.contains("conf")), "{arguments:?}");
    }
}
