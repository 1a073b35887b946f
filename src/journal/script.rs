//! The statements of one transaction, sent to SQLite's thread in one go: each trip there and back costs two changes of
//! thread, and a commit that is awaited alone would otherwise make seven of them.

use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};

use crate::model::job::RunKey;

/// Rows in one statement, which keeps it below SQLite's limit of 32766 parameters.
const ROWS_PER_STATEMENT_MAX: usize = 512;

/// A row of values being bound.
pub(super) type Bound<'a> = sqlx::query_builder::Separated<'a, Sqlite, &'static str>;

/// A transaction that is being written down.
pub(super) struct Script {
    sql: QueryBuilder<Sqlite>,
    empty: bool,
    /// No statement has more than one row: the common case of a quiet worker. Other numbers would only fill the cache of
    /// prepared statements.
    single: bool,
}

impl Script {
    /// One without statements.
    pub(super) fn new() -> Self {
        Self { sql: QueryBuilder::new("BEGIN IMMEDIATE; "), empty: true, single: true }
    }

    /// Adds rows.
    pub(super) fn insert<T>(&mut self, columns: &'static str, rows: &[T], bind: impl FnMut(Bound<'_>, &T) + Copy) {
        self.insert_or(columns, "", rows, bind);
    }

    /// Adds rows, or does what `otherwise` says with those that are there.
    pub(super) fn insert_or<T>(
        &mut self,
        columns: &'static str,
        otherwise: &'static str,
        rows: &[T],
        bind: impl FnMut(Bound<'_>, &T) + Copy,
    ) {
        self.single &= rows.len() <= 1;
        for rows in rows.chunks(ROWS_PER_STATEMENT_MAX) {
            self.statement(columns).push_values(rows, bind).push(otherwise).push("; ");
        }
    }

    /// Adds a statement that ends in `IN` for these ids, unless there are none.
    pub(super) fn for_ids(&mut self, statement: &'static str, ids: &[i64]) {
        if !ids.is_empty() {
            let ids = serde_json::Value::from(ids).to_string();
            self.statement(statement).push("(SELECT value FROM json_each(").push_bind(ids).push(")); ");
        }
    }

    /// Adds a statement that ends in `IN` for these names, unless there are none.
    pub(super) fn for_names(&mut self, statement: &'static str, names: &[&str]) {
        if !names.is_empty() {
            let names = serde_json::json!(names).to_string();
            self.statement(statement).push("(SELECT value FROM json_each(").push_bind(names).push(")); ");
        }
    }

    /// Adds a statement that ends in `IN` for these pairs of job id and run, unless there are none.
    pub(super) fn for_runs(&mut self, statement: &'static str, runs: &[RunKey]) {
        if !runs.is_empty() {
            let runs: Vec<_> = runs.iter().map(|key| serde_json::json!([key.job_id, key.run])).collect();
            let pairs = "(SELECT value ->> 0, value ->> 1 FROM json_each(";
            self.statement(statement).push(pairs).push_bind(serde_json::Value::from(runs).to_string()).push(")); ");
        }
    }

    /// Sends the run's last state event once more, under a new place in the outbox. One that was not marked as sent yet may go out
    /// twice, which its id makes harmless; whether it has been sent already is not known here.
    pub(super) fn announce(&mut self, run: i64, id: i64) {
        self.statement("UPDATE outbox SET sent = 0, id = ").push_bind(id);
        self.sql
            .push(" WHERE id = (SELECT max(id) FROM outbox WHERE run_id = ")
            .push_bind(run)
            .push(" AND kind IN ('state', 'final')); ");
    }

    fn statement(&mut self, begin: &'static str) -> &mut QueryBuilder<Sqlite> {
        self.empty = false;
        self.sql.push(begin)
    }

    /// Runs it. After an error the transaction may still be open: the connection is to be closed, which rolls it back.
    pub(super) async fn run(mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.empty {
            return Ok(());
        }
        self.sql.push("COMMIT");
        self.sql.build().persistent(self.single).execute(connection).await.map(drop)
    }
}
