//! What a group of requests writes: a few statements of many rows each, in an order that doesn't depend on theirs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};

use super::decide::View;
use super::entry::{OutboxMessage, RunState, StoredMessage};
use crate::model::id::EventId;
use crate::model::job::RunKey;

/// Rows in one statement, which keeps it below SQLite's limit of 32766 parameters.
const ROWS_PER_STATEMENT_MAX: usize = 512;

/// A row to be written to the outbox.
pub(super) struct NewOutboxRow {
    pub(super) id: i64,
    pub(super) run_id: Option<i64>,
    pub(super) event_id: EventId,
    pub(super) message: OutboxMessage,
}

/// Everything that a group writes.
#[derive(Default)]
pub(super) struct Batch {
    /// Runs whose row is new or changed, by row id.
    pub(super) changed: BTreeMap<i64, RunKey>,
    pub(super) messages: Vec<(i64, StoredMessage)>,
    pub(super) records: Vec<(i64, u32, String)>,
    pub(super) kept: Vec<(i64, String, String)>,
    pub(super) tombstones: Vec<(RunKey, Timestamp, String)>,
    /// Outbox rows that the broker has confirmed.
    pub(super) delivered: Vec<i64>,
    /// Runs that ended.
    pub(super) ended: Vec<i64>,
    /// Runs of which a duplicate came, with the outbox id under which their last state event is sent again.
    pub(super) announced: Vec<(i64, i64)>,
    posted: BTreeMap<i64, NewOutboxRow>,
    /// The outbox id of each run's latest progress.
    progress: BTreeMap<i64, i64>,
}

impl Batch {
    /// Adds a row to the outbox; as the progress of a run it takes the place of an earlier one that was not sent.
    pub(super) fn post(&mut self, progress_of: Option<i64>, row: NewOutboxRow) {
        if let Some(run) = progress_of
            && let Some(earlier) = self.progress.insert(run, row.id)
        {
            self.posted.remove(&earlier);
        }
        self.posted.insert(row.id, row);
    }

    /// Whether it adds something to be sent.
    pub(super) fn posts(&self) -> bool {
        !self.posted.is_empty() || !self.announced.is_empty()
    }

    /// Writes it all. `view` holds the changed runs.
    pub(super) async fn write(self, view: &View, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.write_runs(view, connection).await?;
        insert(
            connection,
            "INSERT INTO messages (run_id, properties, body) ",
            &self.messages,
            |mut row, (id, message)| {
                row.push_bind(*id).push_bind(message.properties.to_string()).push_bind(message.body.as_slice());
            },
        )
        .await?;
        insert(
            connection,
            "INSERT INTO records (run_id, attempt, record) ",
            &self.records,
            |mut row, (id, attempt, record)| {
                row.push_bind(*id).push_bind(*attempt).push_bind(record.as_str());
            },
        )
        .await?;
        insert(connection, "INSERT INTO kept (run_id, name, value) ", &self.kept, |mut row, (id, name, value)| {
            row.push_bind(*id).push_bind(name.as_str()).push_bind(value.as_str());
        })
        .await?;
        let tombstones = "INSERT OR REPLACE INTO tombstones (job_id, run, until_ms, reason) ";
        insert(connection, tombstones, &self.tombstones, |mut row, (key, until, reason)| {
            row.push_bind(key.job_id.to_string()).push_bind(key.run);
            row.push_bind(until.as_millisecond()).push_bind(reason.as_str());
        })
        .await?;
        self.write_outbox(connection).await
    }

    async fn write_runs(&self, view: &View, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let runs: Vec<_> = self.changed.values().filter_map(|key| view.runs.get(key)).collect();
        let columns = "INSERT INTO runs (id, job_id, run, kind, instance, repository_id, urgent, digest, accepted_at_ms, \
                       state, not_before_ms, attempt, failures, crashes, sequence, outcome, ended_at_ms) ";
        let changes = " ON CONFLICT (id) DO UPDATE SET state = excluded.state, not_before_ms = excluded.not_before_ms, \
                       attempt = excluded.attempt, failures = excluded.failures, crashes = excluded.crashes, \
                       sequence = excluded.sequence, outcome = excluded.outcome, ended_at_ms = excluded.ended_at_ms";
        insert_or(connection, columns, changes, &runs, |mut row, run| {
            let (state, not_before, outcome) = match &run.state {
                RunState::Waiting { not_before } => ("waiting", *not_before, None),
                RunState::Running => ("running", None, None),
                RunState::Ended { outcome } => ("ended", None, Some(outcome.to_string())),
            };
            row.push_bind(run.id).push_bind(run.key.job_id.to_string()).push_bind(run.key.run);
            row.push_bind(run.kind.as_str()).push_bind(run.instance.as_str());
            row.push_bind(run.repository_id.to_string()).push_bind(run.urgent).push_bind(run.digest.as_slice());
            row.push_bind(run.accepted_at.as_millisecond()).push_bind(state);
            row.push_bind(not_before.map(Timestamp::as_millisecond));
            row.push_bind(run.attempt).push_bind(run.failures).push_bind(run.crashes);
            row.push_bind(i64::try_from(run.sequence).unwrap_or(i64::MAX)).push_bind(outcome);
            row.push_bind(run.ended_at.map(Timestamp::as_millisecond));
        })
        .await
    }

    async fn write_outbox(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let outdated: Vec<_> = self.progress.keys().copied().collect();
        for_ids(connection, "DELETE FROM outbox WHERE kind = 'progress' AND run_id IN ", &outdated).await?;
        let posted: Vec<_> = self.posted.values().collect();
        let columns = "INSERT INTO outbox (id, run_id, event_id, kind, sent, exchange, routing_key, properties, body) ";
        insert(connection, columns, &posted, |mut row, new| {
            let message = &new.message;
            row.push_bind(new.id).push_bind(new.run_id).push_bind(new.event_id.to_string());
            row.push_bind(message.kind.as_str()).push_bind(0_i64);
            row.push_bind(message.exchange.as_str()).push_bind(message.routing_key.as_str());
            row.push_bind(message.properties.to_string()).push_bind(message.body.as_slice());
        })
        .await?;
        let told = "UPDATE outbox SET sent = 1 WHERE kind IN ('state', 'final') AND id IN ";
        for_ids(connection, told, &self.delivered).await?;
        let done = "DELETE FROM outbox WHERE kind NOT IN ('state', 'final') AND id IN ";
        for_ids(connection, done, &self.delivered).await?;
        for_ids(connection, "DELETE FROM outbox WHERE sent = 1 AND kind = 'state' AND run_id IN ", &self.ended).await?;
        for (run, id) in &self.announced {
            announce(connection, *run, *id).await?;
        }
        Ok(())
    }
}

/// Sends the run's last state event once more, under a new place in the outbox, unless one is waiting there anyway.
async fn announce(connection: &mut SqliteConnection, run: i64, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE outbox SET id = ?, sent = 0 WHERE id = (SELECT max(id) FROM outbox WHERE run_id = ? \
         AND kind IN ('state', 'final')) AND sent = 1",
    )
    .bind(id)
    .bind(run)
    .execute(connection)
    .await?;
    Ok(())
}

type Bound<'a> = sqlx::query_builder::Separated<'a, Sqlite, &'static str>;

async fn insert<T>(
    connection: &mut SqliteConnection,
    columns: &'static str,
    rows: &[T],
    bind: impl FnMut(Bound<'_>, &T) + Copy,
) -> Result<(), sqlx::Error> {
    insert_or(connection, columns, "", rows, bind).await
}

async fn insert_or<T>(
    connection: &mut SqliteConnection,
    columns: &'static str,
    otherwise: &'static str,
    rows: &[T],
    bind: impl FnMut(Bound<'_>, &T) + Copy,
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(ROWS_PER_STATEMENT_MAX) {
        let mut statement = QueryBuilder::<Sqlite>::new(columns);
        statement.push_values(rows, bind).push(otherwise);
        // One row is the common case of a quiet worker; other numbers would only fill the cache of prepared statements.
        statement.build().persistent(rows.len() == 1).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn for_ids(connection: &mut SqliteConnection, statement: &'static str, ids: &[i64]) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids = serde_json::Value::from(ids).to_string();
    let mut statement = QueryBuilder::<Sqlite>::new(statement);
    statement.push("(SELECT value FROM json_each(").push_bind(ids).push("))");
    statement.build().execute(connection).await?;
    Ok(())
}
