//! Taking away what has ended.

use jiff::{SignedDuration, Timestamp};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::entry::{Keep, Pruned};
use super::letters;

/// Runs that one pruning takes away, so that the group that it is in stays short.
pub const PRUNED_RUNS_MAX: u32 = 500;

/// Prunes what is due at `now`, in a transaction of its own. A run with unsent messages stays whole.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    now: Timestamp,
    keep: Keep,
) -> Result<Pruned, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let pruned = take_away(&mut transaction, now, keep).await?;
    transaction.commit().await?;
    Ok(pruned)
}

async fn take_away(connection: &mut SqliteConnection, now: Timestamp, keep: Keep) -> Result<Pruned, sqlx::Error> {
    let before = |kept: std::time::Duration| {
        let kept = SignedDuration::try_from(kept).unwrap_or(SignedDuration::MAX);
        now.checked_sub(kept).unwrap_or(Timestamp::MIN).as_millisecond()
    };
    let due: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM runs WHERE state = 'ended' AND pruned_at_ms IS NULL AND ended_at_ms < ? \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE run_id = runs.id AND sent = 0) ORDER BY ended_at_ms LIMIT ?",
    )
    .bind(before(keep.rows))
    .bind(PRUNED_RUNS_MAX)
    .fetch_all(&mut *connection)
    .await?;
    for id in &due {
        for table in [
            "DELETE FROM outbox WHERE run_id = ?",
            "DELETE FROM records WHERE run_id = ?",
            "DELETE FROM kept WHERE run_id = ?",
            "DELETE FROM messages WHERE run_id = ?",
        ] {
            sqlx::query(table).bind(id).execute(&mut *connection).await?;
        }
        let marked = sqlx::query("UPDATE runs SET pruned_at_ms = ? WHERE id = ?").bind(now.as_millisecond()).bind(id);
        marked.execute(&mut *connection).await?;
    }
    letters::prune(connection, before(keep.keys)).await?;
    let keys = sqlx::query("DELETE FROM runs WHERE pruned_at_ms < ?").bind(before(keep.keys));
    let keys = keys.execute(&mut *connection).await?.rows_affected();
    let tombstones = sqlx::query(
        "DELETE FROM tombstones WHERE until_ms < ? AND NOT EXISTS \
         (SELECT 1 FROM runs WHERE runs.job_id = tombstones.job_id AND runs.run = tombstones.run AND state <> 'ended')",
    )
    .bind(now.as_millisecond());
    let tombstones = tombstones.execute(connection).await?.rows_affected();
    Ok(Pruned { runs: due.len() as u64, keys, tombstones })
}
