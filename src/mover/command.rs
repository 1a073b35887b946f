//! Running the host's tools (`qemu-img`, `qemu-nbd`, `mount`): an argument vector and never a shell, an environment of
//! our own, a deadline, captured output with a bound, and the child killed when nobody waits for it any more.
//!
//! It does not decide what a failed tool means for the job: who runs it knows that.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::failure::{Code, Failure};

/// Most bytes kept of each of a tool's output streams, unless more was asked for; of more, the end is kept, which is where tools say what went wrong.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Most characters of a tool's stderr that are repeated in an error.
const SHOWN_CHARACTERS_MAX: usize = 2000;
/// How long a tool that has ended may still hold its output open (through a child of its own) before the rest of it is given up.
const OUTPUT_DRAIN_MILLISECONDS: u64 = 2000;
/// Where tools are looked for, whatever the worker was started with.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A tool that did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot start `{command}`")]
    Start {
        /// Program and arguments, secrets left out.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Waiting for it failed.
    #[error("cannot wait for `{command}`")]
    Wait {
        /// Program and arguments, secrets left out.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was killed at its deadline.
    #[error("`{command}` did not end within {} s and was killed", deadline.as_secs_f32())]
    Deadline {
        /// Program and arguments, secrets left out.
        command: String,
        /// The deadline.
        deadline: Duration,
    },
    /// It ended with another status than 0.
    #[error("`{command}` ended with {status}: {stderr}")]
    Ended {
        /// Program and arguments, secrets left out.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
}

impl CommandError {
    /// A failure with this error as its cause.
    pub fn failure(&self, code: Code, text: impl Into<String>) -> Failure {
        Failure::new(code, text).because(self)
    }
}

/// How a tool ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout, at most the last bytes, [`OUTPUT_BYTES_MAX`] as a rule.
    pub stdout: Vec<u8>,
    /// Its stderr, likewise, without what is not text.
    pub stderr: String,
}

/// Where a tool is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    TOOL_PATH.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

/// A tool with its arguments, not yet started.
#[derive(Debug)]
pub struct Command {
    program: String,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, &'static str)>,
    shown: String,
    stdout_bytes_max: usize,
}

impl Command {
    /// A tool by its name, looked for in the system's own directories only.
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            shown: program.to_owned(),
            stdout_bytes_max: OUTPUT_BYTES_MAX,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.extend(argument.as_ref().to_string_lossy().chars().flat_map(shown_character));
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Command::arg)
    }

    /// Adds an argument that no error may repeat.
    #[must_use]
    pub fn hidden_arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown.push_str(" ***");
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds variables to its environment, which otherwise has a path and the plain locale only.
    #[must_use]
    pub fn envs(mut self, variables: &[(&'static str, &'static str)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Keeps so many bytes of its stdout.
    #[must_use]
    pub fn keeping(self, stdout_bytes_max: usize) -> Self {
        Self { stdout_bytes_max, ..self }
    }

    /// Runs it to its end, whatever its status.
    pub async fn run(self, deadline: Duration) -> Result<Finished, CommandError> {
        self.run_at_most(deadline).await.map_err(|(error, _)| error)
    }

    /// The same, and does not answer before it is gone: one that does not die when it is killed, since it waits for a dead device, is waited for as
    /// long as that takes. For what is run again and again, of which there is to be one at a time.
    pub async fn run_until_gone(self, deadline: Duration) -> Result<Finished, CommandError> {
        match self.run_at_most(deadline).await {
            Ok(finished) => Ok(finished),
            Err((error, killed)) => {
                if let Some(mut killed) = killed {
                    let _ended = killed.wait().await;
                }
                Err(error)
            }
        }
    }

    /// With an error the child, which may still be there.
    async fn run_at_most(self, deadline: Duration) -> Result<Finished, (CommandError, Option<Box<Child>>)> {
        let stdout_bytes_max = self.stdout_bytes_max;
        let (mut child, shown) = self.spawn(Stdio::piped()).map_err(|error| (error, None))?;
        let stdout = child.stdout.take().map(|stream| read_on(stream, stdout_bytes_max));
        let stderr = child.stderr.take().map(|stream| read_on(stream, OUTPUT_BYTES_MAX));
        let status = match wait(&mut child, &shown, deadline).await {
            Ok(status) => status,
            Err(error) => return Err((error, Some(Box::new(child)))),
        };
        let stderr = String::from_utf8_lossy(&collect(stderr).await).trim_end().to_owned();
        Ok(Finished { status, stdout: collect(stdout).await, stderr })
    }

    /// Runs it to its end; any status but 0 is an error with the end of its stderr.
    pub async fn run_to_success(self, deadline: Duration) -> Result<Finished, CommandError> {
        let command = self.shown.clone();
        let finished = self.run(deadline).await?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(CommandError::Ended { command, status: finished.status, stderr: shown_end(&finished.stderr) })
    }

    /// Starts it as a server: it runs until it is told to end, and is killed when the returned value is dropped.
    pub fn start(self) -> Result<Running, CommandError> {
        let (mut child, shown) = self.spawn(Stdio::null())?;
        let stderr = child.stderr.take().map(|stream| read_on(stream, OUTPUT_BYTES_MAX));
        Ok(Running { child, shown, stderr })
    }

    fn spawn(self, stdout: Stdio) -> Result<(Child, String), CommandError> {
        let child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", TOOL_PATH)
            .env("LC_ALL", "C")
            .envs(self.environment.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(child) => Ok((child, self.shown)),
            Err(source) => Err(CommandError::Start { command: self.shown, source }),
        }
    }
}

/// A tool that runs as a server.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    stderr: Option<Reader>,
}

impl Running {
    /// Ends it with SIGTERM and waits; killed when it takes longer than `deadline`. For a server that had ended already,
    /// how it ended.
    pub async fn end(self, deadline: Duration) -> Result<Finished, CommandError> {
        // No pid means that its end was seen already; it cannot be another process, for nobody else waits for it.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ended_meanwhile =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        self.finish(deadline).await
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end without asking for it.
    pub async fn finish(mut self, deadline: Duration) -> Result<Finished, CommandError> {
        let status = wait(&mut self.child, &self.shown, deadline).await?;
        let stderr = String::from_utf8_lossy(&collect(self.stderr.take()).await).trim_end().to_owned();
        Ok(Finished { status, stdout: Vec::new(), stderr })
    }
}

async fn wait(child: &mut Child, shown: &str, deadline: Duration) -> Result<ExitStatus, CommandError> {
    match timeout(deadline, child.wait()).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(source)) => Err(CommandError::Wait { command: shown.to_owned(), source }),
        Err(_) => {
            // Only asked for: a child stuck behind a dead share does not die, and waiting for it would hang us too.
            let _ended_meanwhile = child.start_kill();
            Err(CommandError::Deadline { command: shown.to_owned(), deadline })
        }
    }
}

/// Reads a stream for as long as somebody wants what comes of it: a child that can't be killed, or one of its own, may hold its end for good.
type Reader = AbortOnDropHandle<Vec<u8>>;

fn read_on(stream: impl AsyncRead + Send + Unpin + 'static, bytes_max: usize) -> Reader {
    AbortOnDropHandle::new(tokio::spawn(keep_end(stream, bytes_max)))
}

async fn collect(stream: Option<Reader>) -> Vec<u8> {
    let Some(task) = stream else { return Vec::new() };
    match timeout(Duration::from_millis(OUTPUT_DRAIN_MILLISECONDS), task).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Reads to the end, so that the tool never blocks on a full pipe, and keeps the last bytes.
async fn keep_end(mut stream: impl AsyncRead + Unpin, bytes_max: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = vec![0; 8 * 1024];
    loop {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => kept.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
        // Dropped in large pieces, so that a chatty tool does not cost a move of the whole buffer a line.
        if kept.len() > 2 * bytes_max {
            kept.drain(..kept.len() - bytes_max);
        }
    }
    if kept.len() > bytes_max {
        kept.drain(..kept.len() - bytes_max);
    }
    kept
}

/// The end of a tool's words, on one line and without control characters, as it stands in errors.
pub fn shown_end(text: &str) -> String {
    let text = text.trim().replace('\n', "; ");
    let from = text.chars().count().saturating_sub(SHOWN_CHARACTERS_MAX);
    let shown: String = text.chars().skip(from).flat_map(shown_character).collect();
    if shown.is_empty() { "nothing on stderr".to_owned() } else { shown }
}

/// Control characters in file names and tools' texts must not reach terminals and logs as they are.
fn shown_character(character: char) -> impl Iterator<Item = char> {
    let (as_is, escaped) =
        if character.is_control() { (None, Some(character.escape_default())) } else { (Some(character), None) };
    as_is.into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn arguments_reach_the_tool_as_they_are() {
        let finished = Command::new("printf").args(["%s|", "a b", "$(id)", "c,d;'\""]).run(LONG).await.unwrap();
        assert_eq!(finished.stdout, b"a b|$(id)|c,d;'\"|");
    }

    #[tokio::test]
    async fn the_environment_is_ours_alone() {
        let finished = Command::new("env").run_to_success(LONG).await.unwrap();
        let mut names: Vec<_> = String::from_utf8(finished.stdout)
            .unwrap()
            .lines()
            .map(|l| l.split('=').next().unwrap().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn a_failed_tool_is_told_with_its_words_but_without_secrets() {
        let script = "echo 'no such share' >&2; exit 32";
        let error =
            Command::new("sh").args(["-c", script]).hidden_arg("hunter2").run_to_success(LONG).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 32") && text.contains("no such share"), "{text}");
        assert!(!text.contains("hunter2") && text.contains("***"), "{text}");
    }

    #[tokio::test]
    async fn a_tool_is_killed_at_its_deadline() {
        let started = std::time::Instant::now();
        let error = Command::new("sleep").arg("60").run(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        assert!(started.elapsed() < LONG);
    }

    /// What it started itself goes on, and finds that nobody reads any more.
    #[tokio::test]
    async fn nobody_reads_what_a_killed_tool_has_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let script = "trap '' PIPE; (while echo x; do sleep 0.01; done; touch \"$0\") 2>/dev/null & wait";
        let error = Command::new("sh").args(["-c", script]).arg(&told).run(Duration::from_secs(3)).await.unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        let gone = async {
            while !told.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, gone).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_is_waited_for_until_it_is_gone_is_gone_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let command = Command::new("sh").args(["-c", "echo $$ > \"$0\"; exec sleep 60"]).arg(&file);
        let error = command.run_until_gone(Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        let pid = std::fs::read_to_string(&file).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[tokio::test]
    async fn of_endless_output_the_end_is_kept() {
        let script = "yes 12345678 | head -c 5000000; echo the end";
        let finished = Command::new("sh").args(["-c", script]).run_to_success(LONG).await.unwrap();
        assert_eq!(finished.stdout.len(), OUTPUT_BYTES_MAX);
        assert!(finished.stdout.ends_with(b"the end\n"));
    }

    #[tokio::test]
    async fn a_server_is_killed_when_nobody_holds_it_any_more() {
        let running = Command::new("sleep").arg("60").start().unwrap();
        let pid = nix::unistd::Pid::from_raw(running.child.id().unwrap().try_into().unwrap());
        drop(running);
        let gone = async {
            while nix::sys::signal::kill(pid, None).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_ends_when_it_is_told_to() {
        let running = Command::new("sleep").arg("60").start().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&running.end(LONG).await.unwrap().status), Some(15));
    }
}
