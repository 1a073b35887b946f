//! Logs in memory: one that keeps, one that crashes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::saga::{Record, SagaLog};

/// Keeps its records.
#[derive(Default)]
pub struct MemoryLog(Mutex<Vec<Record>>);

impl MemoryLog {
    /// What was written so far.
    pub fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SagaLog for MemoryLog {
    async fn record(&self, record: Record) -> Result<(), Failure> {
        self.lock().push(record);
        Ok(())
    }
}

/// A moment, counted in records from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum CrashAt {
    /// The record does not become durable: what it says has happened has.
    Before(usize),
    /// The record is durable, and nothing follows.
    After(usize),
}

/// Keeps its records until the crash.
pub(super) struct CrashingLog {
    kept: MemoryLog,
    written_before: usize,
    at: Option<CrashAt>,
    crashed: Notify,
}

impl CrashingLog {
    pub(super) fn new(before: Vec<Record>, at: Option<CrashAt>) -> Self {
        let written_before = before.len();
        Self { kept: MemoryLog(Mutex::new(before)), written_before, at, crashed: Notify::new() }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.kept.records()
    }

    /// What `saga` ended with, or none, and the saga dropped where it stood, if the log crashed.
    pub(super) async fn until_crash<T>(&self, saga: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            ended = saga => Some(ended),
            () = self.crashed.notified() => None,
        }
    }
}

#[async_trait]
impl SagaLog for CrashingLog {
    async fn record(&self, record: Record) -> Result<(), Failure> {
        let number = self.records().len() - self.written_before;
        let (durable, crash) = match self.at {
            Some(CrashAt::Before(at)) => (number < at, number >= at),
            Some(CrashAt::After(at)) => (true, number >= at),
            None => (true, false),
        };
        if durable {
            self.kept.record(record).await?;
        }
        if crash {
            self.crashed.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}
