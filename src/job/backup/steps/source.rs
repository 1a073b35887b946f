//! Holding the source: for a running instance the guard, scratch and the pull job; for a stopped one the watch over its
//! staying stopped.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::context::Context;
use super::super::directory::{self, Access};
use super::super::late::{self, LateCall};
use super::super::plan::{PullPlan, socket_dir_of};
use super::super::stall::Sampler;
use super::watch;
use crate::failure::{Code, Failure};
use crate::host::guard::{GuardDuty, PullDuty, SCRATCH_RESERVE_BYTES, resume_after_io_error};
use crate::host::hypervisor::{DomainJob, Hypervisor};
use crate::host::remains;
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;
use crate::saga::step::{Held, Hold, Named};

/// Longest time for preparing to read.
const ACQUIRE_SECONDS_MAX: u64 = 60;

/// Longest time in which the pull job has to be gone after it was asked to end. A healthy one takes milliseconds.
const JOB_END_SECONDS_MAX: u64 = 60;

/// Longest time that is waited besides for a begin that failed and may still come about.
const LATE_BEGIN_SECONDS_MAX: u64 = 90;

/// Longest time for one try of the release.
const RELEASE_SECONDS_MAX: u64 = JOB_END_SECONDS_MAX + LATE_BEGIN_SECONDS_MAX + 30;

/// First pause between two looks whether the job is gone: as a rule it is by then, and the backup would wait for nothing.
const JOB_END_FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause between two looks whether the job is gone. Each pause is twice the one before.
const JOB_END_PAUSE_MAX: Duration = Duration::from_millis(250);

/// Longest time in which a job that an earlier attempt has left has to be gone.
const STRAY_END_MAX: Duration = Duration::from_secs(30);

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
        directory::make(&pull.socket_dir, Access::MakesFiles, pull.qemu_owner).await?;
        directory::make(&pull.scratch_dir, Access::OpensFiles, pull.qemu_owner).await?;
        let duty = GuardDuty {
            instance: plan.instance_id,
            freeze_limit: context.settings.freeze_limit,
            pull: Some(PullDuty {
                socket: pull.socket.clone(),
                scratch: pull.scratch.clone(),
                scratch_limit_bytes: pull.scratch_limit_bytes,
                scratch_reserve_bytes: SCRATCH_RESERVE_BYTES,
                was_running: plan.instance_state == PowerState::Running,
            }),
        };
        let guard = context.doors.guards.arm(&duty).await?;
        *context.guard.lock().await = Some(guard);
        end_stray(context).await?;
        let source = watch::Source::of(context);
        if let Some(lost) = source.lost().await {
            return Err(lost);
        }
        let (task, lost) = watch::watch(source).await?;
        context.watch = Some(task);
        let targets = plan.disks.iter().map(|disk| disk.target.clone()).collect();
        context.sampler = Some(Sampler::start(context.doors.hypervisor.clone(), plan.instance_id, targets));
        Ok(Held { value: Value::Null, lost: Some(lost) })
    }

    /// The guard goes last: until the job is gone and the guest thawed, somebody has to answer for them.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.watch = None;
        let pull = pull_of(context)?;
        let ended = match end_job(context, &pull.socket).await {
            Ok(()) => resume(context).await,
            Err(failure) => Err(failure),
        };
        if let Some(sampler) = context.sampler.take() {
            context.worst_write_ms = sampler.stop().await;
        }
        if let Err(mut failure) = ended {
            name_guard(&mut failure, leave_guard(context).await);
            return Err(failure);
        }
        let removed = remove_files(&pull).await;
        if context.maybe_frozen {
            // Undoing the moment has reported it.
            let _reported = leave_guard(context).await;
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

/// Ends a pull backup that an earlier attempt of this host has left behind, with its guard gone as well: nobody else would, and
/// no other backup of the instance could begin. It has no attempt behind it, since each holds the instance's guard as long as
/// its job may be there, and that is ours now.
async fn end_stray(context: &mut Context) -> Result<(), Failure> {
    let (hypervisor, instance) = (context.doors.hypervisor.clone(), context.plan.instance_id);
    let Some(DomainJob::Pull { socket }) = hypervisor.domain_job(instance).await? else { return Ok(()) };
    let Some(attempt) = socket_dir_of(&context.settings, &socket) else { return Ok(()) };
    let until = Instant::now() + STRAY_END_MAX;
    let (mut was_there, mut pause) = (false, JOB_END_FIRST_PAUSE);
    while !end_once(hypervisor.as_ref(), instance, &socket, &mut was_there).await? {
        if Instant::now() >= until {
            let text =
                format!("the pull backup on `{}`, which an earlier attempt left, does not end", socket.display());
            return Err(Failure::new(Code::InstanceBusy, text));
        }
        sleep(pause).await;
        pause = longer(pause);
    }
    tracing::warn!(instance.id = %instance, %attempt, "ended the pull backup that an earlier attempt had left");
    let scratch_dir = context.settings.scratch_dir.join(&attempt);
    let socket_dir = context.settings.run_dir.join(&attempt);
    for removed in [
        directory::remove_file(&socket).await,
        directory::remove_empty(&socket_dir).await,
        directory::remove_empty(&scratch_dir).await,
    ] {
        context.late_warnings.extend(removed.err());
    }
    Ok(())
}

/// Ends our pull job, known by its socket, and waits until nothing of it is left. Another's job is left alone. Where none was
/// asked for there is none, whatever libvirt can say now.
async fn end_job(context: &mut Context, socket: &Path) -> Result<(), Failure> {
    if !context.begin_asked {
        return Ok(());
    }
    let mut until = Instant::now() + Duration::from_secs(JOB_END_SECONDS_MAX);
    if let Some(call) = context.begin.as_mut() {
        // A begin that nobody waited for may still come about, after which there is a job to be ended.
        match timeout_at(until, call).await {
            Ok(Ok(answer)) => context.late_begin = LateCall::after(late::BEGIN, &answer),
            Ok(Err(_)) => {}
            Err(_) => return Err(begin_under_way()),
        }
        context.begin = None;
    }
    if context.late_begin.is_some() {
        until += Duration::from_secs(LATE_BEGIN_SECONDS_MAX);
    }
    let (hypervisor, instance) = (context.doors.hypervisor.clone(), context.plan.instance_id);
    let (mut ours_was_there, mut pause) = (false, JOB_END_FIRST_PAUSE);
    loop {
        let once = end_once(hypervisor.as_ref(), instance, socket, &mut ours_was_there);
        let last = match timeout_at(until, once).await {
            Ok(Ok(true)) => {
                let over = |late: &mut LateCall| late.is_over(hypervisor.as_ref(), instance);
                if context.late_begin.as_mut().is_none_or(over) {
                    context.late_begin = None;
                    return Ok(());
                }
                if Instant::now() + pause >= until {
                    return Err(begin_under_way());
                }
                None
            }
            Ok(Ok(false)) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        if Instant::now() + pause >= until {
            let text = format!(
                "the pull backup on `{}` is still there {JOB_END_SECONDS_MAX} s after its end",
                socket.display()
            );
            let failure = Failure::new(Code::HypervisorFailed, text);
            return Err(last.iter().fold(failure, |failure, last| failure.because_of(last)));
        }
        sleep(pause).await;
        pause = longer(pause);
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(JOB_END_PAUSE_MAX)
}

fn begin_under_way() -> Failure {
    Failure::new(Code::HypervisorTimedOut, "the call that begins the pull backup may still come about")
}

/// A scratch without room pauses the guest, and QEMU leaves it to others to let it go on. A pause from before our begin is
/// somebody else's.
async fn resume(context: &mut Context) -> Result<(), Failure> {
    if !context.begin_asked || context.plan.instance_state != PowerState::Running {
        return Ok(());
    }
    let instance = context.plan.instance_id;
    if resume_after_io_error(context.doors.hypervisor.as_ref(), instance).await? {
        let text = format!("instance `{instance}` had been paused by an I/O error during its backup, and was resumed");
        context.late_warnings.push(Failure::new(Code::HypervisorFailed, text));
    }
    Ok(())
}

/// Asks our job to end if it is there; true when nothing of it is left.
async fn end_once(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    socket: &Path,
    ours_was_there: &mut bool,
) -> Result<bool, Failure> {
    let ours = DomainJob::Pull { socket: socket.to_owned() };
    let ended = async {
        match hypervisor.domain_job(instance).await? {
            Some(job) if job == ours => {
                *ours_was_there = true;
                hypervisor.abort_job(instance, &ours).await?;
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

/// Leaves the guard to its work, which begins to settle when no call of ours is under way any more. Answers its process id.
pub(super) async fn leave_guard(context: &mut Context) -> Option<u32> {
    let Some(guard) = context.guard.lock().await.take() else { return context.left_guard };
    let (hypervisor, instance) = (context.doors.hypervisor.clone(), context.plan.instance_id);
    let process = guard.leave(Box::pin(late::none_is_listed(hypervisor, instance)));
    tracing::error!(instance.id = %instance, process, "left the guard to thaw the guest and to end the pull backup");
    context.left_guard = Some(process);
    context.left_guard
}

/// Says in the failure that the guard goes on, and names its process as what remains.
pub(super) fn name_guard(failure: &mut Failure, process: Option<u32>) {
    if let Some(process) = process {
        failure.causes.push(format!("its guard, process {process}, goes on"));
        failure.remains = Some(Box::new(remains::of_process(process, None)));
    }
}

/// libvirt removes the scratch files that it made, and QEMU its socket; what is still there was left by a crash. What can't be
/// removed keeps nothing else.
async fn remove_files(pull: &PullPlan) -> Result<(), Failure> {
    let mut removed = Ok(());
    for file in pull.scratch.iter().chain([&pull.socket]) {
        removed = removed.and(directory::remove_file(file).await);
    }
    for directory in [&pull.scratch_dir, &pull.socket_dir] {
        removed = removed.and(directory::remove_empty(directory).await);
    }
    removed
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
