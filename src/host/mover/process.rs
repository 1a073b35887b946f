//! The real door: a mover is our own binary, started with the hidden subcommand, spoken to over its stdin and stdout.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{Mover, MoverName, Movers, Progress, Usage};
use crate::failure::{Code, Failure};
use crate::host::remains;
use crate::mover::protocol::{CredentialPlaces, DeviceNumbers, Reply, Request, SUBCOMMAND, ToMover, frame};

pub(super) mod exposed;
mod listener;
pub(super) mod sweep;
mod users;
use listener::{Heard, Listener};

/// A mover is up within this, or never: it mounts nothing but its own directory.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a mover may take to end by itself once its stdin is closed.
const GRACE: Duration = Duration::from_secs(2);
/// How long a killed one may take until it counts as one that can't die.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Requests on their way to the mover's stdin.
const FRAMES_WAITING_MAX: usize = 4;
/// `sun_path` of a unix socket address, without the zero at its end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What comes after a mover's directory in the path of its longest socket: `/sockets/`, a disk target and an ending.
const SOCKET_NAME_BYTES: usize = 9 + 16 + 12;
/// The environment that a mover gets; ours may hold the broker's password.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LONGSHORE_LOG", "RUST_BACKTRACE"];

/// Starts movers.
pub struct ProcessMovers {
    program: PathBuf,
    run_directory: PathBuf,
    credentials: CredentialPlaces,
}

impl ProcessMovers {
    /// `program` is our own binary (`/proc/self/exe` stays right when it is replaced on disk). Each mover gets a
    /// directory of its own in `run_directory`, which is this host id's alone and short: sockets lie below. Credentials
    /// are looked for in the places of `credentials`.
    pub fn new(program: PathBuf, run_directory: PathBuf, credentials: CredentialPlaces) -> Self {
        Self { program, run_directory, credentials }
    }
}

#[async_trait]
impl Movers for ProcessMovers {
    async fn start(&self, name: &MoverName) -> Result<Box<dyn Mover>, Failure> {
        let directory = self.run_directory.join(name.as_str());
        if directory.as_os_str().len() + SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX {
            let text = format!("`{}` is too long a path for sockets: shorten the run directory", directory.display());
            return Err(Failure::new(Code::HostUnfit, text));
        }
        let failed = |what: String, error: std::io::Error| Failure::new(Code::MoverDied, what).because(&error);
        make_private(&directory)
            .map_err(|error| failed(format!("cannot make the mover's directory `{}`", directory.display()), error))?;
        let mut command = Command::new(&self.program);
        command.arg(SUBCOMMAND).args([&directory, &self.credentials.dir, &self.credentials.host_key]);
        command.env_clear().current_dir("/");
        command.envs(KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("cannot start a mover from `{}`", self.program.display()), error))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(Code::Internal, "a mover was started without pipes"));
        };
        let (frames, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
        tokio::spawn(write_frames(stdin, waiting));
        let (listener, heard) = Listener::new(name);
        let mut mover = ProcessMover {
            name: name.clone(),
            directory,
            child,
            stopped: false,
            frames: Some(frames),
            asked: 0,
            heard,
            _listening: AbortOnDropHandle::new(tokio::spawn(listener.listen(stdout))),
        };
        mover.started().await?;
        Ok(Box::new(mover))
    }

    async fn unmount(&self, place: &Path) -> Result<(), Failure> {
        exposed::take_away(&self.program, place).await
    }

    async fn cut_off(&self, place: &Path) -> Result<bool, Failure> {
        exposed::cut_off(&self.program, place).await
    }

    async fn usage(&self, devices: &[DeviceNumbers], claimed_by: Option<&MoverName>) -> Result<Usage, Failure> {
        let claimer = claimed_by.map(|name| self.run_directory.join(name.as_str()));
        users::of(devices, claimer.as_deref()).await
    }

    async fn lives(&self, name: &MoverName) -> Result<bool, Failure> {
        let directory = self.run_directory.join(name.as_str());
        let failed = || Failure::new(Code::HostIo, "cannot look which movers live");
        match tokio::task::spawn_blocking(sweep::of_living_movers).await {
            Ok(Ok(living)) => Ok(living.contains(&directory)),
            Ok(Err(error)) => Err(failed().because(&error)),
            Err(error) => Err(failed().because(&error)),
        }
    }
}

/// A mover process.
struct ProcessMover {
    name: MoverName,
    directory: PathBuf,
    child: Child,
    stopped: bool,
    /// Dropped to close the mover's stdin.
    frames: Option<mpsc::Sender<Vec<u8>>>,
    asked: u64,
    heard: Heard,
    _listening: AbortOnDropHandle<()>,
}

impl ProcessMover {
    async fn started(&mut self) -> Result<(), Failure> {
        let started = timeout(START_LIMIT, self.heard.started()).await;
        let failure = match started {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(failure))) => failure,
            Ok(None) => self.died("it was started").await,
            Err(_) => self.unresponsive("be started", START_LIMIT),
        };
        // What it said is why it can't work; that it is gone afterwards is no news.
        let _stopped = self.stop().await;
        Err(failure)
    }

    async fn died(&mut self, when: &str) -> Failure {
        let text = format!("mover `{}` ended when {when}", self.name);
        let failure = Failure::new(Code::MoverDied, text);
        match timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) => failure.caused_by(status.to_string()),
            _ => failure.caused_by("its pipe was closed, the process is still there"),
        }
    }

    fn unresponsive(&self, what: &str, limit: Duration) -> Failure {
        let text = format!("mover `{}` (pid {}) did not {what} within {} s", self.name, self.pid(), limit.as_secs());
        Failure::new(Code::MoverUnresponsive, text)
    }

    fn pid(&self) -> String {
        self.child.id().map_or_else(|| "gone".to_owned(), |pid| pid.to_string())
    }

    /// The outer process kills the inner one on this signal and stays until everything inside is dead.
    fn kill_inside(&self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already is what is wanted.
            let _gone = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

#[async_trait]
impl Mover for ProcessMover {
    async fn ask(&mut self, request: Request, deadline: Duration) -> Result<Reply, Failure> {
        let until = Instant::now() + deadline;
        let word = request.word();
        self.asked += 1;
        let frame = frame::encode(&ToMover { id: self.asked, request })
            .map_err(|error| Failure::new(Code::Internal, format!("cannot ask a mover to {word}")).because(&error))?;
        let Some(frames) = self.frames.clone() else {
            return Err(Failure::new(
                Code::MoverDied,
                format!("mover `{}` was stopped before it was asked to {word}", self.name),
            ));
        };
        let answer = self.heard.expect(self.asked);
        let asked = timeout_at(until, async {
            // A closed pipe shows as an answer that never comes.
            let _closed = frames.send(frame).await;
            answer.await
        });
        match asked.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.died(&format!("it was asked to {word}")).await),
            Err(_) => Err(self.unresponsive(&format!("answer `{word}`"), deadline)),
        }
    }

    fn progress(&self) -> watch::Receiver<Progress> {
        self.heard.progress.clone()
    }

    fn lost(&mut self) -> Option<oneshot::Receiver<Failure>> {
        self.heard.lost.take()
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        if self.stopped {
            return Ok(());
        }
        self.frames = None;
        let mut ended = timeout(GRACE, self.child.wait()).await.is_ok();
        if !ended {
            self.kill_inside();
            ended = timeout(KILL_LIMIT, self.child.wait()).await.is_ok();
        }
        // Even one that can't die is not to be killed on drop: its outer process shows for how long it is still there.
        self.stopped = true;
        if !ended {
            let failure = self.unresponsive("die after it was killed", KILL_LIMIT);
            return Err(match self.child.id() {
                Some(pid) => failure.leaving(remains::of_process(pid, vec![self.directory.clone()])),
                None => failure,
            });
        }
        // Left behind it is an empty directory, for the sweep at the next start.
        let _kept = tokio::fs::remove_dir(&self.directory).await;
        Ok(())
    }
}

impl Drop for ProcessMover {
    fn drop(&mut self) {
        if !self.stopped {
            // The outer process goes last, so that one inside that can't die stays to be seen.
            self.kill_inside();
            // The mover's mount on it was in a namespace of its own, so that it is empty and free here.
            let _kept = std::fs::remove_dir(&self.directory);
        }
    }
}

/// Writes frames until nobody sends any, and then closes the mover's stdin by dropping it. A pipe that takes no more
/// belongs to a mover that hears nothing: the asker's deadline sees to that.
async fn write_frames(mut stdin: ChildStdin, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if stdin.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// One left by a mover that was killed is used again: it is empty, since what was in it was mounted on it. Made on the spot: on another
/// thread it would still come about when its start is not waited for any more, and nobody would remove it.
fn make_private(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
