//! Watching over the source while its bytes are read: a running instance has to go on running with our job, a stopped one
//! has to stay stopped. libvirt's events only say when to look; what counts is what is found by looking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::super::context::{Context, GuardSlot};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{DomainEvent, DomainJob, Hypervisor};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

/// How often the state is asked for without a hint. Events get lost, with a connection or in a full queue.
pub(super) const LOOK_SECONDS: u64 = 5;

/// What is watched over.
#[derive(Clone)]
pub(super) struct Source {
    hypervisor: Arc<dyn Hypervisor>,
    instance: InstanceId,
    /// Our job; none for a stopped instance.
    job: Option<DomainJob>,
    guard: GuardSlot,
    reached: Arc<AtomicBool>,
}

impl Source {
    pub(super) fn of(context: &Context) -> Self {
        Self {
            hypervisor: context.doors.hypervisor.clone(),
            instance: context.plan.instance_id,
            job: context.plan.domain_job(),
            guard: context.guard.clone(),
            reached: context.reached.clone(),
        }
    }

    /// Why the source can no longer be read, if that is so. What can't be found out now is asked again later.
    pub(super) async fn lost(&self) -> Option<Failure> {
        match &self.job {
            Some(job) => self.lost_while_running(job).await,
            None => self.lost_while_stopped().await,
        }
    }

    async fn lost_while_stopped(&self) -> Option<Failure> {
        match self.hypervisor.state(self.instance).await {
            Ok(PowerState::ShutOff) => None,
            Ok(_) => Some(Failure::new(Code::InstanceStarted, "the stopped instance was started during its backup")),
            // It was undefined, perhaps migrated away: its volumes may be anybody's now.
            Err(gone) if gone.code == Code::InstanceNotHere => Some(gone),
            Err(_) => None,
        }
    }

    async fn lost_while_running(&self, job: &DomainJob) -> Option<Failure> {
        if let Some(stopped) = self.stopped().await {
            return Some(stopped);
        }
        if !self.reached.load(Ordering::Acquire) {
            return None;
        }
        let fired = match self.guard.lock().await.as_mut() {
            Some(guard) => guard.fired().await,
            None => return None,
        };
        match fired {
            Ok(None) => {}
            Ok(Some(failure)) | Err(failure) => return Some(failure),
        }
        // A push ends by itself. Who waits for that sees how, and whether the guest had to pay for it.
        if matches!(job, DomainJob::Push { .. }) {
            return None;
        }
        if let Ok(PowerState::PausedByIoError) = self.hypervisor.state(self.instance).await {
            let text = "the instance was paused by an I/O error during its backup, perhaps for want of scratch";
            return Some(Failure::new(Code::HypervisorFailed, text));
        }
        match self.hypervisor.domain_job(self.instance).await {
            Ok(Some(found)) if found == *job => None,
            Err(_) => None,
            Ok(_) => Some(match self.stopped().await {
                Some(stopped) => stopped,
                None => Failure::new(Code::HypervisorFailed, "the pull backup ended by itself while it was read"),
            }),
        }
    }

    async fn stopped(&self) -> Option<Failure> {
        let stopped = || Failure::new(Code::InstanceStopped, "the running instance stopped during its backup");
        match self.hypervisor.state(self.instance).await {
            Ok(PowerState::ShutOff | PowerState::ShuttingDown) => Some(stopped()),
            Err(gone) if gone.code == Code::InstanceNotHere => Some(stopped().because_of(&gone)),
            Ok(_) | Err(_) => None,
        }
    }
}

/// Watches until the returned handle is dropped; the receiver hears of a loss.
pub(super) async fn watch(source: Source) -> Result<(AbortOnDropHandle<()>, oneshot::Receiver<Failure>), Failure> {
    let mut hints = Some(source.hypervisor.watch(source.instance).await?);
    let (lost, heard) = oneshot::channel();
    let task = tokio::spawn(async move {
        loop {
            if let Some(failure) = source.lost().await {
                // Nobody listens any more when the source is being released.
                let _unheard = lost.send(failure);
                return;
            }
            let wait = Duration::from_secs(LOOK_SECONDS);
            match hints.as_mut() {
                Some(receiver) => match timeout(wait, receiver.recv()).await {
                    Ok(Some(DomainEvent::Lifecycle | DomainEvent::BlockJob { .. } | DomainEvent::Reconnected))
                    | Err(_) => {}
                    // The connection ended its hints: looking goes on without them.
                    Ok(None) => hints = None,
                },
                None => tokio::time::sleep(wait).await,
            }
        }
    });
    Ok((AbortOnDropHandle::new(task), heard))
}

/// The real reason of a failure at the moment or while reading: that the source went away, if it did.
pub(super) async fn real_cause(source: Source, failure: Failure) -> Failure {
    match source.lost().await {
        Some(lost) if lost.code != failure.code => lost.because_of(&failure),
        _ => failure,
    }
}
