//! `qemu-nbd` processes of our own: one image on one private unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::failure::{Code, Failure};
use crate::mover::command::{Command, Finished, Running, shown_end};
use crate::mover::device;
use crate::mover::nbd::{ALLOCATION, Connection, DEPTH, DIRTY_BITMAP, Limits, NbdError};
use crate::mover::rbd;

/// How long a server may take to open its image; on a share, opening reads from it.
const START_DEADLINE_SECONDS: u64 = 60;
/// How often a starting server is tried.
const START_POLL_MILLISECONDS: u64 = 5;
/// How long a server may take to end; a writing one writes its metadata then.
const END_DEADLINE_SECONDS: u64 = 180;
/// How long one that broke a first connection off is waited for: one that can't open its image ends, and says why.
const BROKEN_OFF_SECONDS: u64 = 5;

/// Lets a server's allocator keep the memory of the requests that are done. As it comes, glibc gives each buffer of this size
/// back to the kernel, which zeroes it again for the next one: more than half of the CPU time of a server that reads.
const KEEPS_BUFFERS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "67108864"), ("MALLOC_TRIM_THRESHOLD_", "268435456")];

/// How a server goes through this host's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    /// Past it, with O_DIRECT.
    Direct,
    /// Through it, for file systems without O_DIRECT.
    Buffered,
}

impl Cache {
    /// QEMU's word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Cache::Direct => "none",
            Cache::Buffered => "writeback",
        }
    }
}

/// What a server says of its image besides what reads as zeros, as the second context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Besides<'a> {
    /// Nothing.
    Nothing,
    /// Which image of a chain has what ([`DEPTH`]).
    Depth,
    /// What was written to, by the bitmap of that name in the image.
    Changes(&'a str),
}

/// What is served.
#[derive(Debug)]
pub(super) struct Serve<'a> {
    /// QEMU's description of the image: options as in `blockdev-add`, which leaves no character of a path special.
    pub node: &'a Value,
    /// The file with the key that its storage asks for.
    pub key: Option<&'a Path>,
    /// Written to, with discards passed down; else read-only.
    pub writable: bool,
    /// Through the cache or past it.
    pub cache: Cache,
    /// What it says besides.
    pub besides: Besides<'a>,
    /// The code of a failure that lies in the image's storage.
    pub device: Code,
    /// The image, for errors.
    pub shown: String,
}

/// A server that runs; killed when dropped.
#[derive(Debug)]
pub(super) struct Server {
    running: Running,
    shown: String,
    device: Code,
}

impl Server {
    /// Starts a server on `socket`, which must not exist yet, and connects to it.
    pub(super) async fn start(serve: Serve<'_>, socket: &Path) -> Result<(Self, Connection), Failure> {
        let mode: &[&str] = if serve.writable { &["--discard=unmap"] } else { &["--read-only"] };
        let (besides, context) = match serve.besides {
            Besides::Nothing => (Vec::new(), None),
            Besides::Depth => (vec!["--allocation-depth"], Some(DEPTH.to_owned())),
            Besides::Changes(bitmap) => (vec!["--bitmap", bitmap], Some(format!("{DIRTY_BITMAP}{bitmap}"))),
        };
        let command = with_key(Command::new("qemu-nbd"), serve.key)
            .envs(&KEEPS_BUFFERS)
            .args(["--persistent", "--shared=1", "--cache", serve.cache.word(), "--socket"])
            .arg(socket)
            .args(mode)
            .args(&besides)
            .arg(pseudo_name(serve.node));
        let failed = format!("cannot serve {} with qemu-nbd", serve.shown);
        let running = command.start().map_err(|error| error.failure(Code::ImageToolFailed, &failed))?;
        let mut server = Self { running, shown: serve.shown, device: serve.device };
        let contexts: Vec<&str> = [ALLOCATION].into_iter().chain(context.as_deref()).collect();
        let deadline = Instant::now() + Duration::from_secs(START_DEADLINE_SECONDS);
        loop {
            match Connection::open(socket, "", &contexts, Limits::default()).await {
                Ok(connection) => return Ok((server, connection)),
                Err(error) if error.nobody_listens() && Instant::now() > deadline => {
                    return Err(error.failure(Code::ImageToolFailed, failed));
                }
                Err(error) if !error.nobody_listens() => {
                    // It listens before it has read all of its image, and ends when that fails.
                    let broken_off = matches!(error, NbdError::Socket { .. });
                    return Err(match broken_off && server.ended_within(BROKEN_OFF_SECONDS).await {
                        true => server.ended_early().await,
                        false => error.failure(Code::ImageToolFailed, failed),
                    });
                }
                Err(_) if server.running.has_ended() => return Err(server.ended_early().await),
                Err(_) => sleep(Duration::from_millis(START_POLL_MILLISECONDS)).await,
            }
        }
    }

    /// Ends it. For a writing server this is when it writes its last metadata, and the only place where it can say that it
    /// could not: on its stderr, for its status is 0 even then.
    pub(super) async fn end(self) -> Result<(), Failure> {
        let failed = format!("qemu-nbd did not end well on {}", self.shown);
        let ended = self.running.end(Duration::from_secs(END_DEADLINE_SECONDS)).await;
        let finished = ended.map_err(|error| error.failure(self.device, &failed))?;
        match complaint(&finished, self.device) {
            None => Ok(()),
            Some((code, words)) => Err(Failure::new(code, failed).caused_by(words)),
        }
    }

    async fn ended_within(&mut self, seconds: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !self.running.has_ended() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(START_POLL_MILLISECONDS)).await;
        }
        true
    }

    async fn ended_early(self) -> Failure {
        let failure = Failure::new(self.device, format!("qemu-nbd cannot open {}", self.shown));
        match self.running.finish(Duration::from_secs(END_DEADLINE_SECONDS)).await {
            Ok(finished) => failure.caused_by(shown_end(&finished.stderr)),
            Err(error) => failure.because(&error),
        }
    }
}

/// What QEMU's tools go on with after the warning that a program without bitmaps has written to an image.
const LEAKED: &str = "Some clusters may be leaked";

/// What an ended server has to complain about, and its code where trouble with the storage means `device`.
fn complaint(finished: &Finished, device: Code) -> Option<(Code, String)> {
    let harmless = |line: &&str| !(line.contains("warning:") || line.starts_with(LEAKED));
    let words: Vec<_> = finished.stderr.lines().filter(harmless).collect();
    if finished.status.success() && words.is_empty() {
        return None;
    }
    let full = words.iter().any(|line| line.contains("No space left") || line.contains("quota exceeded"));
    let code = if full { device::full(device) } else { device };
    Some((code, format!("{}: {}", finished.status, shown_end(&words.join("\n")))))
}

/// Lets one of QEMU's tools read the key that a node asks for from a file.
pub(super) fn with_key(command: Command, key: Option<&Path>) -> Command {
    match key {
        Some(key) => command.arg("--object").arg(rbd::object(key)),
        None => command,
    }
}

/// A node's description as a file name that every QEMU tool takes.
pub(super) fn pseudo_name(node: &Value) -> String {
    format!("json:{node}")
}

/// Sockets of one job, each with a name of its own.
#[derive(Debug)]
pub(in crate::mover) struct Sockets {
    directory: PathBuf,
    given: u32,
}

impl Sockets {
    /// In that private directory with a short path.
    pub(in crate::mover) fn new(directory: PathBuf) -> Self {
        Self { directory, given: 0 }
    }

    /// A path that none was given before. Short: the kernel takes 107 bytes.
    pub(super) fn next(&mut self) -> PathBuf {
        self.given += 1;
        self.directory.join(format!("nbd{}", self.given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_server_that_ends_with_status_0_but_could_not_write_is_heard() {
        let ended = |status: i32, stderr: &str| {
            let status = std::process::ExitStatus::from_raw(status << 8);
            complaint(&Finished { status, stdout: Vec::new(), stderr: stderr.to_owned() }, Code::RepositoryIo)
                .map(|c| c.0)
        };
        assert_eq!(ended(0, ""), None);
        assert_eq!(ended(0, "qemu-nbd: warning: something old is used"), None);
        assert_eq!(ended(0, "qemu-nbd: warning: a program wrote\nSome clusters may be leaked, run a check"), None);
        assert_eq!(ended(1, ""), Some(Code::RepositoryIo));
        assert_eq!(
            ended(0, "qemu-nbd: Failed to flush the L2 block cache: Input/output error"),
            Some(Code::RepositoryIo)
        );
        let full = "qemu-nbd: Failed to flush the refcount block cache: No space left on device";
        assert_eq!(ended(0, full), Some(Code::RepositoryFull));
    }
}
