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

#[tokio::test]
async fn the_log_is_folded_into_the_file_beside_the_commits() {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
    let (dir, journal) = journal().await;
    let bytes = || std::fs::metadata(dir.path().join("journal.sqlite")).unwrap().len();
    let (began, body) = (std::time::Instant::now(), "x".repeat(5000));
    let mut runs = 0;
    // Far fewer pages than those at which the writer does it.
    while bytes() < body.len() as u64 * 10 {
        assert!(began.elapsed() < LIMIT, "{} bytes are in the file after {runs} runs", bytes());
        if runs < 50 {
            runs += 1;
            journal.take(taken(RunKey { job_id: JobId::draw(), run: 1 }, &body)).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
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

#[tokio::test]
async fn a_commit_is_on_the_disk_before_it_is_answered() {
    let (_dir, file) = closed().await;
    let mut connection = open::writing(&file).connect().await.unwrap();
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await.unwrap();
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
    assert_eq!((synchronous, mode.as_str()), (2, "wal"), "2 is FULL");
}

/// Runs a statement behind the journal's back, as damage does.
async fn damage(dir: &TempDir, sql: &'static str) {
    let mut connection = open::writing(&dir.path().join("journal.sqlite")).connect().await.unwrap();
    assert!(sqlx::query(sql).execute(&mut connection).await.unwrap().rows_affected() > 0);
    sqlx::Connection::close(connection).await.unwrap();
}

#[tokio::test]
async fn a_run_that_cannot_be_read_fails_what_is_asked_of_it_and_nothing_else() {
    let (dir, journal) = journal().await;
    let (bad, good) = (key(1), key(1));
    journal.take(taken(bad, "a")).await.unwrap();
    journal.take(taken(good, "b")).await.unwrap();
    journal.close().await;
    damage(&dir, "UPDATE runs SET repository_id = 'scribble' WHERE id = 1").await;
    let journal = Journal::open(dir.path()).await.unwrap();
    assert_eq!(journal.open_runs().await.unwrap().iter().map(|run| run.key).collect::<Vec<_>>(), [good]);
    // In one group, since the writer is asked before it can begin.
    let asked = [bad, good].map(|key| journal.start_attempt(key, vec![]));
    let [of_bad, of_good] = futures_util::future::join_all(asked).await.try_into().unwrap();
    assert_eq!(of_bad.unwrap_err().code, Code::Internal, "trying again is no use");
    assert_eq!(of_good, Ok(1));
    assert_eq!(journal.take(taken(bad, "a")).await.unwrap_err().code, Code::Internal);
    assert_eq!(journal.take(taken(key(1), "c")).await.unwrap(), Admission::New);
}

/// The writer reads all runs of a job, and a damaged one of them is enough that it touches none.
#[tokio::test]
async fn a_run_that_cannot_be_told_anew_holds_up_none_behind_it() {
    let (dir, journal) = journal().await;
    let (bad, good) = (key(1), key(1));
    let beside_bad = RunKey { run: 2, ..bad };
    for key in [bad, beside_bad, good] {
        journal.take(taken(key, "a")).await.unwrap();
    }
    let sent = journal.next_batch(0, 64).await.unwrap().into_iter().map(|row| row.id).collect();
    journal.delivered(sent).await.unwrap();
    journal.close().await;
    damage(&dir, "UPDATE runs SET repository_id = 'scribble' WHERE id = 1").await;
    let journal = Journal::open(dir.path()).await.unwrap();
    let open: Vec<_> = journal.open_runs().await.unwrap().into_iter().map(|run| run.key).collect();
    assert_eq!(open, [beside_bad, good]);
    journal.announce_open().await.unwrap();
    let anew: Vec<_> = journal.next_batch(0, 64).await.unwrap().into_iter().map(|row| row.run).collect();
    assert_eq!(anew, [Some(good)]);
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_no_reason_to_try_again() {
    let (dir, journal) = journal().await;
    let key = key(1);
    journal.take(taken(key, "a")).await.unwrap();
    journal.keep(key, "backup_id", json!("x")).await.unwrap();
    let attempt = journal.start_attempt(key, vec![]).await.unwrap();
    journal.record(key, attempt, Record::Committing { step: "publish".to_owned() }).await.unwrap();
    journal.tombstone(key, now(), json!("not needed")).await.unwrap();
    journal.close().await;
    damage(&dir, "UPDATE records SET record = '{\"record\":\"of_a_later_version\"}'").await;
    damage(&dir, "UPDATE kept SET value = '{'").await;
    damage(&dir, "UPDATE messages SET properties = '{'").await;
    damage(&dir, "UPDATE tombstones SET reason = '{'").await;
    let journal = Journal::open(dir.path()).await.unwrap();
    let failures = [
        journal.records_of(key, attempt).await.map(drop),
        journal.kept(key).await.map(drop),
        journal.message(key).await.map(drop),
        journal.keep(key, "backup_id", json!("y")).await.map(drop),
    ];
    for failure in failures {
        assert_eq!(failure.unwrap_err().code, Code::Internal);
    }
    let open = journal.open_runs().await.unwrap();
    assert_eq!(open.first().unwrap().cancelled, Some(Value::Null), "it is cancelled, whatever the reason was");
    journal.settle(key, attempt, ended("internal"), vec![]).await.unwrap();
}

#[tokio::test]
async fn an_unsent_message_that_cannot_be_read_holds_up_none_behind_it() {
    let (dir, journal) = journal().await;
    for _ in 0..5 {
        journal.post(None, vec![row(MessageKind::Host, "online")]).await.unwrap();
    }
    journal.close().await;
    damage(&dir, "UPDATE outbox SET properties = '{' WHERE id < 5").await;
    let journal = Journal::open(dir.path()).await.unwrap();
    let ids = |rows: Vec<OutboxRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(journal.next_batch(0, 2).await.unwrap()), [5]);
    assert_eq!(ids(journal.unsent(vec![1, 5, 77]).await.unwrap()), [5]);
}

#[tokio::test]
async fn left_overs_are_kept_until_they_are_gone() {
    let (dir, journal) = journal().await;
    let named = |name: &str, what: &str| (name.to_owned(), json!(what));
    journal.keep_left_overs(vec![named("a", "mover"), named("b", "guard"), named("c", "socket")]).await.unwrap();
    journal.keep_left_overs(vec![named("a", "mover again")]).await.unwrap();
    journal.drop_left_overs(vec!["b".to_owned(), "unknown".to_owned()]).await.unwrap();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.left_overs().await.unwrap(), [named("c", "socket"), named("a", "mover again")]);
}

#[tokio::test]
async fn a_pause_is_kept_with_its_row_until_it_is_taken_back_whatever_is_pruned() {
    let (dir, journal) = journal().await;
    assert_eq!(journal.pause().await.unwrap(), None);
    let told = || vec![row(MessageKind::Host, "paused")];
    journal.keep_pause(Some(json!({ "reason": "a" })), told()).await.unwrap();
    journal.keep_pause(Some(json!({ "reason": "b" })), told()).await.unwrap();
    let at_once = Keep { rows: Duration::ZERO, keys: Duration::ZERO };
    journal.prune(now() + SignedDuration::from_hours(1), at_once).await.unwrap();
    let journal = reopened(&dir, journal).await;
    assert_eq!(journal.pause().await.unwrap(), Some(json!({ "reason": "b" })));
    assert_eq!(JournalLook::open(dir.path()).await.unwrap().pause().await.unwrap(), Some(json!({ "reason": "b" })));
    assert_eq!(journal.outbox_depth().await.unwrap(), 2);
    journal.keep_pause(None, vec![]).await.unwrap();
    assert_eq!(reopened(&dir, journal).await.pause().await.unwrap(), None);
}
