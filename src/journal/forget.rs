//! A person's word that a left-over is to be named no more, written beside a worker that may be at work on the journal.
//!
//! It stands with the left-over itself, and nothing else of the journal is changed: the worker, or the next one, says in its log what it
//! forgets and why, and then takes it out.

use std::path::Path;

use serde_json::Value;
use sqlx::{ConnectOptions, Connection};

use super::error::{JournalError, failed};
use super::open;
use crate::failure::Failure;

/// The field of a left-over with the reason to forget it, which no worker writes.
const FORGOTTEN: &str = "forgotten";

/// Why nothing was written down.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It cannot be written to.
    #[error("{0:#}")]
    Failed(Failure),
    /// It names no such left-over.
    #[error("the journal of this host names no such left-over; `longshore journal list` shows their names")]
    None,
}

/// Notes in the journal in `dir` that the left-over of that name is to be forgotten, and why. Nothing is removed from the host.
///
/// # Errors
/// There is no such left-over, or the journal cannot be opened or written to.
pub async fn forget_left_over(dir: &Path, name: &str, reason: &str) -> Result<(), ForgetError> {
    let path = dir.join(open::DATABASE);
    std::fs::metadata(&path).map_err(|source| JournalError::File { action: "find", path: path.clone(), source })?;
    let fail = |source| JournalError::Database { action: "open", path: path.clone(), source };
    let mut connection = open::writing(&path).connect().await.map_err(fail)?;
    open::identify(&mut connection, &path).await?;
    let noted = sqlx::query("UPDATE left_overs SET value = json_set(value, '$.' || ?, ?) WHERE name = ?")
        .bind(FORGOTTEN)
        .bind(reason)
        .bind(name)
        .execute(&mut connection)
        .await
        .map_err(|error| ForgetError::Failed(failed("write to", &error)))?;
    connection.close().await.map_err(|error| ForgetError::Failed(failed("close", &error)))?;
    if noted.rows_affected() == 0 { Err(ForgetError::None) } else { Ok(()) }
}

/// Why that left-over is to be forgotten, where it is.
pub fn forgotten(left_over: &Value) -> Option<&str> {
    left_over.get(FORGOTTEN).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::{Journal, JournalLook};
    use super::*;

    #[tokio::test]
    async fn one_is_forgotten_beside_its_worker_and_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let forget = |name: &'static str, why: &'static str| forget_left_over(dir.path(), name, why);
        assert!(matches!(forget("a", "why").await, Err(ForgetError::Journal(JournalError::File { .. }))));
        let journal = Journal::open(dir.path()).await.unwrap();
        let left = |name: &str| (name.to_owned(), json!({ "what": name }));
        journal.keep_left_overs(vec![left("a"), left("b"), left("c")]).await.unwrap();
        assert!(matches!(forget("d", "why").await, Err(ForgetError::None)));
        forget("a", "the \"pool\" is gone").await.unwrap();
        assert_eq!(journal.left_overs().await.unwrap(), [left("b"), left("c")]);
        let told = |name: &str, why: &str| (name.to_owned(), why.to_owned());
        assert_eq!(journal.forgotten_left_overs().await.unwrap(), [told("a", "the \"pool\" is gone")]);
        // What the worker writes meanwhile is written, and what it drops is gone.
        journal.keep_left_overs(vec![left("e")]).await.unwrap();
        journal.drop_left_overs(vec!["a".to_owned()]).await.unwrap();
        journal.close().await;
        forget("b", "why").await.unwrap();
        let mut look = JournalLook::open(dir.path()).await.unwrap();
        let seen: Vec<_> = look.left_overs().await.unwrap();
        let shown: Vec<_> = seen.iter().map(|(name, value)| (name.as_str(), forgotten(value))).collect();
        assert_eq!(shown, [("b", Some("why")), ("c", None), ("e", None)]);
    }
}
