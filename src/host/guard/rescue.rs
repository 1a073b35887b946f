//! What a guard does once it has fired: thaw the guest and end our backup job, again and again until both stay so.
//!
//! "Once" is not enough. A freeze that timed out may reach the guest later, and a begin that the dead worker had sent may
//! wait in libvirt for the domain's job lock. So the guard looks on for [`SETTLE`] after all is well.
//!
//! Nor does it ever give up: a libvirt or an agent that was away for a day may still have our job or our freeze when it comes
//! back. What ends it is that all is well, which an instance that is gone or shut off is by its nature.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{GuardDuty, JobDuty};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{FreezeStatus, Hypervisor};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

/// How long all must be well before the guard believes it. libvirt keeps a call waiting 30 s for a domain's job lock.
pub const SETTLE: Duration = Duration::from_secs(35);

/// How long an agent may take for one thaw or status.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two tries while something is wrong, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long it is tried with [`FIRST_PAUSE`]; by then the worker, if there is one, reports `guest_maybe_frozen`.
const HURRY: Duration = Duration::from_secs(120);

/// Longest pause between two tries after that, to which it doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Pause between two looks while all is well.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// How often it is said what is still wrong.
const TELL_PERIOD: Duration = Duration::from_secs(300);

/// What may be so under a worker that can't look after it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Maybe {
    /// The guest is frozen or going to be.
    pub(super) frozen: bool,
    /// The backup job has begun or is going to, so that a pause may be its doing.
    pub(super) begun: bool,
}

/// Thaws, if the guest was to be frozen, and ends the backup job, if there was to be one, until both have been well for a
/// while.
pub(super) async fn rescue(hypervisor: &dyn Hypervisor, duty: &GuardDuty, maybe: Maybe) {
    if !maybe.frozen && duty.job.is_none() {
        return;
    }
    let began = Instant::now();
    let mut well_since: Option<Instant> = None;
    let mut told_at: Option<Instant> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let thawed = async {
            if !maybe.frozen {
                return Ok(());
            }
            // While all is well a look is enough, and disturbs nobody.
            if well_since.is_some() && looks_thawed(hypervisor, duty.instance).await {
                Ok(())
            } else {
                thaw(hypervisor, duty.instance).await
            }
        };
        let (thawed, ended) = tokio::join!(thawed, end_and_resume(hypervisor, duty, maybe.begun));
        if thawed.is_ok() && ended.is_ok() {
            if well_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
                return;
            }
            pause = FIRST_PAUSE;
            sleep(LOOK_PAUSE).await;
            continue;
        }
        well_since = None;
        if told_at.is_none_or(|at| at.elapsed() >= TELL_PERIOD) {
            told_at = Some(Instant::now());
            tell(duty.instance, "thaw its guest", thawed);
            tell(duty.instance, "end its backup job", ended);
        }
        sleep(pause).await;
        if began.elapsed() >= HURRY {
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn tell(instance: InstanceId, what: &str, tried: Result<(), Failure>) {
    if let Err(failure) = tried {
        tracing::warn!("the guard of instance `{instance}` goes on trying to {what}: {failure:#}");
    }
}

async fn looks_thawed(hypervisor: &dyn Hypervisor, instance: InstanceId) -> bool {
    matches!(hypervisor.freeze_status(instance, AGENT_TIMEOUT).await, Ok(FreezeStatus::Thawed))
}

/// Thaws and asks whether that is so. A guest that doesn't run has nothing frozen, and one without an agent never had.
async fn thaw(hypervisor: &dyn Hypervisor, instance: InstanceId) -> Result<(), Failure> {
    let asked = match hypervisor.thaw(instance, AGENT_TIMEOUT).await {
        Ok(_) => hypervisor.freeze_status(instance, AGENT_TIMEOUT).await,
        Err(failure) => Err(failure),
    };
    match asked {
        Ok(FreezeStatus::Thawed) => Ok(()),
        Ok(FreezeStatus::Frozen) => {
            Err(Failure::new(Code::GuestMaybeFrozen, format!("instance `{instance}` is frozen after a thaw")))
        }
        Err(failure) if matches!(failure.code, Code::InstanceNotHere | Code::AgentMissing) => Ok(()),
        Err(failure) => match hypervisor.state(instance).await {
            Ok(PowerState::ShutOff) => Ok(()),
            _ => Err(failure),
        },
    }
}

/// A pause from before our job could begin is somebody else's, and stays.
async fn end_and_resume(hypervisor: &dyn Hypervisor, duty: &GuardDuty, begun: bool) -> Result<(), Failure> {
    let Some(job) = &duty.job else { return Ok(()) };
    end_job(hypervisor, duty.instance, job).await?;
    if job.was_running && begun {
        resume_after_io_error(hypervisor, duty.instance).await?;
    }
    Ok(())
}

/// Lets an instance run again that an I/O error has paused, such as a scratch without room; true when that was so. To be
/// asked once our job is gone, for an instance that ran before it. An error of the instance's own disks pauses it again.
pub async fn resume_after_io_error(hypervisor: &dyn Hypervisor, instance: InstanceId) -> Result<bool, Failure> {
    match hypervisor.state(instance).await {
        Ok(PowerState::PausedByIoError) => hypervisor.resume(instance).await.map(|()| true),
        Ok(_) => Ok(false),
        Err(failure) if failure.code == Code::InstanceNotHere => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Ends the domain's job if it is ours, and fails until it is gone. Somebody else's job is none of our business.
async fn end_job(hypervisor: &dyn Hypervisor, instance: InstanceId, duty: &JobDuty) -> Result<(), Failure> {
    match hypervisor.domain_job(instance).await {
        Ok(Some(job)) if job == duty.ours => {}
        Ok(_) => return Ok(()),
        Err(failure) if failure.code == Code::InstanceNotHere => return Ok(()),
        Err(failure) => return Err(failure),
    }
    hypervisor.abort_job(instance, &duty.ours).await?;
    if hypervisor.domain_job(instance).await?.as_ref() == Some(&duty.ours) {
        return Err(Failure::new(Code::InstanceBusy, format!("the backup job of instance `{instance}` is ending")));
    }
    Ok(())
}
