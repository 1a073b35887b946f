//! One worker of its own for each test: host id, directories, configuration, repository, and a listener to all it says.
#![allow(dead_code)] // Each live target uses its own part.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::settings::BrokerSettings;
use longshore::broker::topology::JOBS_EXCHANGE;
use longshore::broker::{self, Broker, Outgoing};
use longshore::journal::JournalLook;
use longshore::message::event::{BackupSummary, Completed, Failed, HostDetail, RestoreSummary, RunDetail};
use longshore::message::job::{BackupPart, InstancePart, JobMessage, RestorePart, RetryPart, ValidatePart};
use longshore::message::{Encoding, RunEvent, encode_job};
use longshore::model::id::JobId;
use longshore::model::validation::Validation;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::heard::Heard;
use crate::lab::{LabInstance, eventually, libvirt_uri, variable};
use crate::share::{LONGSHORE, Share};
use crate::slate;

/// Longest time for a worker to be up, also under emulation.
pub const START: Duration = Duration::from_secs(60);
/// Longest time for a job that nothing holds up, on a machine with other things to do or under emulation.
pub const JOB: Duration = Duration::from_secs(180);

/// What the worker says goes here, in its folder.
const LOG: &str = "worker.log";
/// So much of it is shown when a test fails.
const LOG_LINES_SHOWN: usize = 150;

/// What a worker is started with, where it isn't the usual.
pub struct Settings {
    /// As an administrator.
    pub broker_uri: String,
    /// The broker's management API. The worker then is the host's own user, with the rights that `longshore broker setup` gives it,
    /// and else the administrator, who makes his queues himself.
    pub management_uri: Option<String>,
    /// Broker users whose control messages the worker obeys.
    pub controllers: Vec<String>,
    pub libvirt_uri: String,
    pub drain_seconds: u64,
    pub heartbeat_seconds: u64,
    pub stall_seconds: u64,
    /// What the worker finds in the place of mount.cifs.
    pub mount_helper: Option<PathBuf>,
    /// Where whoever starts the worker listens, as systemd does; it bears so many seconds of silence.
    pub listens: Option<(PathBuf, u64)>,
    /// What else is in the worker's environment.
    pub environment: Vec<(&'static str, PathBuf)>,
}

impl Default for Settings {
    fn default() -> Self {
        let (broker_uri, libvirt_uri) = (variable("LONGSHORE_LAB_AMQP_URI"), libvirt_uri());
        let management_uri = Some(variable("LONGSHORE_LAB_MANAGEMENT_URI"));
        Self {
            broker_uri,
            management_uri,
            controllers: Vec::new(),
            libvirt_uri,
            drain_seconds: 60,
            heartbeat_seconds: 1,
            stall_seconds: 60,
            mount_helper: None,
            listens: None,
            environment: Vec::new(),
        }
    }
}

/// A worker and its surroundings.
pub struct Fleet {
    pub host: String,
    pub folder: PathBuf,
    pub heard: Heard,
    broker: Arc<dyn Broker>,
    runtime: Runtime,
    worker: Option<Child>,
    settings: Settings,
}

impl Fleet {
    /// A worker for host `name`, which no other test may use.
    pub fn start(name: &str) -> Self {
        Self::with(name, Settings::default())
    }

    pub fn with(name: &str, settings: Settings) -> Self {
        let mut fleet = Self::without_worker(name, settings);
        fleet.start_worker();
        fleet
    }

    pub fn without_worker(name: &str, settings: Settings) -> Self {
        let host = format!("{name}-{}", std::process::id());
        let folder = free_folder(&PathBuf::from(variable("LONGSHORE_LAB_DIR")).join("fleet"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let uri = settings.broker_uri.parse().unwrap();
        let broker = broker::connect(BrokerSettings::new(uri, "test")).unwrap();
        let heard = runtime.block_on(Heard::listen(broker.as_ref(), &host));
        let fleet = Self { host, folder, heard, broker, runtime, worker: None, settings };
        fleet.configure(&fleet.settings);
        fleet
    }

    /// Writes the configuration for the worker's next start.
    pub fn configure(&self, settings: &Settings) {
        let Settings {
            broker_uri,
            management_uri,
            controllers,
            libvirt_uri,
            drain_seconds,
            heartbeat_seconds,
            stall_seconds,
            ..
        } = settings;
        let broker_uri = management_uri.as_ref().map_or_else(|| broker_uri.clone(), |at| self.secured(broker_uri, at));
        let (host, folder) = (&self.host, self.folder.display());
        // Where the instances of the laboratory have theirs.
        let volumes = format!("{}/guests", variable("LONGSHORE_LAB_DIR"));
        let text = format!(
            "host = \"{host}\"\n\
             [broker]\nuri = \"{broker_uri}\"\nheartbeat_seconds = 5\ncontrollers = {controllers:?}\n\
             [libvirt]\nuri = \"{libvirt_uri}\"\n\
             [worker]\nstate_dir = \"{folder}/state\"\nrun_dir = \"{folder}/run\"\nslots = 6\nheartbeat_seconds = {heartbeat_seconds}\n\
             drain_seconds = {drain_seconds}\n\
             [scratch]\ndir = \"{folder}/scratch\"\n\
             [credentials]\ndir = \"{folder}/credentials\"\n\
             [backup]\nsame_device_ok = true\nstall_seconds = {stall_seconds}\n\
             [restore]\ndirectories = [\"{volumes}\"]\n"
        );
        std::fs::write(self.config(), text).unwrap();
        // The broker's password is in it.
        std::fs::set_permissions(self.config(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Sets the broker up for the host; gives the URI of its user.
    fn secured(&self, broker_uri: &str, management_uri: &str) -> String {
        let password = self.set_up(management_uri, &["--host", &self.host], &self.host);
        format!("amqp://{}:{password}@{}", self.host, place(broker_uri))
    }

    /// Makes a broker user who may send control messages; gives its password.
    pub fn controller(&self, user: &str) -> String {
        let management_uri = self.settings.management_uri.as_ref().expect("a broker that is set up");
        self.set_up(management_uri, &["--controller", user], user)
    }

    /// Gives the password of `user`.
    fn set_up(&self, management_uri: &str, roles: &[&str], user: &str) -> String {
        let passwords = self.folder.join("passwords");
        let output = Command::new(LONGSHORE)
            .args(["broker", "setup", "--user", "guest", "--no-probe", "--new-passwords"])
            // A virtual host reaches the laboratory's broker from outside.
            .arg("--insecure")
            .args(roles)
            .arg("--passwords")
            .arg(&passwords)
            .args(["--management", &format!("http://{}", place(management_uri))])
            .env("LONGSHORE_MANAGEMENT_PASSWORD", "guest")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(passwords.join(user)).unwrap().trim().to_owned()
    }

    /// The worker's configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("worker.toml")
    }

    /// A repository on the same file system.
    pub fn share(&self) -> Share {
        Share::directory(self.folder.join("share"))
    }

    /// Starts the worker and waits until it takes jobs.
    pub fn start_worker(&mut self) {
        let before = self.heard.host_events();
        self.worker = Some(self.spawn_worker(LOG));
        let online = |event: &longshore::message::HostEvent| matches!(event.detail, HostDetail::Online(_));
        self.heard.of_host("the worker is online", START, before, online);
    }

    /// Another process with this configuration.
    pub fn spawn_worker(&self, log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.join(log)).unwrap();
        let mut command = match &self.settings.mount_helper {
            None => Command::new(LONGSHORE),
            // In a mount namespace of the worker's own, since it looks for helpers in the system's directories only.
            Some(helper) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /usr/sbin/mount.cifs && exec \"$@\""]);
                command.arg(helper).arg(LONGSHORE);
                command
            }
        };
        if let Some((socket, seconds)) = &self.settings.listens {
            command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", format!("{seconds}000000"));
        }
        command.envs(self.settings.environment.iter().map(|(name, value)| (name, value)));
        command
            .args(["worker", "--config"])
            .arg(self.config())
            // By its home `lab down` finds it, and its guards.
            .env("HOME", &self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// The command line of somebody who publishes and reads events.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_on_host(arguments);
        command.env("LONGSHORE__BROKER__URI", &self.settings.broker_uri);
        command
    }

    /// The command line, with this host's configuration.
    pub fn command_on_host(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LONGSHORE);
        command.args(arguments).env("LONGSHORE_CONFIG", self.config()).stdin(Stdio::null());
        command
    }

    /// A backup job of the usual sort, not yet published: no freeze, and pauses of a second between attempts.
    pub fn job(&self, instance: &LabInstance, share: &Share) -> JobMessage {
        JobMessage {
            job_id: JobId::draw().to_string(),
            run: 1,
            kind: "backup".to_owned(),
            host: self.host.clone(),
            instance: Some(InstancePart { id: None, name: Some(instance.name.clone()) }),
            repository: share.part(),
            backup: Some(BackupPart::default()),
            restore: None,
            restore_new: None,
            validate: None,
            delete: None,
            retry: Some(RetryPart { attempts: Some(3), first_pause_seconds: Some(1), longest_pause_seconds: Some(1) }),
            start_before: None,
            deadline_seconds: None,
            labels: Default::default(),
            requested_by: None,
        }
    }

    /// A restore of that backup, not yet published.
    pub fn restore_job(&self, instance: &LabInstance, share: &Share, backup: &BackupSummary) -> JobMessage {
        let restore = RestorePart { backup_id: backup.backup_id.to_string(), ..RestorePart::default() };
        JobMessage { kind: "restore".to_owned(), backup: None, restore: Some(restore), ..self.job(instance, share) }
    }

    /// A validation of the share, not yet published.
    pub fn validate_job(&self, share: &Share, validate: ValidatePart) -> JobMessage {
        JobMessage {
            job_id: JobId::draw().to_string(),
            run: 1,
            kind: "repo-validate".to_owned(),
            host: self.host.clone(),
            instance: None,
            repository: share.part(),
            backup: None,
            restore: None,
            restore_new: None,
            delete: None,
            validate: Some(validate),
            retry: Some(RetryPart { attempts: Some(3), first_pause_seconds: Some(1), longest_pause_seconds: Some(1) }),
            start_before: None,
            deadline_seconds: None,
            labels: Default::default(),
            requested_by: None,
        }
    }

    /// Publishes a job as any management server would.
    pub fn publish(&self, job: &JobMessage) -> JobId {
        let encoded = encode_job(job, Encoding::Json, Timestamp::now()).unwrap();
        let (properties, body) = (encoded.properties, encoded.body);
        let message = Outgoing { exchange: JOBS_EXCHANGE, routing_key: self.host.clone(), properties, body };
        self.runtime.block_on(self.broker.publisher().publish(message)).unwrap();
        job.job_id.parse().unwrap()
    }

    /// Publishes a job with that freeze policy.
    pub fn back_up(&self, instance: &LabInstance, share: &Share, quiesce: &str) -> JobId {
        let mut job = self.job(instance, share);
        job.backup = Some(BackupPart { quiesce: Some(quiesce.to_owned()), ..BackupPart::default() });
        self.publish(&job)
    }

    /// Waits for the job's good end, at which there is nothing to be warned of and nothing left.
    pub fn done(&self, job: JobId) -> Completed {
        match self.heard.end_of(job, JOB) {
            RunDetail::Completed(completed) => {
                assert_eq!((completed.warnings.as_slice(), completed.left_overs.as_slice()), (&[][..], &[][..]));
                completed
            }
            other => panic!("the job did not complete: {other:#?}"),
        }
    }

    /// The same, of a backup.
    pub fn completed(&self, job: JobId) -> BackupSummary {
        self.done(job).backup.expect("a backup job makes a backup")
    }

    /// The same, of a restore.
    pub fn restored(&self, job: JobId) -> RestoreSummary {
        *self.done(job).restore.expect("a restore says what it restored")
    }

    /// The same, of a validation.
    pub fn validated(&self, job: JobId) -> Validation {
        *self.done(job).validate.expect("a validation says what it found")
    }

    /// Waits for the job's bad end, which comes with a dead letter that says the same.
    pub fn failed(&self, job: JobId) -> Failed {
        match self.heard.end_of(job, JOB) {
            RunDetail::Failed(failed) => {
                let letter = self.heard.letter_of(job, JOB);
                assert_eq!((letter.failure, letter.attempts), (failed.failure.clone(), failed.attempts));
                failed
            }
            other => panic!("the job did not fail: {other:#?}"),
        }
    }

    /// Waits until the job has moved some of its bytes.
    pub fn is_copying(&self, job: JobId) {
        self.is_moving(job, "copy");
    }

    /// Waits until that step of the job has moved some of its bytes.
    pub fn is_moving(&self, job: JobId, step: &str) {
        assert!(self.moves_before_its_end(job, step), "the job has ended, and `{step}` was never seen to move bytes");
    }

    /// Waits until that step of the job has moved some of its bytes, or until the job has ended without that being told.
    pub fn moves_before_its_end(&self, job: JobId, step: &str) -> bool {
        let moves = |detail: &RunDetail| match detail {
            RunDetail::Progress(progress) => progress.step == step && progress.done_bytes > 0,
            _ => false,
        };
        let moves_or_ended = |event: &RunEvent| moves(&event.detail) || event.detail.is_final();
        let seen = self.heard.of_run(job, &format!("the job moves bytes in `{step}`"), JOB, moves_or_ended);
        moves(&seen.detail)
    }

    /// Its process id.
    pub fn worker_pid(&self) -> u32 {
        self.worker.as_ref().expect("a worker runs").id()
    }

    /// Sends the worker a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.worker_pid();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// As a power cut would, as far as a process can be.
    pub fn kill_worker(&mut self) {
        self.signal(Signal::SIGKILL);
        self.worker.take().unwrap().wait().unwrap();
    }

    /// Whether the worker has ended.
    pub fn worker_has_ended(&mut self) -> bool {
        self.worker.as_mut().expect("a worker was started").try_wait().unwrap().is_some()
    }

    /// Looks at the worker's journal, beside the worker.
    pub fn journal<T>(&self, look: impl AsyncFnOnce(JournalLook) -> T) -> T {
        self.runtime.block_on(async { look(JournalLook::open(&self.folder.join("state")).await.unwrap()).await })
    }

    /// Waits for the worker's end.
    pub fn worker_ends(&mut self, limit: Duration) -> ExitStatus {
        let mut worker = self.worker.take().expect("a worker runs");
        eventually("the worker ends", limit, || worker.try_wait().unwrap().is_some());
        worker.wait().unwrap()
    }

    /// Ends the worker politely, and looks whether host, journal and repository are as they should be.
    pub fn finish(mut self, instances: &[&LabInstance], shares: &[&Share]) {
        slate::instances_are_free(instances);
        self.signal(Signal::SIGTERM);
        let status = self.worker_ends(JOB);
        assert!(status.success(), "the worker ended with {status}");
        slate::host_is_clean(&self.folder, instances);
        self.runtime.block_on(slate::journal_is_settled(&self.folder.join("state")));
        for share in shares {
            slate::share_is_clean(share, instances);
        }
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Host and port of a URI.
fn place(uri: &str) -> &str {
    uri.rsplit(['@', '/']).find(|part| part.contains(':')).unwrap()
}

/// A folder that nobody has, with a short name: sockets lie below it.
fn free_folder(parent: &Path) -> PathBuf {
    std::fs::create_dir_all(parent).unwrap();
    let mut folders = (0..=999).map(|number| parent.join(format!("{number:03}")));
    let is_ours = |folder: &PathBuf| match std::fs::create_dir(folder) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => panic!("{}: {error}", folder.display()),
    };
    folders.find(is_ours).expect("a free number")
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.kill().unwrap();
            worker.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("the worker's files are kept in {}", self.folder.display());
            // In a virtual host they are gone with it.
            let said = std::fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
            let lines = said.lines().collect::<Vec<_>>();
            let last = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("the last it has said:\n{}", last.join("\n"));
        }
    }
}
