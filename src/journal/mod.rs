//! The durable record of a worker: runs taken, records of their sagas, what was drawn once per run, and the outbox.
//!
//! It promises:
//! - an answer means durable: SQLite in WAL mode with `synchronous=FULL`, many requests in one commit, each answered after it;
//! - what belongs together is written together: a run with its `accepted` row, its end with the final event and the dead letter;
//! - exactly one end per run, and no attempt beside another;
//! - event ids and sequence numbers are given in the transaction that writes the row, and stay on every resend;
//! - a commit that fails (a full disk) is heard by everybody who waited for it, as `journal_failed`, and the next is tried afresh;
//! - one process at a time, in a folder closed to others; beside it a person may only say which left-over is to be forgotten.
//!
//! It deliberately doesn't understand messages: bodies come encoded, redacted and finished. It doesn't publish, retry or
//! decide what follows an attempt.
//!
//! ```text
//!                take                 start                    settle: ended
//!  (unknown) ──────────► waiting ───────────► running ────────────────────────► ended ──prune──► key only ──prune──► gone
//!                          ▲ │                   │                                ▲
//!                          │ └── settle: ended ──┼────────────────────────────────┘
//!                          └── settle: waiting ──┘
//! ```

mod batch;
mod decide;
mod entry;
mod error;
mod fold;
mod forget;
mod letters;
mod look;
mod open;
mod prune;
mod read;
mod request;
mod script;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::Value;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

pub use entry::{
    Admission, Counted, Draft, Keep, MessageKind, OpenRun, OutboxMessage, OutboxRow, Place, Pruned, RunState,
    Settlement, StoredMessage, Taken,
};
pub use error::JournalError;
pub use forget::{ForgetError, forget_left_over, forgotten};
pub use letters::{LettersAtEnd, WrittenLetter};
pub use look::{JournalLook, SeenRun, Unsent};
pub use prune::PRUNED_RUNS_MAX;
pub use writer::{GROUP_MAX, REQUESTS_WAITING_MAX};

use crate::failure::{Code, Failure};
use crate::model::id::InstallationId;
use crate::model::job::RunKey;
use crate::saga::Record;
use letters::Subjects;
use request::{Answer, Request};
use writer::{Command, Writer};

/// Name under which it is kept that the host is paused.
const PAUSE: &str = "pause";

/// A handle on the journal. Clones share one writer, which ends when the last is dropped. A failure has the code
/// [`Code::JournalFailed`] where the next try may work, and [`Code::Internal`] for a request that doesn't fit the run's state or
/// needs a row that can't be read.
#[derive(Clone)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
    reader: Arc<Mutex<SqliteConnection>>,
    lettered: Subjects,
    posted: watch::Receiver<i64>,
    installation: InstallationId,
    ended: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Journal {
    /// Opens the journal in `dir`, making both if they are missing. Has to be called on a tokio runtime, which then runs the writer.
    pub async fn open(dir: &Path) -> Result<Journal, JournalError> {
        let files = open::Files::hold(dir)?;
        let options = open::writing(&files.database);
        Self::assemble(files, options).await
    }

    async fn assemble(
        files: open::Files,
        options: sqlx::sqlite::SqliteConnectOptions,
    ) -> Result<Journal, JournalError> {
        let fail = |source| JournalError::Database { action: "open", path: files.database.clone(), source };
        let mut connection = options.connect().await.map_err(fail)?;
        let installation = open::prepare(&mut connection, &files.database).await?;
        let ids = read::next_ids(&mut connection).await.map_err(fail)?;
        // Not by the one that only reads: a journal that nobody has read from is folded into its file when it is closed.
        let lettered = Subjects::read(&mut connection).await.map_err(fail)?;
        let reader = open::reading(&files.database).connect().await.map_err(fail)?;
        let (sender, commands) = mpsc::channel(REQUESTS_WAITING_MAX);
        let (posted_sender, posted) = watch::channel(ids.outbox - 1);
        let (lock, path) = (files.lock, files.database);
        let (connection, open, posted_to) = (Some(connection), BTreeMap::new(), posted_sender);
        let (commits, to_fold) = watch::channel(());
        let beside = open::writing(&path).connect().await.map_err(|source| JournalError::Database {
            action: "open",
            path: path.clone(),
            source,
        })?;
        let folding = tokio::spawn(fold::fold(beside, to_fold));
        let writer = Writer { options, connection, ids, open, posted: posted_to, commits, folding, lock, path };
        let task = tokio::spawn(writer.write(commands));
        let (reader, ended) = (Arc::new(Mutex::new(reader)), Arc::new(Mutex::new(Some(task))));
        Ok(Journal { commands: sender, reader, lettered, posted, installation, ended })
    }

    /// The id of this life of the journal, drawn when it was made.
    pub fn installation(&self) -> InstallationId {
        self.installation
    }

    /// Resolves when the writer has ended though there are handles: it has died, and nothing is written any more.
    pub async fn died(&self) {
        self.commands.closed().await;
    }

    /// Waits until the writer has ended, which it does once every other handle is dropped; then another process can open it.
    pub async fn close(self) {
        let Journal { commands, ended, .. } = self;
        drop(commands);
        if let Some(task) = ended.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the journal's writer did not end in order");
        }
    }

    /// Takes a delivery. The broker may be told once this has returned.
    pub async fn take(&self, taken: Taken) -> Result<Admission, Failure> {
        match self.ask(Request::Take(Box::new(taken))).await? {
            Answer::Admission(admission) => Ok(admission),
            other => Err(strange(&other)),
        }
    }

    /// Begins the next attempt of a waiting run and gives its number. `rows` get the new attempt in their [`Place`].
    pub async fn start_attempt(&self, key: RunKey, rows: Vec<Draft>) -> Result<u32, Failure> {
        match self.ask(Request::Start { key, rows }).await? {
            Answer::Attempt(attempt) => Ok(attempt),
            other => Err(strange(&other)),
        }
    }

    /// Writes a record of the running attempt's saga.
    pub async fn record(&self, key: RunKey, attempt: u32, record: Record) -> Result<(), Failure> {
        self.ask(Request::Record { key, attempt, record }).await.map(drop)
    }

    /// Counts that the running attempt was cut off by the worker's end, and answers how many of the run's attempts have been. Asked
    /// before the attempt is unwound, so that an unwinding that the worker doesn't survive is counted as well.
    pub async fn cut_off(&self, key: RunKey, attempt: u32) -> Result<u32, Failure> {
        match self.ask(Request::CutOff { key, attempt }).await? {
            Answer::CutOffs(count) => Ok(count),
            other => Err(strange(&other)),
        }
    }

    /// Keeps a value that is drawn once per run, such as the backup id. The first one counts: it is returned, whatever is given later.
    pub async fn keep(&self, key: RunKey, name: &str, value: Value) -> Result<Value, Failure> {
        match self.ask(Request::Keep { key, name: name.to_owned(), value }).await? {
            Answer::Kept(value) => Ok(value),
            other => Err(strange(&other)),
        }
    }

    /// Settles the run's last attempt, or with 0 a run that was never started, and writes `rows` in the same transaction.
    pub async fn settle(
        &self,
        key: RunKey,
        attempt: u32,
        settlement: Settlement,
        rows: Vec<Draft>,
    ) -> Result<(), Failure> {
        self.settle_with(key, attempt, settlement, rows, LettersAtEnd::default()).await
    }

    /// The same, and notes in the same transaction what becomes of dead letters with the end of the run.
    pub async fn settle_with(
        &self,
        key: RunKey,
        attempt: u32,
        settlement: Settlement,
        rows: Vec<Draft>,
        letters: LettersAtEnd,
    ) -> Result<(), Failure> {
        letters.written.iter().for_each(|subject| self.lettered.note(subject));
        self.ask(Request::Settle { key, attempt, settlement, rows, letters }).await.map(drop)
    }

    /// Letters of a subject, and of earlier runs of the job that `by` is of, that were written before that moment and that nothing has
    /// superseded: the oldest first and at most `limit`. Some of them may have been dealt with since, of which a host hears nothing.
    pub async fn letters_of(
        &self,
        subject: &str,
        by: RunKey,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<WrittenLetter>, Failure> {
        if by.run <= 1 && !self.lettered.have(subject) {
            return Ok(Vec::new());
        }
        letters::written_before(&mut *self.reader.lock().await, subject, by, before, limit).await
    }

    /// The last events of an open run that are in the outbox still, at most `limit`: all that tell of its state, and progress that was not
    /// sent.
    pub async fn told(&self, key: RunKey, limit: u32) -> Result<Vec<StoredMessage>, Failure> {
        read::told(&mut *self.reader.lock().await, key, limit).await
    }

    /// Writes rows to the outbox in one transaction: with a key, messages of that run, else host events and letters.
    pub async fn post(&self, key: Option<RunKey>, rows: Vec<Draft>) -> Result<(), Failure> {
        self.ask(Request::Post { key, rows }).await.map(drop)
    }

    /// Puts the progress of a running attempt into the outbox, in place of an earlier one that was not sent. Doesn't wait, and says
    /// nothing when it is dropped because the journal is busy or the attempt has ended.
    pub fn progress(&self, key: RunKey, attempt: u32, row: Draft) {
        let (reply, _) = oneshot::channel();
        let _ = self.commands.try_send(Command { request: Request::Progress { key, attempt, row }, reply });
    }

    /// Unsent messages that stand after `after` in the outbox, at most `limit`. Start with 0; go on with the last id. One that
    /// cannot be read is logged and left out.
    pub async fn next_batch(&self, after: i64, limit: u32) -> Result<Vec<OutboxRow>, Failure> {
        read::unsent(&mut *self.reader.lock().await, after, limit).await
    }

    /// Those of these messages that are unsent still.
    pub async fn unsent(&self, ids: Vec<i64>) -> Result<Vec<OutboxRow>, Failure> {
        read::unsent_of(&mut *self.reader.lock().await, &ids).await
    }

    /// The highest id in the outbox so far; changes when there is something new to send.
    pub fn posted(&self) -> watch::Receiver<i64> {
        self.posted.clone()
    }

    /// The broker has confirmed these messages.
    pub async fn delivered(&self, ids: Vec<i64>) -> Result<(), Failure> {
        self.ask(Request::Delivered { ids }).await.map(drop)
    }

    /// How many messages wait to be sent.
    pub async fn outbox_depth(&self) -> Result<u64, Failure> {
        read::unsent_count(&mut *self.reader.lock().await).await
    }

    /// Runs that have not ended, in the order in which they were taken.
    pub async fn open_runs(&self) -> Result<Vec<OpenRun>, Failure> {
        read::open_runs(&mut *self.reader.lock().await).await
    }

    /// The message of a run; none if the run is unknown or pruned.
    pub async fn message(&self, key: RunKey) -> Result<Option<StoredMessage>, Failure> {
        read::message(&mut *self.reader.lock().await, key).await
    }

    /// The records of an attempt's saga, in order.
    pub async fn records_of(&self, key: RunKey, attempt: u32) -> Result<Vec<Record>, Failure> {
        read::records(&mut *self.reader.lock().await, key, attempt).await
    }

    /// Everything kept for a run.
    pub async fn kept(&self, key: RunKey) -> Result<BTreeMap<String, Value>, Failure> {
        read::kept(&mut *self.reader.lock().await, key).await
    }

    /// Remembers, at least until the given time, that a run is cancelled, whether or not it was taken yet.
    pub async fn tombstone(&self, key: RunKey, until: Timestamp, reason: Value) -> Result<(), Failure> {
        self.ask(Request::Tombstone { key, until, reason }).await.map(drop)
    }

    /// What [`Journal::tombstone`] was given for that run, if it is cancelled.
    pub async fn cancellation(&self, key: RunKey) -> Result<Option<Value>, Failure> {
        read::cancellation(&mut *self.reader.lock().await, key).await
    }

    /// Keeps what could not be removed from the host yet, by names; one that is kept already is replaced.
    pub async fn keep_left_overs(&self, left_overs: Vec<(String, Value)>) -> Result<(), Failure> {
        self.ask(Request::KeepLeftOvers { left_overs }).await.map(drop)
    }

    /// These left-overs are gone.
    pub async fn drop_left_overs(&self, names: Vec<String>) -> Result<(), Failure> {
        self.ask(Request::DropLeftOvers { names }).await.map(drop)
    }

    /// The left-overs that are kept, the oldest first, without those that are to be forgotten.
    pub async fn left_overs(&self) -> Result<Vec<(String, Value)>, Failure> {
        let mut left_overs = read::left_overs(&mut *self.reader.lock().await).await?;
        left_overs.retain(|(_, value)| forgotten(value).is_none());
        Ok(left_overs)
    }

    /// The names of those that are to be forgotten, each with a person's reason.
    pub async fn forgotten_left_overs(&self) -> Result<Vec<(String, String)>, Failure> {
        let left_overs = read::left_overs(&mut *self.reader.lock().await).await?;
        Ok(left_overs.into_iter().filter_map(|(name, value)| Some((name, forgotten(&value)?.to_owned()))).collect())
    }

    /// Sends the last state event of each open run once more, with the id that it had. One that has ended meanwhile sends its end, and one
    /// that is damaged is logged and left out: it would be so the next time as well.
    pub async fn announce_open(&self) -> Result<(), Failure> {
        let open = self.open_runs().await?;
        // As many at a time as share a commit.
        for group in open.chunks(GROUP_MAX) {
            let asked = group.iter().map(|run| self.ask(Request::Announce { key: run.key }));
            for (run, answer) in group.iter().zip(join_all(asked).await) {
                match answer {
                    Err(failure) if failure.code != Code::JournalFailed => {
                        tracing::error!(run = %run.key, failure = format!("{failure:#}"), "an open run is not told anew");
                    }
                    answer => _ = answer?,
                }
            }
        }
        Ok(())
    }

    /// Keeps that the host is paused, and why, or with none that it is not, and writes `rows` in the same transaction.
    pub async fn keep_pause(&self, pause: Option<Value>, rows: Vec<Draft>) -> Result<(), Failure> {
        self.ask(Request::KeepOfHost { name: PAUSE, value: pause, rows }).await.map(drop)
    }

    /// What [`Journal::keep_pause`] was given last.
    pub async fn pause(&self) -> Result<Option<Value>, Failure> {
        read::of_host(&mut *self.reader.lock().await, PAUSE).await
    }

    /// Takes away what ended long enough ago, at most [`PRUNED_RUNS_MAX`] runs at a time.
    pub async fn prune(&self, now: Timestamp, keep: Keep) -> Result<Pruned, Failure> {
        match self.ask(Request::Prune { now, keep }).await? {
            Answer::Pruned(pruned) => Ok(pruned),
            other => Err(strange(&other)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, Failure> {
        let gone = || Failure::new(Code::JournalFailed, "the journal's writer has ended");
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { request, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn strange(answer: &Answer) -> Failure {
    Failure::new(Code::Internal, format!("the journal gave an answer to another question: {answer:?}"))
}
