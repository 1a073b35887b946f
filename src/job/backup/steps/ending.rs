//! The end of what a backup has begun in libvirt: our job, a guest that it has paused, and the guard's duty.
//!
//! It promises: no job of ours stands when the source has been released, nor a guest that it has paused; and where that can't be
//! had, as behind a libvirt that does not answer, the guard goes on with it and is named. Another's job is left alone.

use std::future::pending;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::super::context::Context;
use super::super::directory;
use super::super::late::{self, LateCall};
use super::super::plan::attempt_of;
use crate::failure::{Code, Failure};
use crate::host::guard::resume_after_io_error;
use crate::host::hypervisor::{DomainJob, Hypervisor};
use crate::host::mover::Movers;
use crate::host::remains;
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

/// Longest time in which our job has to be gone after it was asked to end. A healthy one takes milliseconds.
pub(super) const JOB_END_SECONDS_MAX: u64 = 60;

/// Longest time that is waited besides for a begin that failed and may still come about.
pub(super) const LATE_BEGIN_SECONDS_MAX: u64 = 90;

/// Likewise, for a push job: QEMU may wait for a share that does not answer, and then it is freed from it, more than once if need be.
pub(super) const PUSH_END_SECONDS_MAX: u64 = 150;

/// How long QEMU may leave a question about a push job unanswered before it counts as stuck behind its share: nothing it is asked
/// comes back then.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// How long a push job may stand after it was told to end, with QEMU answering: what it has under way to a slow share comes to its end
/// first, as a rule 64 MiB.
const STANDING_MAX: Duration = Duration::from_secs(60);

/// Pause between two looks whether QEMU is stuck, and between two times that it is freed.
const CUT_OFF_PAUSE: Duration = Duration::from_secs(5);

/// First pause between two looks whether the job is gone: as a rule it is by then, and the backup would wait for nothing.
const JOB_END_FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause between two looks whether the job is gone. Each pause is twice the one before.
const JOB_END_PAUSE_MAX: Duration = Duration::from_millis(250);

/// Longest time in which a job that an earlier attempt has left has to be gone.
const STRAY_END_MAX: Duration = Duration::from_secs(120);

/// Ends a backup job that an earlier attempt of this host has left behind, with its guard gone as well: nobody else would, and
/// no other backup of the instance could begin. It has no attempt behind it, since each holds the instance's guard as long as
/// its job may be there, and that is ours now.
pub(super) async fn end_stray(context: &mut Context) -> Result<(), Failure> {
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let Some(job) = hypervisor.domain_job(instance).await? else { return Ok(()) };
    let Some(attempt) = attempt_of(&context.common.settings, &job) else { return Ok(()) };
    let place = context.common.settings.run_dir.join(&attempt);
    let calls = Outstanding::default();
    let end = async {
        let until = Instant::now() + STRAY_END_MAX;
        let (mut was_there, mut pause) = (false, JOB_END_FIRST_PAUSE);
        while !end_once(hypervisor.as_ref(), instance, &job, &mut was_there, &calls).await? {
            if Instant::now() >= until {
                let text = format!("the backup job that attempt `{attempt}` left does not end");
                return Err(Failure::new(Code::InstanceBusy, text));
            }
            sleep(pause).await;
            pause = longer(pause);
        }
        Ok(())
    };
    let shown = matches!(job, DomainJob::Push { .. }).then(|| place.clone());
    tokio::select! {
        ended = end => ended?,
        never = cut_off(context.common.doors.movers.as_ref(), shown, &calls) => match never {},
    }
    tracing::warn!(instance.id = %instance, %attempt, "ended the backup job that an earlier attempt had left");
    let cleared = match &job {
        DomainJob::Pull { socket } => {
            let scratch_dir = context.common.settings.scratch_dir.join(&attempt);
            [
                directory::remove_file(socket).await,
                directory::remove_empty(&place).await,
                directory::remove_empty(&scratch_dir).await,
            ]
        }
        DomainJob::Push { .. } | DomainJob::Other => {
            [context.common.doors.movers.unmount(&place).await, Ok(()), Ok(())]
        }
    };
    context.common.late_warnings.extend(cleared.into_iter().filter_map(Result::err));
    Ok(())
}

/// Ends what a backup of a running instance has in libvirt, and looks at the instance no more. Where that can't be had the guard goes on
/// with it, and is named with the directories that are to go when it has ended.
pub(super) async fn end_running(context: &mut Context, directories: Vec<PathBuf>) -> Result<(), Failure> {
    context.watch = None;
    let ended = end_and_resume(context).await;
    if let Some(sampler) = context.sampler.take() {
        context.worst_write_ms = sampler.stop().await;
    }
    let Err(mut failure) = ended else { return Ok(()) };
    name_guard(&mut failure, leave_guard(context).await, directories);
    Err(failure)
}

/// Ends our job, and lets a guest run again that it has paused.
async fn end_and_resume(context: &mut Context) -> Result<(), Failure> {
    let (movers, place) = (context.common.doors.movers.clone(), context.plan.push().map(|push| push.place.clone()));
    let calls = Outstanding::default();
    tokio::select! {
        ended = end_job(context, &calls) => ended?,
        never = cut_off(movers.as_ref(), place, &calls) => match never {},
    }
    resume(context).await
}

/// Since when QEMU is asked something and has not answered, and since when our job has been seen to stand.
#[derive(Default)]
struct Outstanding {
    asked_at: Mutex<Option<Instant>>,
    standing_since: Mutex<Option<Instant>>,
}

impl Outstanding {
    /// Waits for QEMU's answer, and lets others see for how long.
    async fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        *lock(&self.asked_at) = Some(Instant::now());
        let answer = call.await;
        *lock(&self.asked_at) = None;
        answer
    }

    fn stands(&self) {
        lock(&self.standing_since).get_or_insert_with(Instant::now);
    }

    /// QEMU waits for its share, as far as can be told from outside.
    fn is_wedged(&self) -> bool {
        let since = |mutex, limit| lock(mutex).is_some_and(|since| since.elapsed() >= limit);
        since(&self.asked_at, SILENT_MAX) || since(&self.standing_since, STANDING_MAX)
    }
}

fn lock(mutex: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees QEMU from a share that does not answer, again and again. What QEMU waits for fails, its guest's own writes among it, which is
/// worse for a guest than to wait for a moment: so not before it is clear. Where there is nothing to be cut off it just waits.
async fn cut_off(movers: &dyn Movers, place: Option<PathBuf>, calls: &Outstanding) -> std::convert::Infallible {
    let Some(place) = place else { return pending().await };
    loop {
        sleep(CUT_OFF_PAUSE).await;
        if !calls.is_wedged() {
            continue;
        }
        match movers.cut_off(&place).await {
            Ok(true) => tracing::warn!(place = %place.display(), "made everything fail that waits for the share"),
            Ok(false) => {
                tracing::error!(place = %place.display(), "QEMU waits for a share that is no longer mounted here")
            }
            Err(failure) => tracing::error!("cannot free QEMU from its share: {failure:#}"),
        }
    }
}

/// Ends our job and waits until nothing of it is left. Another's job is left alone. Where none was
/// asked for there is none, whatever libvirt can say now.
async fn end_job(context: &mut Context, calls: &Outstanding) -> Result<(), Failure> {
    let Some(ours) = context.plan.domain_job().filter(|_| context.begin_asked) else { return Ok(()) };
    let seconds_max = match ours {
        DomainJob::Push { .. } => PUSH_END_SECONDS_MAX,
        DomainJob::Pull { .. } | DomainJob::Other => JOB_END_SECONDS_MAX,
    };
    let mut until = Instant::now() + Duration::from_secs(seconds_max);
    if let Some(call) = context.begin.as_mut() {
        // A begin that nobody waited for may still come about, after which there is a job to be ended.
        match timeout_at(until, call).await {
            Ok(Ok(answer)) => context.late_begin = LateCall::after(late::begin_of(&ours), &answer),
            Ok(Err(_)) => {}
            Err(_) => return Err(begin_under_way()),
        }
        context.begin = None;
    }
    if context.late_begin.is_some() {
        until += Duration::from_secs(LATE_BEGIN_SECONDS_MAX);
    }
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let (mut ours_was_there, mut pause) = (false, JOB_END_FIRST_PAUSE);
    loop {
        let once = end_once(hypervisor.as_ref(), instance, &ours, &mut ours_was_there, calls);
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
            let text = format!("our job of instance `{instance}` is still there {seconds_max} s after its end");
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
    Failure::new(Code::HypervisorTimedOut, "the call that begins the backup may still come about")
}

/// A scratch or, when QEMU writes there, a share without room pauses the guest, and QEMU leaves it to others to let it go on. A pause from before our begin is
/// somebody else's.
async fn resume(context: &mut Context) -> Result<(), Failure> {
    if !context.begin_asked || context.plan.instance_state != PowerState::Running {
        return Ok(());
    }
    let instance = context.plan.instance_id;
    if resume_after_io_error(context.common.doors.hypervisor.as_ref(), instance).await? {
        let text = format!("instance `{instance}` had been paused by an I/O error during its backup, and was resumed");
        context.common.late_warnings.push(Failure::new(Code::HypervisorFailed, text));
    }
    Ok(())
}

/// Asks our job to end if it is there; true when nothing of it is left.
async fn end_once(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    ours: &DomainJob,
    ours_was_there: &mut bool,
    calls: &Outstanding,
) -> Result<bool, Failure> {
    let ended = async {
        match hypervisor.domain_job(instance).await? {
            Some(job) if job == *ours => {
                *ours_was_there = true;
                calls.stands();
                calls.wait(hypervisor.abort_job(instance, ours)).await?;
                Ok(hypervisor.domain_job(instance).await?.is_none()
                    && calls.wait(hypervisor.block_jobs(instance)).await?.is_empty())
            }
            None if *ours_was_there => Ok(calls.wait(hypervisor.block_jobs(instance)).await?.is_empty()),
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

/// Nothing is left for the guard, but a guest that may be frozen.
pub(super) async fn let_guard_go(context: &mut Context) {
    if context.maybe_frozen {
        // Undoing the moment has reported it.
        let _reported = leave_guard(context).await;
    } else if let Some(guard) = context.guard.lock().await.take()
        && let Err(killed) = guard.disarm().await
    {
        context.common.late_warnings.push(killed);
    }
}

/// Leaves the guard to its work, which begins to settle when no call of ours is under way any more. Answers its process id.
pub(super) async fn leave_guard(context: &mut Context) -> Option<u32> {
    let Some(guard) = context.guard.lock().await.take() else { return context.left_guard };
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let process = guard.leave(Box::pin(late::none_is_listed(hypervisor, instance)));
    tracing::error!(instance.id = %instance, process, "left the guard to thaw the guest and to end our job");
    context.left_guard = Some(process);
    context.left_guard
}

/// Says in the failure that the guard goes on, and names its process as what remains, with the directories that are to go when it has
/// ended.
pub(super) fn name_guard(failure: &mut Failure, process: Option<u32>, directories: Vec<PathBuf>) {
    if let Some(process) = process {
        failure.causes.push(format!("its guard, process {process}, goes on"));
        failure.remains = Some(Box::new(remains::of_process(process, directories)));
    }
}
