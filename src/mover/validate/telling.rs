//! How far a validation is, told from wherever it is worked on; and the word that nobody waits for it any more.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::{Code, Failure};
use crate::mover::protocol::Notice;

/// Shared by the threads that read.
#[derive(Debug)]
pub(in crate::mover) struct Telling {
    progress: watch::Sender<Option<Notice>>,
    broken_off: CancellationToken,
    done: AtomicU64,
    total: AtomicU64,
    read: AtomicU64,
}

impl Telling {
    /// Nothing is done yet.
    pub fn new(progress: watch::Sender<Option<Notice>>, broken_off: CancellationToken) -> Self {
        let (done, total, read) = Default::default();
        Self { progress, broken_off, done, total, read }
    }

    /// There is so much to do.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.tell(0);
    }

    /// So much of it is done.
    pub fn pass(&self, passed: u64) {
        self.done.fetch_add(passed, Ordering::Relaxed);
        self.tell(0);
    }

    /// So many bytes were read.
    pub fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.tell(0);
    }

    /// Tells it once more, with `ahead` of what is under way done; for who is at work on something long.
    pub fn tell(&self, ahead: u64) {
        let total_bytes = self.total.load(Ordering::Relaxed);
        let done_bytes = (self.done.load(Ordering::Relaxed) + ahead).min(total_bytes);
        let data_bytes = self.bytes_read();
        self.progress.send_replace(Some(Notice::Progress { done_bytes, total_bytes, data_bytes }));
    }

    /// All of it is done.
    pub fn finish(&self) {
        self.done.store(self.total.load(Ordering::Relaxed), Ordering::Relaxed);
        self.tell(0);
    }

    /// Bytes that were read.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// `interrupted`: nobody waits for it any more. Asked between two looks at the share, since a thread can't be ended.
    pub fn go_on(&self) -> Result<(), Failure> {
        match self.broken_off.is_cancelled() {
            true => Err(Failure::new(Code::Interrupted, "the validation was broken off")),
            false => Ok(()),
        }
    }
}
