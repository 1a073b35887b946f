//! The thread that serves the broker's connections.
//!
//! lapin's heartbeat timer is a task. On the process's own runtime it starves when all workers are busy or blocked (45 s of
//! that with a heartbeat of 10 s made the broker close the connection), so it has a runtime that nothing else uses.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long connections may take to say goodbye when the door is closed.
const WIND_UP_WAIT: Duration = Duration::from_secs(3);
/// Name lookups block, on a thread of their own; more than one at a time is not needed.
const LOOKUP_THREADS_MAX: usize = 2;

/// The thread. It ends when the last handle that shares it is dropped.
pub(super) struct AmqpThread {
    handle: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl AmqpThread {
    /// Starts it.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(LOOKUP_THREADS_MAX)
            .thread_name("longshore-lookup")
            .build()?;
        let thread =
            Self { handle: runtime.handle().clone(), tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let (tasks, stop) = (thread.tasks.clone(), thread.stop.clone());
        std::thread::Builder::new().name("longshore-amqp".to_owned()).spawn(move || {
            runtime.block_on(async {
                stop.cancelled().await;
                tasks.close();
                if tokio::time::timeout(WIND_UP_WAIT, tasks.wait()).await.is_err() {
                    tracing::warn!("connections to the broker did not close within {} s", WIND_UP_WAIT.as_secs());
                }
            });
            // A name lookup that hangs must not keep the thread.
            runtime.shutdown_background();
        })?;
        Ok(Arc::new(thread))
    }

    /// Runs a task on the thread. It ends soon after [`AmqpThread::stop_token`] is cancelled.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn_on(task, &self.handle)
    }

    /// Cancelled when the thread is to end.
    pub(super) fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }
}

impl Drop for AmqpThread {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
