//! The journal for people: what is in it, read beside a worker that may be at work on it. Nothing of it is changed, and nobody is kept
//! from it; SQLite may make its files for sharing the log anew.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnection;

use super::entry::{OpenRun, StoredMessage};
use super::error::JournalError;
use super::{open, read};
use crate::failure::Failure;
use crate::model::id::{InstallationId, JobId};
use crate::model::job::RunKey;
use crate::saga::Record;

/// A run, whether it has ended or not.
#[derive(Clone, Debug)]
pub struct SeenRun {
    /// What is known of it.
    pub run: OpenRun,
    /// When it ended, if it has.
    pub ended_at: Option<Timestamp>,
}

/// A message that waits to be sent.
#[derive(Clone, Debug)]
pub struct Unsent {
    /// Its place in the outbox.
    pub id: i64,
    /// Its run, unless it is about the host.
    pub run: Option<RunKey>,
    /// Its routing key.
    pub routing_key: String,
}

/// An open journal.
pub struct JournalLook {
    connection: SqliteConnection,
    installation: InstallationId,
}

impl JournalLook {
    /// Opens the journal in `dir`.
    ///
    /// # Errors
    /// There is none, it is not ours, damaged, or of a later version.
    pub async fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(open::DATABASE);
        std::fs::metadata(&path).map_err(|source| JournalError::File { action: "find", path: path.clone(), source })?;
        let fail = |source| JournalError::Database { action: "open", path: path.clone(), source };
        let mut connection = open::reading(&path).connect().await.map_err(fail)?;
        let installation = open::identify(&mut connection, &path).await?;
        Ok(Self { connection, installation })
    }

    /// The life of the journal.
    pub fn installation(&self) -> InstallationId {
        self.installation
    }

    /// The last runs, at most `limit`, in the order in which they were taken; with `ended` also those that have ended.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn runs(&mut self, ended: bool, limit: u32) -> Result<Vec<SeenRun>, Failure> {
        read::seen_runs(&mut self.connection, ended, limit).await
    }

    /// One run of a job, or its latest; none if there is none, or it was taken away since it ended long ago.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn run(&mut self, job: JobId, run: Option<u32>) -> Result<Option<SeenRun>, Failure> {
        read::seen_run(&mut self.connection, job, run).await
    }

    /// Its message.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn message(&mut self, key: RunKey) -> Result<Option<StoredMessage>, Failure> {
        read::message(&mut self.connection, key).await
    }

    /// What an attempt of it has written down.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn records(&mut self, key: RunKey, attempt: u32) -> Result<Vec<Record>, Failure> {
        read::records(&mut self.connection, key, attempt).await
    }

    /// What was kept for it.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn kept(&mut self, key: RunKey) -> Result<BTreeMap<String, Value>, Failure> {
        read::kept(&mut self.connection, key).await
    }

    /// Messages that wait to be sent, at most `limit`.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn unsent(&mut self, limit: u32) -> Result<Vec<Unsent>, Failure> {
        let rows = read::unsent(&mut self.connection, 0, limit).await?;
        Ok(rows
            .into_iter()
            .map(|row| Unsent { id: row.id, run: row.run, routing_key: row.message.routing_key })
            .collect())
    }

    /// How many wait.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn unsent_count(&mut self) -> Result<u64, Failure> {
        read::unsent_count(&mut self.connection).await
    }

    /// What is kept of the host's pause, if it is paused.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn pause(&mut self) -> Result<Option<Value>, Failure> {
        read::of_host(&mut self.connection, super::PAUSE).await
    }

    /// What could not be removed from the host yet, also what is [to be forgotten](super::forgotten).
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn left_overs(&mut self) -> Result<Vec<(String, Value)>, Failure> {
        read::left_overs(&mut self.connection).await
    }
}
