//! The journal's files: who may read and open them, and what happens when they are damaged or the disk is full.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn its_folder_and_files_are_closed_to_others() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("state");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let journal = Journal::open(&dir).await.unwrap();
    journal.take(taken(key(1), "a")).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.iter().any(|path| path.ends_with("journal.sqlite-wal")), "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_has_closed() {
    let (dir, journal) = journal().await;
    let error = Journal::open(dir.path()).await.err().unwrap();
    assert!(matches!(error, JournalError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("journal.lock"), "{error}");
    reopened(&dir, journal).await;
}

/// A closed journal with some content, and the path of its file.
async fn closed() -> (TempDir, std::path::PathBuf) {
    let (dir, journal) = journal().await;
    for _ in 0..50 {
        journal.take(taken(key(1), &"x".repeat(5000))).await.unwrap();
    }
    journal.close().await;
    let file = dir.path().join("journal.sqlite");
    (dir, file)
}

async fn refusal(dir: &TempDir) -> String {
    let error = Journal::open(dir.path()).await.err().expect("it is refused");
    let text = error.to_string();
    assert!(text.contains("journal.sqlite"), "it names the file: {text}");
    text
}

#[tokio::test]
async fn a_torn_or_overwritten_file_is_refused_by_its_name() {
    let (dir, file) = closed().await;
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, whole.get(..whole.len() / 2).unwrap()).unwrap();
    refusal(&dir).await;
    let mut scribbled = whole.clone();
    scribbled.get_mut(4096..16384).unwrap().fill(0xa5);
    std::fs::write(&file, scribbled).unwrap();
    refusal(&dir).await;
    std::fs::write(&file, "this is not a database, but somebody's notes").unwrap();
    refusal(&dir).await;
    std::fs::write(&file, whole).unwrap();
    assert_eq!(Journal::open(dir.path()).await.unwrap().open_runs().await.unwrap().len(), 50);
}

#[tokio::test]
async fn a_database_of_another_program_or_a_later_version_is_refused() {
    let (dir, file) = closed().await;
    for (pragma, expected) in
        [("PRAGMA user_version = 99", "version 99"), ("PRAGMA application_id = 7", "not a journal")]
    {
        let mut connection = open::writing(&file).connect().await.unwrap();
        sqlx::query(pragma).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
        let text = refusal(&dir).await;
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn a_full_disk_is_heard_by_everybody_and_outlived() {
    let dir = tempfile::tempdir().unwrap();
    let files = open::Files::hold(dir.path()).unwrap();
    // SQLite answers as on a full disk when the file may not grow.
    let options = open::writing(&files.database).pragma("max_page_count", "100");
    let journal = Journal::assemble(files, options).await.unwrap();
    let mut taken_runs = Vec::new();
    let failure = loop {
        let key = key(1);
        match journal.take(taken(key, &"x".repeat(20_000))).await {
            Ok(_) => taken_runs.push(key),
            Err(failure) => break failure,
        }
        assert!(taken_runs.len() < 100, "the file never fills up");
    };
    assert_eq!(failure.code, Code::JournalFailed);
    let all = (0..20).map(|_| journal.take(taken(key(1), &"x".repeat(20_000))));
    let heard = futures_util::future::join_all(all).await;
    assert!(heard.iter().all(|answer| answer.as_ref().is_err_and(|failure| failure.code == Code::JournalFailed)));
    assert_eq!(journal.open_runs().await.unwrap().iter().map(|run| run.key).collect::<Vec<_>>(), taken_runs);
    // Room comes back with what is pruned.
    let first = *taken_runs.first().unwrap();
    journal.settle(first, 0, ended("cancelled"), vec![]).await.unwrap();
    let rows = journal.next_batch(0, 1000).await.unwrap();
    journal.delivered(rows.iter().map(|row| row.id).collect()).await.unwrap();
    let keep = Keep { rows: Duration::ZERO, keys: Duration::from_secs(600) };
    assert_eq!(journal.prune(now() + SignedDuration::from_secs(1), keep).await.unwrap().runs, 1);
    assert_eq!(journal.take(taken(key(1), &"x".repeat(10_000))).await.unwrap(), Admission::New);
}
