//! The lulls of a soak, in which everything comes to its end, and what has to be so then.

use std::time::Duration;

use longshore::journal::JournalLook;
use longshore::message::{Control, Resume};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::wishes::{RUNNING, SHARES, on, sweeping};
use super::{Soak, key};

/// What the journal's log has at most: SQLite begins to fold it back at 4 MiB.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// What is kept of an ended run for as long as late duplicates are to be recognised.
const KEY_BYTES_MAX: u64 = 1 << 10;

impl Soak {
    /// All is well for a while: everything comes to its end, and nothing is left.
    pub async fn lull(&mut self) {
        self.make_good().await;
        self.fleet.movers.heal();
        self.fleet.hypervisor.heal();
        self.fleet.command(&Control::Resume(Resume::default())).await;
        self.knock().await;
        self.until_open(0).await;
        // The next one sweeps what a call did that came back late, and prunes the journal.
        self.fleet.stop().await;
        self.fleet.start().await;
        self.knock().await;
        self.until_open(0).await;
        self.until_nothing_is_left().await;
        self.until_all_is_told().await;
        self.account.read(&self.fleet.events);
        self.account.assert_settled(&self.fleet);
        assert_eq!(self.fleet.witness.offences(), [] as [String; 0]);
        let sizes = self.journal_bytes().await;
        self.sizes.push(sizes);
    }

    /// Has every repository swept, and backed up to by somebody who is not held back, which shows those that work again.
    pub async fn knock(&mut self) {
        self.knocks.clear();
        for (share, name) in SHARES.iter().zip(RUNNING) {
            for job in [sweeping(&self.fleet, share), on(&self.fleet, share, self.fleet.job(name))] {
                self.account.asks(key(&job), job.clone());
                self.knocks.push(self.fleet.publish_urgent(&job).await);
            }
        }
    }

    async fn until_nothing_is_left(&mut self) {
        let left = |soak: &Soak| {
            let mut left = soak.fleet.left_behind();
            // A guard whose worker is gone looks on for a while, and the checkpoint of a backup that is gone, or never came to be, stands
            // until the next backup.
            left.retain(|what| what != "a guard" && !what.contains(" has a checkpoint "));
            left
        };
        let deadline = tokio::time::Instant::now() + crate::fleet::PATIENCE;
        while !left(self).is_empty() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "left behind: {:?} of\n{}",
                left(self),
                self.account.told_of(&left(self))
            );
            tokio::time::sleep(super::LOOK_AGAIN).await;
        }
    }

    /// The journal has no open run and no message that was not sent, and every queue of the host is empty.
    async fn until_all_is_told(&mut self) {
        let mut journal = JournalLook::open(&self.fleet.journal_dir()).await.unwrap();
        let open = journal.runs(false, 10).await.unwrap();
        assert!(open.is_empty(), "open runs in the journal: {open:?}");
        let deadline = tokio::time::Instant::now() + crate::fleet::PATIENCE;
        while journal.unsent_count().await.unwrap() > 0 {
            let unsent = journal.unsent(10).await.unwrap();
            assert!(tokio::time::Instant::now() < deadline, "messages are not sent: {unsent:?}");
            tokio::time::sleep(super::LOOK_AGAIN).await;
        }
        assert_eq!(journal.left_overs().await.unwrap(), [], "left-overs that nobody looks for any more");
        self.wait("all is read", |soak| (soak.fleet.server.unread() == 0).then_some(())).await;
    }

    /// What is in use of the database, the file of which is as large as it once had to be; and the log's length.
    async fn journal_bytes(&self) -> (u64, u64) {
        let dir = self.fleet.journal_dir();
        let options = SqliteConnectOptions::new().filename(dir.join("journal.sqlite")).read_only(true);
        let mut database = options.connect().await.unwrap();
        let used: i64 = sqlx::query_scalar(
            "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
        .fetch_one(&mut database)
        .await
        .unwrap();
        database.close().await.unwrap();
        (used.unsigned_abs(), std::fs::metadata(dir.join("journal.sqlite-wal")).map_or(0, |file| file.len()))
    }

    /// What has ended leaves no more than its key: in the last quarter of the lulls no more of the journal is in use than twice what it was in the
    /// first, beside the keys.
    pub fn assert_journal_is_bounded(&self) {
        let log = self.sizes.iter().map(|(_, log)| *log).max().unwrap();
        assert!(log <= LOG_BYTES_MAX, "the journal's log has {log} bytes");
        let quarter = self.sizes.len() / 4;
        if quarter == 0 {
            return;
        }
        let most = |sizes: &[(u64, u64)]| sizes.iter().map(|(database, _)| *database).max().unwrap();
        let (first, last) = (most(&self.sizes[..quarter]), most(&self.sizes[self.sizes.len() - quarter..]));
        let keys = u64::try_from(self.account.count()).unwrap() * KEY_BYTES_MAX;
        assert!(last <= 2 * first + keys, "{first} bytes of the journal were in use, and {last} are: {:?}", self.sizes);
    }

    /// Backups of what runs in every repository, after which no other checkpoints stand than theirs.
    pub async fn last_backups(&mut self) {
        for (name, share) in RUNNING.iter().flat_map(|name| SHARES.map(|share| (name, share))) {
            let job = on(&self.fleet, share, self.fleet.job(name));
            self.account.asks(key(&job), job.clone());
            self.fleet.publish(&job).await;
        }
        self.until_open(0).await;
    }

    /// What there was, as tables.
    pub fn show(&self, took: Duration) {
        println!(
            "\n{} runs in {:.1} s, {} events came twice",
            self.account.count(),
            took.as_secs_f64(),
            self.account.duplicates
        );
        println!("\n| kind | end | runs |\n|---|---|---|");
        self.account.ends.iter().for_each(|((kind, how), count)| println!("| {kind} | {how} | {count} |"));
        println!("\n| what went wrong, or was wanted beside | times |\n|---|---|");
        self.noted.iter().for_each(|(what, count)| println!("| {what} | {count} |"));
        println!("\n| lull | journal in use, KiB | its log, KiB |\n|---|---|---|");
        for (number, (database, log)) in self.sizes.iter().enumerate() {
            println!("| {number} | {} | {} |", database >> 10, log >> 10);
        }
    }
}
