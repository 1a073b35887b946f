//! Why a journal could not be opened.

use std::path::PathBuf;

use crate::failure::{Code, Failure};

/// Why a journal could not be opened. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error("the journal is in use by another process, as by a worker that is up (`{}` is locked)", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The folder or a file in it could not be made or read.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// SQLite could not open or read it.
    #[error("cannot {action} the journal `{}`", path.display())]
    Database {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// Its pages don't fit together.
    #[error(
        "the journal `{}` is damaged: {finding}; move it away to start with an empty one, which gives this worker a new \
         installation id", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite's check found.
        finding: String,
    },
    /// It is an SQLite file, but not ours.
    #[error("`{}` is not a journal of Longshore", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of Longshore wrote it.
    #[error("the journal `{}` has version {found}, and this program reads up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The latest that is known here.
        known: i64,
    },
}

/// A failure of the journal while it is open.
pub(super) fn failed(action: &str, source: &sqlx::Error) -> Failure {
    Failure::new(Code::JournalFailed, format!("cannot {action} the journal")).because(source)
}

/// A failure for a row that can't be read back. Trying again reads the same row, so it isn't one of those that are worth it.
pub(super) fn unreadable(what: &str) -> Failure {
    Failure::new(Code::Internal, format!("the journal holds an unreadable {what}"))
}
