//! The one task that writes: takes all requests that wait, decides on them, commits them together, then answers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::batch::Batch;
use super::decide::{NextIds, RunRow};
use super::entry::{Pruned, RunState};
use super::error::failed;
use super::prune;
use super::read::{self, Wanted};
use super::request::{Answer, Request};
use crate::failure::Failure;
use crate::model::job::RunKey;

/// Requests committed together.
pub const GROUP_MAX: usize = 256;
/// Requests that may wait; further callers wait for room.
pub const REQUESTS_WAITING_MAX: usize = 1024;

/// A request and where its answer goes.
pub(super) struct Command {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Answer, Failure>>,
}

/// The writer's state.
pub(super) struct Writer {
    pub(super) options: SqliteConnectOptions,
    /// None after a failed commit: a connection that failed is not trusted again, the next group opens another.
    pub(super) connection: Option<SqliteConnection>,
    pub(super) ids: NextIds,
    /// Runs that have not ended, as far as they were read or written; what is not in here is read.
    pub(super) open: BTreeMap<RunKey, RunRow>,
    /// The last outbox id that was committed.
    pub(super) posted: watch::Sender<i64>,
    /// Told of each commit.
    pub(super) commits: watch::Sender<()>,
    /// What is told; it ends when the sender is dropped.
    pub(super) folding: JoinHandle<()>,
    /// Held until the connections are closed.
    pub(super) lock: File,
    pub(super) path: PathBuf,
}

impl Writer {
    /// Writes until every handle is gone, then folds the log into the file and lets go of the lock.
    pub(super) async fn write(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while commands.recv_many(&mut group, GROUP_MAX).await > 0 {
            let (requests, replies): (Vec<_>, Vec<_>) =
                group.drain(..).map(|command| (command.request, command.reply)).unzip();
            match self.commit(requests).await {
                Ok(answers) => {
                    for (reply, answer) in replies.into_iter().zip(answers) {
                        // A caller that went away doesn't need its answer.
                        let _ = reply.send(answer);
                    }
                }
                Err(failure) => {
                    tracing::error!(path = %self.path.display(), failure = format!("{failure:#}"), "journal not written");
                    self.connection = None;
                    for reply in replies {
                        let _ = reply.send(Err(failure.clone()));
                    }
                }
            }
        }
        drop(self.commits);
        if let Err(error) = self.folding.await {
            tracing::warn!(%error, "what folds the journal's log ended in a panic");
        }
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(path = %self.path.display(), %error, "journal not closed in order");
        }
        drop(self.lock);
    }

    async fn commit(&mut self, group: Vec<Request>) -> Result<Vec<Result<Answer, Failure>>, Failure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(self.options.connect().await.map_err(|error| failed("reopen", &error))?),
        };
        let due = group.iter().find_map(|request| match request {
            Request::Prune { now, keep } => Some((*now, *keep)),
            _ => None,
        });
        // First, so that what is read after it is what is there.
        let pruned = match due {
            Some((now, keep)) => prune::prune(connection, now, keep).await.map_err(|error| failed("prune", &error))?,
            None => Pruned::default(),
        };
        // Outside of the transaction: nobody else writes what is read. A failure leaves nothing in `open`, and all is read again.
        let wanted = Wanted::by(&group, &self.open);
        let mut view = read::view(connection, wanted, std::mem::take(&mut self.open), self.ids).await?;
        let mut batch = Batch::default();
        let answers: Vec<_> = group.into_iter().map(|request| view.decide(request, pruned, &mut batch)).collect();
        let posts = batch.posts();
        batch.write(&view, connection).await.map_err(|error| failed("write to", &error))?;
        view.runs.retain(|_, run| !matches!(run.state, RunState::Ended { .. }));
        self.open = view.runs;
        self.ids = view.ids;
        self.commits.send_replace(());
        if posts {
            self.posted.send_replace(self.ids.outbox - 1);
        }
        Ok(answers)
    }
}
