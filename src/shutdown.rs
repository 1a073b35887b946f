//! The wish to stop, as one value that everybody who waits can watch.
//!
//! The first SIGTERM or SIGINT asks for a drain: take nothing new, finish what can be finished within the limit. The second
//! asks to stop now: unwind what runs and go.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How urgently to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not at all.
    Run,
    /// Take nothing new, finish what runs.
    Drain,
    /// Stop what runs.
    Now,
}

/// A cloneable view of the wish to stop.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Receiver<Stage>,
}

/// The end that says so. Dropping it leaves the last stage standing.
#[derive(Debug)]
pub struct ShutdownSwitch {
    stage: watch::Sender<Stage>,
}

/// A switch and a first view of it.
pub fn switch() -> (ShutdownSwitch, Shutdown) {
    let (sender, receiver) = watch::channel(Stage::Run);
    (ShutdownSwitch { stage: sender }, Shutdown { stage: receiver })
}

impl ShutdownSwitch {
    /// Raises the stage; it never goes back.
    pub fn raise(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let higher = to > *stage;
            *stage = (*stage).max(to);
            higher
        });
    }
}

impl Shutdown {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until at least `stage` is reached; for ever if it never is.
    pub async fn reached(&self, stage: Stage) {
        let mut view = self.stage.clone();
        if view.wait_for(|now| *now >= stage).await.is_err() && self.stage() < stage {
            std::future::pending::<()>().await;
        }
    }
}

/// A view that follows this process's SIGTERM and SIGINT: the first is a drain, the second is now.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals() -> std::io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (switch, shutdown) = switch();
    tokio::spawn(async move {
        for stage in [Stage::Drain, Stage::Now] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            switch.raise(stage);
        }
    });
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stage_once_reached_stays_reached() {
        let (switch, shutdown) = switch();
        switch.raise(Stage::Now);
        switch.raise(Stage::Drain);
        shutdown.reached(Stage::Drain).await;
        assert_eq!(shutdown.stage(), Stage::Now);
        drop(switch);
        shutdown.reached(Stage::Now).await;
    }
}
