//! Asking a running saga to stop: a cancellation, a drain or the job's deadline, with the reason.

use tokio::sync::watch;

use crate::failure::Failure;

/// The side that asks. Clones ask the same saga; dropping it asks nothing.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<Option<Failure>>);

/// The side that is asked.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Option<Failure>>);

impl Stopper {
    /// A pair that nobody has asked to stop yet.
    pub fn new() -> (Stopper, Stop) {
        let (sender, receiver) = watch::channel(None);
        (Stopper(sender), Stop(receiver))
    }

    /// Asks for a stop. The first reason counts.
    pub fn stop(&self, reason: Failure) {
        self.0.send_if_modified(|asked| {
            let first = asked.is_none();
            if first {
                *asked = Some(reason);
            }
            first
        });
    }
}

impl Stop {
    /// One that never comes.
    pub fn never() -> Stop {
        Stopper::new().1
    }

    /// The reason, if a stop was asked for.
    pub fn reason(&self) -> Option<Failure> {
        self.0.borrow().clone()
    }

    /// Waits until a stop is asked for; for ever, if nobody can ask any more.
    pub async fn asked(&self) -> Failure {
        let mut receiver = self.0.clone();
        let reason = receiver.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    #[tokio::test]
    async fn the_first_reason_to_stop_counts() {
        let (stopper, stop) = Stopper::new();
        assert_eq!(stop.reason(), None);
        stopper.stop(Failure::new(Code::HostDraining, "first"));
        stopper.stop(Failure::new(Code::DeadlineExceeded, "second"));
        assert_eq!(stop.asked().await.code, Code::HostDraining);
    }
}
