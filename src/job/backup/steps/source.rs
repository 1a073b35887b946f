//! Holding the source: for a running instance the guard, scratch and the pull job; for a stopped one the watch over its
//! staying stopped.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

use super::super::context::Context;
use super::super::directory::{self, Access};
use super::super::plan::PullPlan;
use super::super::stall::Sampler;
use super::ending;
use super::watch;
use crate::failure::{Code, Failure};
use crate::host::guard::{GuardDuty, JobDuty, SCRATCH_RESERVE_BYTES, ScratchDuty};
use crate::model::instance::PowerState;
use crate::saga::step::{Held, Hold, Named};

/// Longest time for preparing to read.
const ACQUIRE_SECONDS_MAX: u64 = 60;

/// Longest time for one try of the release.
const RELEASE_SECONDS_MAX: u64 = ending::JOB_END_SECONDS_MAX + ending::LATE_BEGIN_SECONDS_MAX + 30;

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
        let pull = pull_of(context)?;
        directory::make(&pull.socket_dir, Access::MakesFiles, pull.qemu_owner)?;
        directory::make(&pull.scratch_dir, Access::OpensFiles, pull.qemu_owner)?;
        let scratch = ScratchDuty {
            files: pull.scratch.clone(),
            limit_bytes: pull.scratch_limit_bytes,
            reserve_bytes: SCRATCH_RESERVE_BYTES,
        };
        arm_guard(context, Some(scratch)).await?;
        ending::end_stray(context).await?;
        watch_running(context).await
    }

    /// The guard goes last: until the job is gone and the guest thawed, somebody has to answer for them.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        let pull = pull_of(context)?;
        // QEMU and libvirt take away what is in them, when the job is gone.
        ending::end_running(context, vec![pull.socket_dir.clone(), pull.scratch_dir.clone()]).await?;
        let removed = remove_files(&pull).await;
        ending::let_guard_go(context).await;
        removed
    }
}

/// The guard that answers for the freeze and for our job from here on.
pub(super) async fn arm_guard(context: &mut Context, scratch: Option<ScratchDuty>) -> Result<(), Failure> {
    let plan = context.plan.clone();
    let was_running = plan.instance_state == PowerState::Running;
    let duty = GuardDuty {
        instance: plan.instance_id,
        freeze_limit: context.common.settings.freeze_limit,
        job: plan.domain_job().map(|ours| JobDuty { ours, was_running, scratch }),
    };
    let guard = context.common.doors.guards.arm(&duty).await?;
    *context.guard.lock().await = Some(guard);
    Ok(())
}

/// Looks on, from here on, whether the instance goes on running, and at what its writes take.
pub(super) async fn watch_running(context: &mut Context) -> Result<Held, Failure> {
    let source = watch::Source::of(context);
    if let Some(lost) = source.lost().await {
        return Err(lost);
    }
    let (task, lost) = watch::watch(source).await?;
    context.watch = Some(task);
    let (plan, hypervisor) = (context.plan.clone(), context.common.doors.hypervisor.clone());
    let targets = plan.disks.iter().map(|disk| disk.target.clone()).collect();
    context.sampler = Some(Sampler::start(hypervisor, plan.instance_id, targets));
    Ok(Held { value: Value::Null, lost: Some(lost) })
}

fn pull_of(context: &Context) -> Result<PullPlan, Failure> {
    let pull = context.plan.pull().cloned();
    pull.ok_or_else(|| Failure::new(Code::Internal, "the source of a pull backup was held without a plan for one"))
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
        // What is read stands still from here on, or the backup is none.
        context.taken_at = Some(Timestamp::now());
        Ok(Held { value: Value::Null, lost: Some(lost) })
    }

    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.watch = None;
        Ok(())
    }
}
