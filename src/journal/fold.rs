//! Folds the write-ahead log back into the database, beside the writer: SQLite's own way is to do it within the commit that makes
//! the log long, and whoever waits for that commit then waits for every page of it to be on the disk.

use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::watch;
use tokio::time::sleep;

/// Shortest time between two foldings.
const PAUSE: Duration = Duration::from_secs(1);

/// Folds what was committed whenever `commits` changes, until its sender is gone. Nobody waits for it and it holds up nobody; a log
/// that grows faster than it is folded is folded by the writer (`open::writing`).
pub(super) async fn fold(mut connection: SqliteConnection, mut commits: watch::Receiver<()>) {
    while commits.changed().await.is_ok() {
        // Not at the end, which folds everything anyway.
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = ended(&mut commits) => break,
        }
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await {
            tracing::debug!(%error, "the journal's log is not folded back yet");
        }
    }
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection to the journal was not closed in order");
    }
}

async fn ended(commits: &mut watch::Receiver<()>) {
    while commits.changed().await.is_ok() {}
}
