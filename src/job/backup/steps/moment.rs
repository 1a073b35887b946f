//! The moment that the backup shows: freeze, begin, thaw at once.
//!
//! It is one step, not a hold around another, since the engine's records would be written to disk while the guest waits.
//! Its undo is the thaw, so the guest is thawed on every way out: after a freeze that failed (only its answer may have been
//! lost), after a freeze that timed out (it can still come about, so thawed counts only once that call is over), when the step is cancelled half-way, and after a crash.
//! Everything slow has been done before: directories, guard, the list of file systems; the agent's ping comes first here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::basis::Basis;
use super::super::context::Context;
use super::super::freeze::{AGENT_ANSWER_SECONDS_MAX, Reached, THAW_SECONDS_MAX, Thawed, judge, thaw_until_confirmed};
use super::super::late::{self, LateCall};
use super::super::plan::{BackupPlan, SourcePlan, refuse_if_changed};
use super::super::tracking::Tracking;
use super::basis::check_room;
use super::ending::{leave_guard, name_guard};
use super::watch::{Source, real_cause};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{Hypervisor, PullBackup, PushBackup};
use crate::model::id::InstanceRef;
use crate::model::job::{Quiesce, Work};
use crate::model::manifest::{Consistency, QuiesceRecord};
use crate::saga::step::{Make, Named};

/// Longest time for one undo: a thaw may be repeated for its whole time, and its last try still has to be answered.
const UNDO_SECONDS_MAX: u64 = THAW_SECONDS_MAX + 60;

/// Longest time from the begin call to its answer where no guest is frozen. With 8 disks it takes half a second.
const BEGIN_SECONDS_MAX: u64 = 60;

/// Freezes if the plan says so, begins the backup, and thaws.
pub(in super::super) struct Moment {
    /// Longest time that the guest may be frozen.
    pub freeze_limit: Duration,
}

impl Moment {
    /// The step's name, under which the records say that the backup may have begun.
    pub const NAME: &'static str = "moment";

    async fn take(&self, context: &mut Context) -> Result<Value, Failure> {
        look_again(context).await?;
        match context.guard.lock().await.as_mut() {
            Some(guard) => guard.beginning().await?,
            None => return Err(no_guard()),
        }
        let record = if context.plan.freeze.attempted {
            take_frozen(context, self.freeze_limit).await?
        } else {
            begin(context, Duration::from_secs(BEGIN_SECONDS_MAX)).await?;
            QuiesceRecord {
                requested: context.plan.freeze.requested,
                consistency: Consistency::Crash,
                not_frozen: Vec::new(),
                frozen_ms: None,
                reason: context.plan.freeze.reason.clone(),
            }
        };
        refuse_if_guard_fired(context).await?;
        let value = json!({ "quiesce": record });
        context.quiesce = Some(record);
        context.reached.store(true, Ordering::Release);
        Ok(value)
    }
}

impl Named for Moment {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.freeze_limit * 2 + Duration::from_secs(UNDO_SECONDS_MAX + BEGIN_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(UNDO_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::HypervisorTimedOut
    }
}

#[async_trait]
impl Make<Context> for Moment {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        match self.take(context).await {
            // libvirt's word for an instance that stopped meanwhile is that the call is not for its state.
            Err(failure) => Err(real_cause(Source::of(context), failure).await),
            taken => taken,
        }
    }

    /// The job itself is ended by the source's release: ending it may take a while, and the guest comes first.
    async fn undo(&self, context: &mut Context, made: Option<&Value>) -> Result<(), Failure> {
        let interrupted_before = made.is_none() && context.facts.is_none() && context.plan.freeze.attempted;
        if !(context.maybe_frozen || interrupted_before) {
            return Ok(());
        }
        thaw(context).await.map(drop)
    }
}

/// Minutes may have passed since the plan was made, with the queue and the share in between. What it says of the disks goes
/// into the manifest and the copy, so it has to be true at the moment. And no guest is frozen for a begin that is known to be
/// refused.
async fn look_again(context: &mut Context) -> Result<(), Failure> {
    let (hypervisor, id) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let instance = hypervisor.find(&InstanceRef::Id(id)).await?;
    let Work::Backup(spec) = &context.common.job.work else {
        return Err(Failure::new(Code::Internal, "a job that is no backup was taken for one"));
    };
    refuse_if_changed(&context.plan, &instance, &spec.exclude_disks)?;
    match hypervisor.domain_job(id).await? {
        Some(job) => {
            let text = format!("instance `{id}` has another job");
            Err(Failure::new(Code::InstanceBusy, text).caused_by(format!("{job:?}")))
        }
        None => Ok(()),
    }
}

/// Freeze, begin, thaw. Every way out of it after the freeze call goes through the thaw; a cancelled one through undo.
async fn take_frozen(context: &mut Context, freeze_limit: Duration) -> Result<QuiesceRecord, Failure> {
    let requested = context.plan.freeze.requested;
    if let Err(silent) = ask_agent(context).await {
        if requested == Quiesce::Require {
            return Err(silent);
        }
        begin(context, Duration::from_secs(BEGIN_SECONDS_MAX)).await?;
        return Ok(crash_consistent(requested, &silent));
    }
    match context.guard.lock().await.as_mut() {
        Some(guard) => guard.freezing().await?,
        None => return Err(no_guard()),
    }
    context.guard_freezing = true;
    context.maybe_frozen = true;
    let asked_at = Instant::now();
    // Half of the limit each for freezing and beginning: past it the guard has thawed, and it was no consistent moment.
    let reached = match freeze(context, freeze_limit / 2).await {
        Ok(count) => Ok(judge(count, listed(context), &context.plan.disks)),
        Err(failure) => Err(as_freeze_failure(failure)),
    };
    let begun = match (refusal(requested, &reached), &reached) {
        (Some(refusal), _) => Err(refusal),
        // With a freeze still on its way the guest comes first, whatever the job would do with one that had failed.
        (None, Err(failure)) if context.late_freeze.is_some() => Err(failure.clone()),
        (None, _) => begin(context, freeze_limit / 2).await,
    };
    let thawed = thaw(context).await;
    // A guest that may be frozen is worse than any failure of the job.
    let thawed = thawed.map_err(|frozen| match &begun {
        Ok(()) => frozen,
        Err(failure) => frozen.because_of(failure),
    })?;
    begun?;
    let frozen_ms = milliseconds(thawed.at.duration_since(asked_at));
    let reached = reached.and_then(|reached| still_frozen_at_thaw(reached, &thawed));
    if let Some(refusal) = refusal(requested, &reached) {
        return Err(refusal);
    }
    Ok(match reached {
        Err(failure) => QuiesceRecord { frozen_ms: Some(frozen_ms), ..crash_consistent(requested, &failure) },
        Ok(Reached { consistency, not_frozen, reason }) => {
            QuiesceRecord { requested, consistency, not_frozen, frozen_ms: Some(frozen_ms), reason }
        }
    })
}

/// The freeze held only if our own thaw is what ended it: a guest can be thawed from inside, by another program on the host,
/// and by Windows after ten seconds (VSS_E_HOLD_WRITES_TIMEOUT), any of which may have been before the begin.
fn still_frozen_at_thaw(reached: Reached, thawed: &Thawed) -> Result<Reached, Failure> {
    let early = || Failure::new(Code::FreezeIncomplete, "the guest may have been thawed before the backup began");
    match &thawed.first {
        _ if reached.consistency == Consistency::Crash => Ok(reached),
        Ok(0) => Err(early().caused_by("its first thaw found no file system frozen")),
        Ok(_) => Ok(reached),
        Err(failure) => Err(early().because_of(failure)),
    }
}

async fn ask_agent(context: &mut Context) -> Result<(), Failure> {
    if let (Quiesce::Require, Some(Err(failure))) = (context.plan.freeze.requested, &context.file_systems) {
        return Err(failure.clone());
    }
    let limit = Duration::from_secs(AGENT_ANSWER_SECONDS_MAX);
    context.common.doors.hypervisor.agent_ping(context.plan.instance_id, limit).await
}

fn listed(context: &Context) -> Option<&[crate::host::hypervisor::GuestFileSystem]> {
    context.file_systems.as_ref()?.as_ref().ok().map(Vec::as_slice)
}

fn crash_consistent(requested: Quiesce, why: &Failure) -> QuiesceRecord {
    QuiesceRecord {
        requested,
        consistency: Consistency::Crash,
        not_frozen: Vec::new(),
        frozen_ms: None,
        reason: Some(format!("{why:#}")),
    }
}

/// Codes that say more than "the freeze failed" are kept.
fn as_freeze_failure(failure: Failure) -> Failure {
    match failure.code {
        Code::AgentMissing | Code::AgentSilent | Code::FreezeFailed => failure,
        _ => Failure::new(Code::FreezeFailed, "the guest could not be frozen").because_of(&failure),
    }
}

fn refusal(requested: Quiesce, reached: &Result<Reached, Failure>) -> Option<Failure> {
    match reached {
        _ if requested != Quiesce::Require => None,
        Err(failure) => Some(failure.clone()),
        Ok(reached) if reached.consistency == Consistency::FileSystem => None,
        Ok(reached) => {
            let text =
                format!("the freeze was not complete: {}", reached.reason.as_deref().unwrap_or("no reason is known"));
            let named = reached
                .not_frozen
                .iter()
                .map(|mount_point| format!("perhaps not frozen: `{}`", mount_point.escape_debug()));
            Some(named.fold(Failure::new(Code::FreezeIncomplete, text), Failure::caused_by))
        }
    }
}

/// The call goes on by itself when it is no longer waited for; the source's release waits for what became of it.
async fn begin(context: &mut Context, limit: Duration) -> Result<(), Failure> {
    let plan = context.plan.clone();
    let Some(job) = plan.domain_job() else {
        return Err(Failure::new(Code::Internal, "a backup was begun in libvirt without a plan for one"));
    };
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), plan.instance_id);
    context.begin_asked = true;
    let asked_at = Instant::now();
    let no_room = plan.push().and_then(|_| check_room(context, &Basis::default()).err());
    let tracking = std::mem::take(&mut context.tracking);
    let ask = async move { ask_to_begin(hypervisor.as_ref(), &plan, tracking, no_room).await };
    let call = context.begin.insert(tokio::spawn(ask));
    let answer = timeout(limit, call).await.map_err(|_| {
        let text = format!("the backup of instance `{instance}` had not begun after {limit:?}");
        Failure::new(Code::HypervisorTimedOut, text)
    })?;
    context.begin = None;
    let answer = answer
        .map_err(|error| Failure::new(Code::Internal, "the call that begins a backup broke off").because(&error))?;
    context.late_begin = LateCall::after(late::begin_of(&job), &answer);
    let Begun { tracking, refused } = answer?;
    context.tracking = tracking;
    if let Some(failure) = refused.as_ref().filter(|_| context.plan.push().is_some()) {
        let reason = format!("QEMU writes all of it in a push: {failure:#}");
        context.basis.only_since(&context.tracking.since, &reason);
    }
    let refused = refused.map(|failure| format!("not all of what was asked for can be tracked: {failure:#}"));
    context.common.warnings.extend(refused);
    context.taken_at = Some(Timestamp::now());
    context.begin_ms = Some(milliseconds(asked_at.elapsed()));
    Ok(())
}

/// What a begin came to.
pub(in super::super) struct Begun {
    /// What of the tracking was had.
    tracking: Tracking,
    /// Why not all of it.
    refused: Option<Failure>,
}

/// `no_room` says why all disks can't be stored whole, which is what less comes to in a push.
async fn ask_to_begin(
    hypervisor: &dyn Hypervisor,
    plan: &BackupPlan,
    tracking: Tracking,
    no_room: Option<Failure>,
) -> Result<Begun, Failure> {
    let (mut refused, in_part) = (None, !tracking.since.is_empty());
    for tracking in tracking.and_less() {
        if let Some(no_room) = no_room.as_ref().filter(|_| in_part && tracking.since.is_empty()) {
            return Err(refused.map_or_else(|| no_room.clone(), |refused| no_room.clone().because_of(&refused)));
        }
        match begin_with(hypervisor, plan, &tracking).await {
            Ok(()) => return Ok(Begun { tracking, refused }),
            // Nothing has begun, and it may be for what was asked for besides.
            Err(failure) if failure.code == Code::HypervisorFailed && tracking != Tracking::default() => {
                refused = refused.or(Some(failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::new(Code::Internal, "a backup was asked for in no way at all"))
}

async fn begin_with(hypervisor: &dyn Hypervisor, plan: &BackupPlan, tracking: &Tracking) -> Result<(), Failure> {
    let (instance, checkpoint) = (plan.instance_id, tracking.checkpoint.clone());
    match &plan.source {
        SourcePlan::Pull(pull) => {
            let (socket, disks) = (pull.socket.clone(), plan.pull_disks(pull, tracking));
            hypervisor.begin_pull(instance, &PullBackup { socket, disks, checkpoint }).await
        }
        SourcePlan::Push(push) => {
            let backup = PushBackup { disks: plan.push_disks(push, tracking), checkpoint };
            hypervisor.begin_push(instance, &backup).await.map_err(as_push_refusal)
        }
        SourcePlan::Stopped => Err(Failure::new(Code::Internal, "a stopped instance has nothing to begin")),
    }
}

/// What is permitted to QEMU's user, which has been tried, can be forbidden to its process.
fn as_push_refusal(failure: Failure) -> Failure {
    if !format!("{failure:#}").contains("Permission denied") {
        return failure;
    }
    Failure::new(
        Code::PushNotPossible,
        "QEMU may not write to the share, though its user may: AppArmor or SELinux forbids it",
    )
    .because(&failure)
}

/// On a task of its own, like begin: a thaw means nothing while a freeze is still on its way to the agent.
async fn freeze(context: &mut Context, limit: Duration) -> Result<u32, Failure> {
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let call = context.freeze.insert(tokio::spawn(async move { hypervisor.freeze(instance, limit).await }));
    let answer = call.await;
    context.freeze = None;
    let broke_off = |error| Failure::new(Code::Internal, "the call that freezes a guest broke off").because(&error);
    let answer = answer.map_err(broke_off)?;
    context.late_freeze = LateCall::after(late::FREEZE, &answer);
    answer
}

async fn thaw(context: &mut Context) -> Result<Thawed, Failure> {
    let until = *context.thaw_until.get_or_insert_with(|| Instant::now() + Duration::from_secs(THAW_SECONDS_MAX));
    if let Some(call) = context.freeze.as_mut() {
        // What it answered matters only if that leaves open whether it is over.
        if let Ok(Ok(answer)) = timeout_at(until, call).await {
            context.late_freeze = LateCall::after(late::FREEZE, &answer);
        }
        context.freeze = None;
    }
    let mut thawed = thaw_for_good(context, until).await;
    match &mut thawed {
        Ok(_) => {
            context.maybe_frozen = false;
            if std::mem::take(&mut context.guard_freezing)
                && let Some(guard) = context.guard.lock().await.as_mut()
            {
                context.guard_verdict = guard.thawed().await.err();
            }
        }
        Err(failure) => {
            context.maybe_frozen = true;
            name_guard(failure, leave_guard(context).await, Vec::new());
        }
    }
    thawed
}

/// Thaws, and goes on with that while a freeze may still come about.
async fn thaw_for_good(context: &mut Context, until: Instant) -> Result<Thawed, Failure> {
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let first = thaw_until_confirmed(hypervisor.as_ref(), instance, until).await?;
    while let Some(late) = &mut context.late_freeze {
        if late.is_over(hypervisor.as_ref(), instance) {
            context.late_freeze = None;
            break;
        }
        let pause = Duration::from_secs(late::LOOK_SECONDS);
        if Instant::now() + pause >= until {
            let text = format!("instance `{instance}` is thawed, but a freeze that it was sent may still come about");
            return Err(Failure::new(Code::GuestMaybeFrozen, text));
        }
        sleep(pause).await;
        thaw_until_confirmed(hypervisor.as_ref(), instance, until).await?;
    }
    Ok(first)
}

/// Asked after the thaw, so that the guest does not wait for the answer: a guard that fired at all makes the moment doubtful.
async fn refuse_if_guard_fired(context: &mut Context) -> Result<(), Failure> {
    if let Some(verdict) = context.guard_verdict.take() {
        return Err(verdict);
    }
    let mut slot = context.guard.lock().await;
    let guard = slot.as_mut().ok_or_else(no_guard)?;
    guard.fired().await?.map_or(Ok(()), Err)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn no_guard() -> Failure {
    Failure::new(Code::Internal, "a backup was begun in libvirt without a guard")
}
