//! Bringing to the storage, every few seconds, what another process writes into files that we hold open.
//!
//! QEMU flushes nothing in a push: gigabytes would wait in this host's cache until it closes its images, which it does in the thread
//! that serves its guest. A write that fails late is told to a descriptor once, so that what is told here is kept.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::target::{io_failure, on_file};
use crate::failure::{Code, Failure};

/// Pause between two rounds: what a share takes in so long is what a writer's close may have to wait for.
const PERIOD: Duration = Duration::from_secs(5);

/// A task that flushes until it is stopped. Dropped without that, it ends when it next looks.
#[derive(Debug)]
pub(super) struct Flusher {
    stopped: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
}

impl Flusher {
    pub(super) fn start(files: Vec<(PathBuf, Arc<File>)>) -> Self {
        let stopped = CancellationToken::new();
        let task = tokio::spawn(flush(files, stopped.clone()));
        Self { stopped, task }
    }

    /// Waits for what is under way, and answers the first failure that any of the files has told.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.stopped.cancel();
        let ended = (&mut self.task).await;
        ended.unwrap_or_else(|error| {
            Err(Failure::new(Code::Internal, "the flushing of images broke off").because(&error))
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

async fn flush(files: Vec<(PathBuf, Arc<File>)>, stopped: CancellationToken) -> Result<(), Failure> {
    let mut first = Ok(());
    while timeout(PERIOD, stopped.cancelled()).await.is_err() {
        for (path, file) in &files {
            if let Err(error) = on_file(file, File::sync_data).await {
                first = first.and_then(|()| Err(io_failure(Code::RepositoryIo, "flush", path, &error)));
            }
        }
    }
    first
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_file_told_once_is_not_forgotten() {
        // A pipe can't be flushed, which it says each time.
        let (reading, writing) = nix::unistd::pipe().unwrap();
        let flusher = Flusher::start(vec![("pipe".into(), Arc::new(File::from(writing)))]);
        tokio::time::sleep(PERIOD * 2).await;
        assert_eq!(flusher.stop().await.unwrap_err().code, Code::RepositoryIo);
        drop(reading);
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_take_everything_are_flushed_until_it_is_stopped() {
        let file = tempfile::tempfile().unwrap();
        let flusher = Flusher::start(vec![("file".into(), Arc::new(file))]);
        tokio::time::sleep(PERIOD * 3).await;
        flusher.stop().await.unwrap();
    }
}
