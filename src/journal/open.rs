//! Opening: the folder, the lock against a second opener, the database and its schema.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::error::JournalError;
use super::letters;
use crate::model::id::InstallationId;

/// Name of the database in the worker's state directory.
pub(super) const DATABASE: &str = "journal.sqlite";
const SCHEMA: &str = include_str!("schema.sql");
/// `PRAGMA user_version` of [`SCHEMA`].
const SCHEMA_VERSION: i64 = 1;
/// `PRAGMA application_id` of [`SCHEMA`], by which another program's database is told apart.
const APPLICATION_ID: i64 = 0x4c4f_4e52;
/// How long one connection waits for another: of this process, while the log is folded into the file, or of a person's command.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The write-ahead log is cut back to this once its content is in the file.
const LOG_SIZE_LIMIT_BYTES: &str = "67108864";

/// A journal's files, held against a second opener.
pub(super) struct Files {
    pub(super) database: PathBuf,
    pub(super) lock: File,
}

impl Files {
    /// Makes the folder (0700) and the files (0600) where they are missing, and takes the lock.
    pub(super) fn hold(dir: &Path) -> Result<Files, JournalError> {
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::File { action, path, source }
        };
        // Only the folder itself is ours to close: others may have to pass what is above it.
        if let Some(above) = dir.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(fail("make the folder above", dir))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail("make the folder", dir))?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))
            .map_err(fail("close to others the folder", dir))?;
        let open = |name: &str| {
            let path = dir.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            file.map_err(fail("open", &path)).map(|file| (file, path))
        };
        let (lock, lock_path) = open("journal.lock")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path: lock_path }),
            Err(TryLockError::Error(source)) => return Err(fail("lock", &lock_path)(source)),
        }
        // SQLite gives its -wal and -shm files the mode of the database.
        let (_, database) = open(DATABASE)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail("sync the folder", dir))?;
        Ok(Files { database, lock })
    }
}

/// Pages of the log from which on the writer folds it into the file itself: 32 MiB, more than comes up within a second or two of
/// what folds it beside the writer.
const LOG_PAGES_MAX: &str = "8192";

/// How the one connection that writes is opened.
pub(super) fn writing(database: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", LOG_SIZE_LIMIT_BYTES)
        .pragma("wal_autocheckpoint", LOG_PAGES_MAX)
        .foreign_keys(false)
        .disable_statement_logging()
}

/// How the connection that only reads is opened.
pub(super) fn reading(database: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(false)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}

/// Checks the database, or fills an empty one, and says which installation it belongs to.
pub(super) async fn prepare(connection: &mut SqliteConnection, path: &Path) -> Result<InstallationId, JournalError> {
    let fail = |action| move |source| JournalError::Database { action, path: path.to_owned(), source };
    let tables = number(connection, "SELECT count(*) FROM sqlite_schema").await.map_err(fail("read"))?;
    if tables == 0 && marks(connection, path).await? == (0, 0) {
        create(connection).await.map_err(fail("make"))?;
    }
    let installation = identify(connection, path).await?;
    letters::prepare(connection).await.map_err(fail("make"))?;
    Ok(installation)
}

/// The marks by which a journal is known: application id and version.
async fn marks(connection: &mut SqliteConnection, path: &Path) -> Result<(i64, i64), JournalError> {
    let fail = |source| JournalError::Database { action: "read", path: path.to_owned(), source };
    let application = number(connection, "PRAGMA application_id").await.map_err(fail)?;
    Ok((application, number(connection, "PRAGMA user_version").await.map_err(fail)?))
}

/// Checks the database, and says which installation it belongs to.
pub(super) async fn identify(connection: &mut SqliteConnection, path: &Path) -> Result<InstallationId, JournalError> {
    let fail = |action| move |source| JournalError::Database { action, path: path.to_owned(), source };
    match marks(connection, path).await? {
        (APPLICATION_ID, SCHEMA_VERSION) => {}
        (APPLICATION_ID, found) => {
            return Err(JournalError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION });
        }
        _ => return Err(JournalError::Foreign { path: path.to_owned() }),
    }
    let finding: String =
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await.map_err(fail("check"))?;
    if finding != "ok" {
        return Err(JournalError::Damaged { path: path.to_owned(), finding });
    }
    let text: String = sqlx::query_scalar("SELECT installation_id FROM installation")
        .fetch_one(connection)
        .await
        .map_err(fail("read the installation id of"))?;
    text.parse().map_err(|error| fail("read the installation id of")(sqlx::Error::Decode(Box::new(error))))
}

async fn number(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query(sql).fetch_one(connection).await?.try_get(0)
}

async fn create(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
    sqlx::query("INSERT INTO installation (only, installation_id, created_at_ms) VALUES (1, ?, ?)")
        .bind(InstallationId::draw().to_string())
        .bind(Timestamp::now().as_millisecond())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
