//! Holding the source: for a running instance the guard, scratch and the pull job; for a stopped one the watch over its
//! staying stopped.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::context::Context;
use super::super::directory;
use super::super::plan::PullPlan;
use super::watch;
use crate::failure::{Code, Failure};
use crate::host::guard::{GuardDuty, PullDuty};
use crate::host::hypervisor::{DomainJob, Hypervisor};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;
use crate::saga::step::{Held, Hold, Named};

/// Longest time for preparing to read.
const ACQUIRE_SECONDS_MAX: u64 = 60;

/// Longest time in which the pull job has to be gone after it was asked to end. A healthy one takes milliseconds.
const JOB_END_SECONDS_MAX: u64 = 60;

/// Longest time for one try of the release.
const RELEASE_SECONDS_MAX: u64 = JOB_END_SECONDS_MAX + 30;

/// Pause between two looks whether the job is gone.
const JOB_END_PAUSE_MILLISECONDS: u64 = 20;

/// Everything that a pull backup needs on the host, and the pull job itself once it has begun.
pub(in super::super) struct PullSource;

impl Named for PullSource {
    fn name(&self) -> &'static str {
        "source"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(ACQUIRE_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(RELEASE_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::HypervisorTimedOut
    }
}

#[async_trait]
impl Hold<Context> for PullSource {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let plan = context.plan.clone();
        let pull = pull_of(context)?;
        let owner = context.settings.qemu_owner;
        directory::make(&pull.socket_dir, owner).await?;
        directory::make(&pull.scratch_dir, owner).await?;
        let duty = GuardDuty {
            instance: plan.instance_id,
            freeze_limit: context.settings.freeze_limit,
            pull: Some(PullDuty {
                socket: pull.socket.clone(),
                scratch: pull.scratch.clone(),
                scratch_limit_bytes: pull.scratch_limit_bytes,
            }),
        };
        let guard = context.doors.guards.arm(&duty).await?;
        *context.guard.lock().await = Some(guard);
        let source = watch::Source::of(context);
        if let Some(lost) = source.lost().await {
            return Err(lost);
        }
        let (task, lost) = watch::watch(source).await?;
        context.watch = Some(task);
        Ok(Held { value: Value::Null, lost: Some(lost) })
    }

    /// The guard goes last: until the job is gone and the guest thawed, somebody has to answer for them.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.watch = None;
        let pull = pull_of(context)?;
        if let Err(failure) = end_job(context, &pull.socket).await {
            leave_guard(context).await;
            return Err(failure);
        }
        let removed = remove_files(&pull).await;
        if context.maybe_frozen {
            leave_guard(context).await;
        } else if let Some(guard) = context.guard.lock().await.take()
            && let Err(killed) = guard.disarm().await
        {
            context.late_warnings.push(killed);
        }
        removed
    }
}

fn pull_of(context: &Context) -> Result<PullPlan, Failure> {
    let pull = context.plan.pull().cloned();
    pull.ok_or_else(|| Failure::new(Code::Internal, "the source of a pull backup was held without a plan for one"))
}

/// Ends our pull job, known by its socket, and waits until nothing of it is left. Another's job is left alone.
async fn end_job(context: &mut Context, socket: &Path) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(JOB_END_SECONDS_MAX);
    if let Some(call) = context.begin.as_mut() {
        // A begin that nobody waited for may still come about, after which there is a job to be ended.
        if timeout_at(until, call).await.is_err() {
            return Err(Failure::new(
                Code::HypervisorTimedOut,
                "the call that begins the pull backup has not come back",
            ));
        }
        context.begin = None;
    }
    let (hypervisor, instance) = (context.doors.hypervisor.clone(), context.plan.instance_id);
    let mut ours_was_there = false;
    loop {
        let once = end_once(hypervisor.as_ref(), instance, socket, &mut ours_was_there);
        let last = match timeout_at(until, once).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        let pause = Duration::from_millis(JOB_END_PAUSE_MILLISECONDS);
        if Instant::now() + pause >= until {
            let text = format!(
                "the pull backup on `{}` is still there {JOB_END_SECONDS_MAX} s after its end",
                socket.display()
            );
            let failure = Failure::new(Code::HypervisorFailed, text);
            return Err(last.iter().fold(failure, |failure, last| failure.because_of(last)));
        }
        sleep(pause).await;
    }
}

/// Asks our job to end if it is there; true when nothing of it is left.
async fn end_once(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    socket: &Path,
    ours_was_there: &mut bool,
) -> Result<bool, Failure> {
    let ended = async {
        match hypervisor.domain_job(instance).await? {
            Some(DomainJob::Pull { socket: found }) if found == socket => {
                *ours_was_there = true;
                hypervisor.abort_job(instance).await?;
                Ok(hypervisor.domain_job(instance).await?.is_none()
                    && hypervisor.block_jobs(instance).await?.is_empty())
            }
            None if *ours_was_there => Ok(hypervisor.block_jobs(instance).await?.is_empty()),
            _ => Ok(true),
        }
    };
    match ended.await {
        Ok(gone) => Ok(gone),
        // The job went with the instance.
        Err(failure) => match hypervisor.state(instance).await {
            Ok(PowerState::ShutOff) => Ok(true),
            Err(gone) if gone.code == Code::InstanceNotHere => Ok(true),
            _ => Err(failure),
        },
    }
}

async fn leave_guard(context: &mut Context) {
    if let Some(guard) = context.guard.lock().await.take() {
        let process = guard.leave();
        tracing::error!(instance.id = %context.plan.instance_id, process, "left the guard to thaw the guest and to end the pull backup");
    }
}

/// libvirt removes the scratch files that it made, and QEMU its socket; what is still there was left by a crash.
async fn remove_files(pull: &PullPlan) -> Result<(), Failure> {
    for file in pull.scratch.iter().chain([&pull.socket]) {
        directory::remove_file(file).await?;
    }
    directory::remove_empty(&pull.scratch_dir).await?;
    directory::remove_empty(&pull.socket_dir).await
}

/// A stopped instance for as long as it stays stopped. Nothing keeps it from starting: that is a loss, not a refusal.
pub(in super::super) struct StoppedSource;

impl Named for StoppedSource {
    fn name(&self) -> &'static str {
        "source"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(ACQUIRE_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::HypervisorTimedOut
    }
}

#[async_trait]
impl Hold<Context> for StoppedSource {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let source = watch::Source::of(context);
        let (task, lost) = watch::watch(source.clone()).await?;
        context.watch = Some(task);
        if let Some(lost) = source.lost().await {
            return Err(lost);
        }
        Ok(Held { value: Value::Null, lost: Some(lost) })
    }

    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.watch = None;
        Ok(())
    }
}
