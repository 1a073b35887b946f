//! Which dead letters of this host a later success would supersede: of each run that ended in one, until a success has superseded it, or
//! the letter is older than keys of ended runs are kept. A run that was asked for again keeps its row: that the next one came does not
//! say that the letter has gone.
//!
//! The table came after the others, and is made wherever it is missing: an older version leaves it alone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::batch::Batch;
use super::error::failed;
use super::read::{key, parsed, readable};
use super::script::Script;
use crate::failure::Failure;
use crate::model::id::EventId;
use crate::model::job::RunKey;

/// The table, and the way to what is of one subject.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS letters (
    job_id        TEXT NOT NULL,
    run           INTEGER NOT NULL,
    letter_id     TEXT NOT NULL,
    subject       TEXT NOT NULL,
    written_at_ms INTEGER NOT NULL,
    PRIMARY KEY (job_id, run)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS letters_of_subject ON letters (subject, written_at_ms);
CREATE INDEX IF NOT EXISTS letters_by_age ON letters (written_at_ms);";

/// A letter that this host has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenLetter {
    /// The run that ended in it.
    pub key: RunKey,
    /// Its message id.
    pub letter_id: EventId,
}

/// What becomes of dead letters with the end of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LettersAtEnd {
    /// The subject of this run's letter, which is among the rows: a later success of the same subject supersedes it. None where it leaves no letter, or one that
    /// nothing supersedes.
    pub written: Option<String>,
    /// Letters that this run's success supersedes.
    pub superseded: Vec<RunKey>,
}

/// What a group changes.
#[derive(Default)]
pub(super) struct LetterChanges {
    pub(super) written: Vec<(WrittenLetter, String, Timestamp)>,
    /// Runs whose letter is superseded.
    pub(super) superseded: Vec<RunKey>,
}

impl Batch {
    /// A letter is superseded only once it has been read, so that none is written and superseded in one group.
    pub(super) fn write_letters(&self, script: &mut Script) {
        let written = "INSERT OR REPLACE INTO letters (job_id, run, letter_id, subject, written_at_ms) ";
        script.insert(written, &self.letters.written, |mut row, (letter, subject, at)| {
            row.push_bind(letter.key.job_id.to_string()).push_bind(letter.key.run);
            row.push_bind(letter.letter_id.to_string());
            row.push_bind(subject.as_str()).push_bind(at.as_millisecond());
        });
        script.for_runs("DELETE FROM letters WHERE (job_id, run) IN ", &self.letters.superseded);
    }
}

/// Makes the table where it is missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(TABLE).execute(connection).await.map(drop)
}

/// Subjects of which there is a letter, or was one since the journal was opened. Most successes are of none of them, and read nothing.
#[derive(Clone, Default)]
pub(super) struct Subjects(Arc<Mutex<HashSet<String>>>);

impl Subjects {
    /// Those in the journal.
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let all: Vec<String> = sqlx::query_scalar("SELECT DISTINCT subject FROM letters").fetch_all(connection).await?;
        Ok(Self(Arc::new(Mutex::new(all.into_iter().collect()))))
    }

    /// Notes one of which a letter is about to be written.
    pub(super) fn note(&self, subject: &str) {
        self.all().insert(subject.to_owned());
    }

    pub(super) fn have(&self, subject: &str) -> bool {
        self.all().contains(subject)
    }

    fn all(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first letters of a subject, and of earlier runs of that job, that were written before that moment, at most `limit`.
pub(super) async fn written_before(
    connection: &mut SqliteConnection,
    subject: &str,
    by: RunKey,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<WrittenLetter>, Failure> {
    let sql = "SELECT job_id, run, letter_id FROM letters WHERE written_at_ms < ? AND (subject = ? OR (job_id = ? AND run < ?)) \
               ORDER BY written_at_ms LIMIT ?";
    let query = sqlx::query(sql).bind(before.as_millisecond()).bind(subject);
    let query = query.bind(by.job_id.to_string()).bind(by.run).bind(limit);
    let rows = query.fetch_all(connection).await.map_err(|error| failed("read", &error))?;
    Ok(readable(&rows, |row| Ok(WrittenLetter { key: key(row, 0)?, letter_id: parsed(row, 2, "letter id")? })))
}

/// Forgets those that were written before that moment, milliseconds since 1970.
pub(super) async fn prune(connection: &mut SqliteConnection, before_ms: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM letters WHERE written_at_ms < ?").bind(before_ms).execute(connection).await.map(drop)
}
