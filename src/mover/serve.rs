//! The request loop of a mover: requests in on stdin, answers and notices out on stdout.
//!
//! The loop itself never blocks: everything that touches a file system runs on the blocking pool, so that the end of
//! stdin, the word that nobody is interested any more, and the lease's counter are always heard.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::mount::MsFlags;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::protocol::{FromMover, Notice, Reply, ToMover, frame};
use super::session::{Places, SOCKETS, Session};
use crate::failure::{Code, Failure};

/// Requests that wait for the one under way; a worker has one at a time, and may lose interest in a few.
const REQUESTS_WAITING_MAX: usize = 8;
/// Notices that wait to be written.
const NOTICES_WAITING_MAX: usize = 8;
/// Shortest time between two progress notices.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Threads for calls that block; those stuck behind a dead share stay taken.
const BLOCKING_THREADS_MAX: usize = 64;
/// Room for sockets and the mount point.
const OWN_DIRECTORY_OPTIONS: &str = "mode=0700,size=1m";

/// Serves until stdin ends. Needs namespaces of its own: it mounts over its directory.
pub(super) fn run(places: Places) -> Result<ExitCode, Failure> {
    prepare(&places.directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(|error| Failure::new(Code::Internal, "the mover cannot start its runtime").because(&error))?;
    let served = runtime.block_on(serve(places));
    if let Err(error) = served {
        tracing::error!(error = &error as &dyn std::error::Error, "the mover cannot talk to its worker");
    }
    // Not by dropping the runtime, which would wait for threads that are stuck.
    std::process::exit(0)
}

/// A directory that exists on the host becomes a private one: what is made in it is seen by nobody else, needs no
/// sweeping, and goes with the mover.
fn prepare(directory: &Path) -> Result<(), Failure> {
    let failed = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::MountFailed, format!("the mover cannot {what} `{}`", directory.display())).because(error)
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("longshore"), directory, Some("tmpfs"), flags, Some(OWN_DIRECTORY_OPTIONS))
        .map_err(|errno| failed("take its own directory", &errno))?;
    std::fs::create_dir(directory.join(SOCKETS)).map_err(|error| failed("make sockets in", &error))
}

async fn serve(places: Places) -> Result<(), frame::FrameError> {
    let (requests_in, mut requests) = mpsc::channel(REQUESTS_WAITING_MAX);
    tokio::spawn(read_requests(requests_in));
    let (notices_in, mut notices) = mpsc::channel(NOTICES_WAITING_MAX);
    let (progress_in, progress) = watch::channel(None);
    let mut session = Session::new(places, notices_in, progress_in);
    let mut out = Out { stdout: tokio::io::stdout(), progress };
    out.send(&FromMover::Started(Ok(()))).await?;
    let mut next: Option<ToMover> = None;
    loop {
        let asked = match next.take() {
            Some(asked) => asked,
            None => tokio::select! {
                asked = requests.recv() => match asked {
                    Some(asked) => asked,
                    None => return Ok(()),
                },
                Some(notice) = notices.recv() => {
                    out.send(&FromMover::Notice(notice)).await?;
                    continue;
                }
            },
        };
        let broken_off = CancellationToken::new();
        let result = {
            let mut work = std::pin::pin!(session.serve(asked.request, &broken_off));
            let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    Some(notice) = notices.recv() => out.send(&FromMover::Notice(notice)).await?,
                    _ = ticks.tick() => out.progress().await?,
                    newer = requests.recv(), if next.is_none() => match newer {
                        Some(newer) => {
                            broken_off.cancel();
                            next = Some(newer);
                        }
                        None => return Ok(()),
                    },
                }
            }
        };
        out.answer(asked.id, result).await?;
    }
}

/// Reads requests until stdin ends or makes no sense; then the worker is gone or mad, and there is nothing left to do.
async fn read_requests(requests: mpsc::Sender<ToMover>) {
    let mut stdin = tokio::io::stdin();
    loop {
        match frame::read::<ToMover>(&mut stdin).await {
            Ok(Some(request)) => {
                if requests.send(request).await.is_err() {
                    return;
                }
            }
            Ok(None) => std::process::exit(0),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot understand the worker");
                std::process::exit(1)
            }
        }
    }
}

struct Out {
    stdout: tokio::io::Stdout,
    progress: watch::Receiver<Option<Notice>>,
}

impl Out {
    async fn send(&mut self, frame: &FromMover) -> Result<(), frame::FrameError> {
        let bytes = frame::encode(frame)?;
        self.stdout.write_all(&bytes).await.map_err(frame::FrameError::Pipe)?;
        self.stdout.flush().await.map_err(frame::FrameError::Pipe)
    }

    async fn progress(&mut self) -> Result<(), frame::FrameError> {
        if self.progress.has_changed().unwrap_or(false) {
            let latest = self.progress.borrow_and_update().clone();
            if let Some(notice) = latest {
                self.send(&FromMover::Notice(notice)).await?;
            }
        }
        Ok(())
    }

    /// The last progress always comes before its answer.
    async fn answer(&mut self, id: u64, result: Result<Reply, Failure>) -> Result<(), frame::FrameError> {
        self.progress().await?;
        match self.send(&FromMover::Answer { id, result }).await {
            Err(frame::FrameError::TooLong { bytes }) => {
                let failure = Failure::new(Code::Internal, format!("the mover's answer has {bytes} bytes"));
                self.send(&FromMover::Answer { id, result: Err(failure) }).await
            }
            sent => sent,
        }
    }
}
