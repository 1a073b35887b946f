//! Reading rows back.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::batch::HOST;
use super::decide::{NextIds, RunRow, View};
use super::entry::{MessageKind, OpenRun, OutboxMessage, OutboxRow, RunState, StoredMessage};
use super::error::{failed, unreadable};
use super::look::SeenRun;
use super::request::Request;
use crate::failure::Failure;
use crate::model::id::JobId;
use crate::model::job::RunKey;
use crate::saga::Record;

const RUN_COLUMNS: &str = "SELECT id, job_id, run, kind, instance, repository_id, urgent, digest, accepted_at_ms, state, \
                           not_before_ms, attempt, failures, crashes, sequence, outcome, ended_at_ms, held FROM runs ";

/// The numbers to go on with.
pub(super) async fn next_ids(connection: &mut SqliteConnection) -> Result<NextIds, sqlx::Error> {
    let sql = "SELECT (SELECT coalesce(max(id), 0) + 1 FROM runs), (SELECT coalesce(max(id), 0) + 1 FROM outbox)";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    Ok(NextIds { run: row.try_get(0)?, outbox: row.try_get(1)? })
}

/// What a group of requests needs to be decided on.
pub(super) struct Wanted {
    /// Jobs of which every run is to be read.
    jobs: BTreeSet<String>,
    /// Of these jobs the tombstones.
    tombstones: bool,
    /// Runs of which everything that was kept is to be read.
    kept: BTreeSet<RunKey>,
}

impl Wanted {
    /// What `group` needs beyond the runs in `open`, which are known. Whether a job is new only its rows can say.
    pub(super) fn by(group: &[Request], open: &BTreeMap<RunKey, RunRow>) -> Wanted {
        let mut wanted = Wanted { jobs: BTreeSet::new(), tombstones: false, kept: BTreeSet::new() };
        for request in group {
            let Some(key) = request.key() else { continue };
            let is_new = matches!(request, Request::Take(_));
            wanted.tombstones |= is_new;
            if is_new || !open.contains_key(&key) {
                wanted.jobs.insert(key.job_id.to_string());
            }
            if matches!(request, Request::Keep { .. }) {
                wanted.kept.insert(key);
            }
        }
        wanted
    }
}

/// Reads what is wanted, beside the runs in `open`.
pub(super) async fn view(
    connection: &mut SqliteConnection,
    wanted: Wanted,
    open: BTreeMap<RunKey, RunRow>,
    ids: NextIds,
) -> Result<View, Failure> {
    let mut view = View { ids, runs: open, ..View::default() };
    if !wanted.jobs.is_empty() {
        read_jobs(connection, &wanted, &mut view).await?;
    }
    let keys: BTreeMap<i64, RunKey> =
        wanted.kept.iter().filter_map(|key| Some((view.runs.get(key)?.id, *key))).collect();
    if !keys.is_empty() {
        let ids = serde_json::json!(keys.keys().collect::<Vec<_>>()).to_string();
        let sql = "SELECT run_id, name, value FROM kept WHERE run_id IN (SELECT value FROM json_each(?))";
        let rows = sqlx::query(sql).bind(ids).fetch_all(connection).await.map_err(|error| failed("read", &error))?;
        for row in &rows {
            let id: i64 = get(row, 0, "kept value")?;
            let Some(key) = keys.get(&id) else { continue };
            let value = get(row, 1, "kept value").and_then(|name| Ok((name, json(row, 2, "kept value")?)));
            match value {
                Ok((name, value)) => drop(view.kept.insert((*key, name), value)),
                Err(failure) => drop(view.unreadable_kept.insert(*key, failure)),
            }
        }
    }
    Ok(view)
}

async fn read_jobs(connection: &mut SqliteConnection, wanted: &Wanted, view: &mut View) -> Result<(), Failure> {
    let jobs = serde_json::json!(wanted.jobs).to_string();
    let sql = sqlx::AssertSqlSafe(format!("{RUN_COLUMNS} WHERE job_id IN (SELECT value FROM json_each(?))"));
    let rows =
        sqlx::query(sql).bind(&jobs).fetch_all(&mut *connection).await.map_err(|error| failed("read", &error))?;
    for row in &rows {
        match run(row) {
            Ok(run) => drop(view.runs.insert(run.key, run)),
            // Whatever is asked of its job cannot be decided; that is heard by who asks, and by nobody else in the group.
            Err(failure) => drop(view.unreadable_jobs.insert(get(row, 1, "run key")?, failure)),
        }
    }
    if wanted.tombstones {
        view.tombstones = tombstones(connection, &jobs).await?;
    }
    Ok(())
}

async fn tombstones(connection: &mut SqliteConnection, jobs: &str) -> Result<BTreeMap<RunKey, Value>, Failure> {
    let sql = "SELECT job_id, run, reason FROM tombstones WHERE job_id IN (SELECT value FROM json_each(?))";
    let rows = sqlx::query(sql).bind(jobs).fetch_all(connection).await.map_err(|error| failed("read", &error))?;
    // A cancellation counts even if its reason cannot be read.
    let read = |row: &SqliteRow| Ok((key(row, 0)?, json(row, 2, "tombstone").unwrap_or_default()));
    Ok(readable(&rows, read).into_iter().collect())
}

/// Why a run is cancelled, if it is.
pub(super) async fn cancellation(connection: &mut SqliteConnection, key: RunKey) -> Result<Option<Value>, Failure> {
    let job = serde_json::json!([key.job_id]).to_string();
    Ok(tombstones(connection, &job).await?.remove(&key))
}

/// Runs that have not ended, in the order in which they were taken. One that cannot be read is logged and left out.
pub(super) async fn open_runs(connection: &mut SqliteConnection) -> Result<Vec<OpenRun>, Failure> {
    let sql = sqlx::AssertSqlSafe(format!("{RUN_COLUMNS} WHERE state <> 'ended' ORDER BY id"));
    let rows = sqlx::query(sql).fetch_all(&mut *connection).await.map_err(|error| failed("read", &error))?;
    Ok(seen(connection, &rows).await?.into_iter().map(|seen| seen.run).collect())
}

/// Runs with what is known of their cancellation. One that cannot be read is logged and left out.
async fn seen(connection: &mut SqliteConnection, rows: &[SqliteRow]) -> Result<Vec<SeenRun>, Failure> {
    let runs = readable(rows, run);
    let jobs: BTreeSet<String> = runs.iter().map(|run| run.key.job_id.to_string()).collect();
    let tombstones = tombstones(connection, &serde_json::json!(jobs).to_string()).await?;
    let seen = runs.into_iter().map(|run| SeenRun {
        ended_at: run.ended_at,
        run: OpenRun {
            cancelled: tombstones.get(&run.key).cloned(),
            key: run.key,
            kind: run.kind,
            instance: run.instance,
            repository_id: run.repository_id,
            urgent: run.urgent,
            accepted_at: run.accepted_at,
            state: run.state,
            attempt: run.attempt,
            failures: run.failures,
            crashes: run.crashes,
        },
    });
    Ok(seen.collect())
}

/// The last runs, at most `limit`, in the order in which they were taken; those that have ended as far as they are wanted.
pub(super) async fn seen_runs(
    connection: &mut SqliteConnection,
    ended: bool,
    limit: u32,
) -> Result<Vec<SeenRun>, Failure> {
    let sql = sqlx::AssertSqlSafe(format!(
        "{RUN_COLUMNS} WHERE (state <> 'ended' OR ?) AND pruned_at_ms IS NULL ORDER BY id DESC LIMIT ?"
    ));
    let rows = sqlx::query(sql).bind(ended).bind(limit).fetch_all(&mut *connection).await;
    let rows = rows.map_err(|error| failed("read", &error))?;
    let mut runs = seen(connection, &rows).await?;
    runs.reverse();
    Ok(runs)
}

/// One run of a job, or its latest, unless it is unknown or pruned.
pub(super) async fn seen_run(
    connection: &mut SqliteConnection,
    job: JobId,
    run: Option<u32>,
) -> Result<Option<SeenRun>, Failure> {
    let sql = sqlx::AssertSqlSafe(format!(
        "{RUN_COLUMNS} WHERE job_id = ? AND run = coalesce(?, run) AND pruned_at_ms IS NULL ORDER BY run DESC LIMIT 1"
    ));
    let rows = sqlx::query(sql).bind(job.to_string()).bind(run).fetch_all(&mut *connection).await;
    let rows = rows.map_err(|error| failed("read", &error))?;
    Ok(seen(connection, &rows).await?.pop())
}

/// The message of a run, unless it is unknown or pruned.
pub(super) async fn message(connection: &mut SqliteConnection, key: RunKey) -> Result<Option<StoredMessage>, Failure> {
    let sql = "SELECT properties, body FROM messages JOIN runs ON runs.id = run_id WHERE job_id = ? AND run = ?";
    let query = sqlx::query(sql).bind(key.job_id.to_string()).bind(key.run);
    let row = query.fetch_optional(connection).await.map_err(|error| failed("read", &error))?;
    let read =
        |row: &SqliteRow| Ok(StoredMessage { properties: json(row, 0, "message")?, body: get(row, 1, "message")? });
    row.as_ref().map(read).transpose()
}

/// The last events of an open run, at most `limit`, from the first of them on: those of its state, sent or not, and its progress where
/// that was not sent.
pub(super) async fn told(
    connection: &mut SqliteConnection,
    of: RunKey,
    limit: u32,
) -> Result<Vec<StoredMessage>, Failure> {
    let sql = "SELECT properties, body FROM outbox JOIN runs ON runs.id = outbox.run_id \
               WHERE job_id = ? AND run = ? AND outbox.kind IN ('state', 'progress') ORDER BY outbox.id DESC LIMIT ?";
    let query = sqlx::query(sql).bind(of.job_id.to_string()).bind(of.run).bind(limit);
    let rows = query.fetch_all(connection).await.map_err(|error| failed("read the outbox of", &error))?;
    let read = |row: &SqliteRow| {
        Ok(StoredMessage { properties: json(row, 0, "outbox row")?, body: get(row, 1, "outbox row")? })
    };
    let mut messages = readable(&rows, read);
    messages.reverse();
    Ok(messages)
}

/// The records of an attempt, in order.
pub(super) async fn records(
    connection: &mut SqliteConnection,
    key: RunKey,
    attempt: u32,
) -> Result<Vec<Record>, Failure> {
    let sql = "SELECT record FROM records JOIN runs ON runs.id = run_id \
               WHERE job_id = ? AND run = ? AND records.attempt = ? ORDER BY records.id";
    let query = sqlx::query(sql).bind(key.job_id.to_string()).bind(key.run).bind(attempt);
    let rows = query.fetch_all(connection).await.map_err(|error| failed("read", &error))?;
    let read = |row: &SqliteRow| serde_json::from_value(json(row, 0, "record")?).map_err(|_| unreadable("record"));
    rows.iter().map(read).collect()
}

/// What was kept for a run.
pub(super) async fn kept(connection: &mut SqliteConnection, key: RunKey) -> Result<BTreeMap<String, Value>, Failure> {
    let sql = "SELECT name, value FROM kept JOIN runs ON runs.id = run_id WHERE job_id = ? AND run = ?";
    let query = sqlx::query(sql).bind(key.job_id.to_string()).bind(key.run);
    let rows = query.fetch_all(connection).await.map_err(|error| failed("read", &error))?;
    rows.iter().map(|row| Ok((get(row, 0, "kept value")?, json(row, 1, "kept value")?))).collect()
}

/// What is kept of the host itself under that name.
pub(super) async fn of_host(connection: &mut SqliteConnection, name: &str) -> Result<Option<Value>, Failure> {
    let query = sqlx::query("SELECT value FROM kept WHERE run_id = ? AND name = ?").bind(HOST).bind(name);
    let row = query.fetch_optional(connection).await.map_err(|error| failed("read", &error))?;
    row.as_ref().map(|row| json(row, 0, "kept value")).transpose()
}

const OUTBOX_COLUMNS: &str = "SELECT runs.job_id, runs.run, outbox.id, outbox.kind, exchange, routing_key, properties, \
                              body FROM outbox LEFT JOIN runs ON runs.id = outbox.run_id WHERE sent = 0 ";

/// Unsent messages after `after`, in order, at most `limit`. None only if there are no more that can be read.
pub(super) async fn unsent(
    connection: &mut SqliteConnection,
    after: i64,
    limit: u32,
) -> Result<Vec<OutboxRow>, Failure> {
    let mut after = after;
    loop {
        let sql = sqlx::AssertSqlSafe(format!("{OUTBOX_COLUMNS} AND outbox.id > ? ORDER BY outbox.id LIMIT ?"));
        let rows = sqlx::query(sql).bind(after).bind(limit).fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| failed("read the outbox of", &error))?;
        let readable = readable(&rows, outbox_row);
        match rows.last() {
            Some(last) if readable.is_empty() => after = get(last, 2, "outbox row")?,
            _ => return Ok(readable),
        }
    }
}

/// Those of these messages that are unsent, in order.
pub(super) async fn unsent_of(connection: &mut SqliteConnection, ids: &[i64]) -> Result<Vec<OutboxRow>, Failure> {
    let sql = sqlx::AssertSqlSafe(format!(
        "{OUTBOX_COLUMNS} AND outbox.id IN (SELECT value FROM json_each(?)) ORDER BY outbox.id"
    ));
    let rows = sqlx::query(sql).bind(serde_json::json!(ids).to_string()).fetch_all(connection).await;
    let rows = rows.map_err(|error| failed("read the outbox of", &error))?;
    Ok(readable(&rows, outbox_row))
}

/// The rows that can be read; the others are logged, and keep nobody from the good ones.
pub(super) fn readable<T>(rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> Result<T, Failure>) -> Vec<T> {
    let mut good = Vec::with_capacity(rows.len());
    for row in rows {
        match read(row) {
            Ok(value) => good.push(value),
            Err(failure) => tracing::error!(failure = format!("{failure:#}"), "a row of the journal is left alone"),
        }
    }
    good
}

/// The left-overs by their names, in the order in which they were kept.
pub(super) async fn left_overs(connection: &mut SqliteConnection) -> Result<Vec<(String, Value)>, Failure> {
    let rows = sqlx::query("SELECT name, value FROM left_overs ORDER BY rowid").fetch_all(connection).await;
    let rows = rows.map_err(|error| failed("read", &error))?;
    Ok(readable(&rows, |row| Ok((get(row, 0, "left-over")?, json(row, 1, "left-over")?))))
}

/// How many messages are unsent.
pub(super) async fn unsent_count(connection: &mut SqliteConnection) -> Result<u64, Failure> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE sent = 0")
        .fetch_one(connection)
        .await
        .map_err(|error| failed("read the outbox of", &error))?;
    Ok(count.unsigned_abs())
}

fn outbox_row(row: &SqliteRow) -> Result<OutboxRow, Failure> {
    let what = "outbox row";
    let of_run: Option<String> = get(row, 0, what)?;
    let kind: String = get(row, 3, what)?;
    let message = OutboxMessage {
        kind: MessageKind::from_text(&kind).ok_or_else(|| unreadable(what))?,
        exchange: get(row, 4, what)?,
        routing_key: get(row, 5, what)?,
        properties: json(row, 6, what)?,
        body: get(row, 7, what)?,
    };
    let run = of_run.map(|_| key(row, 0)).transpose()?;
    Ok(OutboxRow { id: get(row, 2, what)?, run, message })
}

fn run(row: &SqliteRow) -> Result<RunRow, Failure> {
    let what = "run";
    let state: String = get(row, 9, what)?;
    let state = match state.as_str() {
        "waiting" => RunState::Waiting { not_before: time(row, 10)?, held: get(row, 17, what)? },
        "running" => RunState::Running,
        "ended" => RunState::Ended { outcome: json(row, 15, what)? },
        _ => return Err(unreadable(what)),
    };
    let kind: String = get(row, 3, what)?;
    let repository_id: String = get(row, 5, what)?;
    let sequence: i64 = get(row, 14, what)?;
    Ok(RunRow {
        id: get(row, 0, what)?,
        key: key(row, 1)?,
        kind: serde_json::from_value(Value::String(kind)).map_err(|_| unreadable(what))?,
        instance: get(row, 4, what)?,
        repository_id: repository_id.parse().map_err(|_| unreadable(what))?,
        urgent: get(row, 6, what)?,
        digest: get(row, 7, what)?,
        accepted_at: time(row, 8)?.ok_or_else(|| unreadable(what))?,
        state,
        attempt: get(row, 11, what)?,
        failures: get(row, 12, what)?,
        crashes: get(row, 13, what)?,
        sequence: u64::try_from(sequence).map_err(|_| unreadable(what))?,
        ended_at: time(row, 16)?,
    })
}

pub(super) fn key(row: &SqliteRow, first: usize) -> Result<RunKey, Failure> {
    Ok(RunKey { job_id: parsed(row, first, "run key")?, run: get(row, first + 1, "run key")? })
}

pub(super) fn parsed<T: FromStr>(row: &SqliteRow, column: usize, what: &str) -> Result<T, Failure> {
    get::<String>(row, column, what)?.parse().map_err(|_| unreadable(what))
}

fn time(row: &SqliteRow, column: usize) -> Result<Option<Timestamp>, Failure> {
    let ms: Option<i64> = get(row, column, "time")?;
    ms.map(Timestamp::from_millisecond).transpose().map_err(|_| unreadable("time"))
}

fn json(row: &SqliteRow, column: usize, what: &str) -> Result<Value, Failure> {
    let text: String = get(row, column, what)?;
    serde_json::from_str(&text).map_err(|_| unreadable(what))
}

fn get<'r, T>(row: &'r SqliteRow, column: usize, what: &str) -> Result<T, Failure>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|error| unreadable(what).because(&error))
}
