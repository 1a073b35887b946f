//! Watching over the source while its bytes are read: a running instance has to go on running with our job, a stopped one
//! has to stay stopped. libvirt's events only say when to look; what counts is what is found by looking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::super::context::{Context, GuardSlot};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{DomainJob, Hypervisor};
use crate::job::steps;
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

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
            hypervisor: context.common.doors.hypervisor.clone(),
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
            None => steps::started(self.hypervisor.as_ref(), self.instance, "backup").await,
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
    let (hypervisor, instance) = (source.hypervisor.clone(), source.instance);
    steps::watch(hypervisor.as_ref(), instance, move || {
        let source = source.clone();
        async move { source.lost().await }
    })
    .await
}

/// The real reason of a failure at the moment or while reading: that the source went away, if it did.
pub(super) async fn real_cause(source: Source, failure: Failure) -> Failure {
    match source.lost().await {
        Some(lost) if lost.code != failure.code => lost.because_of(&failure),
        _ => failure,
    }
}
