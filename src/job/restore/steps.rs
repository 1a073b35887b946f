//! The steps of a restore, each with its way back.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::context::{Choice, Context, Copied};
use super::look::{LOOK_SECONDS_MAX, mapped};
use super::mapping::Mapping;
use super::names::{GO_BY_ANOTHER_SECONDS_MAX, Left, NAMES_BY_ANOTHER_SECONDS_MAX, ask_about_names, is_silence};
use super::overwrite::refuse_users;
use super::plan::refuse_if_changed;
use super::result::RestoreResult;
use crate::failure::{Class, Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::job::common::JobContext;
use crate::job::keys;
use crate::job::steps::{self, unexpected};
use crate::model::id::{InstanceId, InstanceRef};
use crate::model::instance::Instance;
use crate::model::job::{RestoreSpec, Work};
use crate::model::manifest::Manifest;
use crate::mover::protocol::{Reply, Request, RestoredVolume, VolumePlace};
use crate::saga::step::{Commit, Held, Hold, Make, Named, StepRetry};

/// Longest time for reading the backup's manifest, for looking at block devices, and at who uses them.
const CHOOSE_SECONDS_MAX: u64 = 2 * LOOK_SECONDS_MAX + 180;

/// Longest time for looking whether the instance is stopped.
const WATCH_SECONDS_MAX: u64 = 60;

/// How often libvirt is asked for the instance before the exchange.
const FIND_TRIES_MAX: u32 = 12;

/// Pause before that, and before it is looked again what became of the exchange.
const LOOK_AGAIN_SECONDS: u64 = 5;

/// Reads the backup's manifest and decides which disk becomes which.
pub(super) struct Choose;

impl Choose {
    /// The step's name, under which the choice stands in the records.
    pub const NAME: &'static str = "choose";
}

impl Named for Choose {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(CHOOSE_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Choose {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let (spec, manifest) = (spec_of(context)?, find(context).await?);
        let mapped = mapped(&mut context.common.session, &context.plan, &spec, &manifest);
        let Mapping { volumes, mut warnings } = mapped.await?;
        let (targets, volumes): (_, Vec<_>) = volumes.into_iter().unzip();
        warnings.extend(refuse_users(context.common.doors.movers.as_ref(), &volumes, None).await?);
        // Before anything is made, or nobody could look what there is of it.
        let (common, secrets) = (&mut context.common, volumes.iter().filter_map(|volume| volume.place.secret()));
        keys::give(&mut common.session, common.doors.hypervisor.as_ref(), secrets).await?;
        let choice = Choice { number: manifest.number, taken_at: manifest.taken_at, targets, volumes, warnings };
        let value = serde_json::to_value(&choice)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down what is restored").because(&error))?;
        context.choice = Some(choice);
        Ok(value)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// What the job asks for.
pub(super) fn spec_of(context: &Context) -> Result<RestoreSpec, Failure> {
    match &context.common.job.work {
        Work::Restore(spec) => Ok(spec.clone()),
        _ => Err(Failure::new(Code::Internal, "a job that is no restore was taken for one")),
    }
}

/// The backup's manifest.
pub(super) async fn find(context: &mut Context) -> Result<Box<Manifest>, Failure> {
    let request = Request::Find { instance: context.plan.instance_id, backup: context.plan.backup_id };
    match context.common.session.ask(request, Duration::from_secs(LOOK_SECONDS_MAX)).await? {
        Reply::Found { manifest } => Ok(manifest),
        other => Err(unexpected("find", &other)),
    }
}

/// The instance, for as long as it stays stopped.
pub(super) struct StaysStopped;

impl Named for StaysStopped {
    fn name(&self) -> &'static str {
        "stopped"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(WATCH_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::HypervisorTimedOut
    }
}

#[async_trait]
impl Hold<Context> for StaysStopped {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
        let looking = hypervisor.clone();
        let look = move || {
            let hypervisor = looking.clone();
            async move { steps::started(hypervisor.as_ref(), instance, "restore").await }
        };
        let (task, lost) = steps::watch(hypervisor.as_ref(), instance, look).await?;
        context.watch = Some(task);
        if let Some(started) = steps::started(hypervisor.as_ref(), instance, "restore").await {
            return Err(started);
        }
        Ok(Held { value: Value::Null, lost: Some(lost) })
    }

    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.watch = None;
        Ok(())
    }
}

/// Makes the new volumes beside the old ones.
pub(super) struct Restore {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Restore {
    /// The step's name, under which what was written stands in the records.
    pub const NAME: &'static str = "restore";
}

impl Named for Restore {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(GO_BY_ANOTHER_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Restore {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let (instance, backup) = (context.plan.instance_id, context.plan.backup_id);
        let (volumes, keep_previous) = (context.choice()?.volumes.clone(), context.plan.keep_previous);
        let request = Request::Restore { instance, backup, volumes, keep_previous };
        match context.common.ask_moving(self, request).await? {
            Reply::Copied { disks, warnings } => {
                context.copied = Copied { disks, warnings };
                serde_json::to_value(&context.copied)
                    .map_err(|error| Failure::new(Code::Internal, "cannot write down what was written").because(&error))
            }
            other => Err(unexpected("restore", &other)),
        }
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let volumes = context.choice()?.volumes.clone();
        let left = Left::of(&volumes, VolumePlace::fresh);
        let removed = ask_about_names(&mut context.common, Request::RemoveFresh { volumes }).await;
        removed.map(drop).map_err(|failure| left.of_failure(failure))
    }
}

/// Reads every new volume back and holds it against what was backed up.
pub(super) struct Compare {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Compare {
    pub const NAME: &'static str = "compare";
}

impl Named for Compare {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl<C: JobContext> Make<C> for Compare {
    async fn make(&self, context: &mut C) -> Result<Value, Failure> {
        let Reply::DoneBut { warnings } = context.common().ask_moving(self, Request::Compare).await? else {
            return Ok(Value::Null);
        };
        context.common().warnings.extend(warnings.clone());
        // So that a later worker can tell them.
        Ok(json!(warnings))
    }

    async fn undo(&self, _context: &mut C, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Puts all new volumes in the places of the old ones. What is to be exchanged stands in the records since before the first byte was
/// written, so whoever comes after a crash can only bring it to its end.
pub(super) struct Exchange;

impl Named for Exchange {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(NAMES_BY_ANOTHER_SECONDS_MAX)
    }

    /// Not to be tried anew: another attempt would find the volumes anywhere.
    fn deadline_code(&self) -> Code {
        Code::RestoreUnfinished
    }
}

#[async_trait]
impl Commit<Context> for Exchange {
    /// Only a mover's answer ends it. One that died may have exchanged some: another one goes on where it was. But only the first that is
    /// asked begins: later the instance may have run on the old volumes meanwhile.
    async fn commit(&self, context: &mut Context) -> Result<Value, Failure> {
        let volumes = context.choice()?.volumes.clone();
        if !context.exchange_asked {
            let hypervisor = context.common.doors.hypervisor.clone();
            let instance = found_again(hypervisor.as_ref(), context.plan.instance_id).await?;
            refuse_if_changed(&context.plan, &context.choice()?.targets, &instance)?;
        }
        loop {
            let only_go_on = std::mem::replace(&mut context.exchange_asked, true);
            let request = Request::Exchange { volumes: volumes.clone(), only_go_on };
            match ask_about_names(&mut context.common, request).await {
                Ok(Reply::Done) => {
                    // Later, after a crash, it may well run: on the new ones.
                    if !only_go_on {
                        refuse_started(context).await?;
                    }
                    return RestoreResult::of(context)?.to_value();
                }
                Ok(Reply::NotKnown { failure }) => {
                    let failure = format!("{failure:#}");
                    tracing::warn!(failure, "it can't be seen what became of the volumes' exchange");
                }
                Ok(other) => return Err(unexpected("exchange", &other)),
                Err(failure) if is_silence(&failure) => {
                    let failure = format!("{failure:#}");
                    tracing::warn!(failure, "nobody says what became of the volumes' exchange");
                }
                Err(failure) => return Err(failure),
            }
            sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await;
        }
    }

    /// The instance may run on either.
    fn is_not_known(&self, failure: &Failure) -> bool {
        failure.code == Code::RestoreUnfinished
    }
}

/// `restore_unfinished` where the instance was started amid the exchange of logical volumes. libvirt makes nodes of their numbers before QEMU opens them, so
/// that it may have found the old ones, and opens them after the mover has looked. Files and RBD images are opened by their names.
async fn refuse_started(context: &mut Context) -> Result<(), Failure> {
    let is_logical = |volume: &RestoredVolume| matches!(volume.place, VolumePlace::Logical { .. });
    if !context.choice()?.volumes.iter().any(is_logical) {
        return Ok(());
    }
    let hypervisor = context.common.doors.hypervisor.clone();
    match steps::started(hypervisor.as_ref(), context.plan.instance_id, "restore").await {
        None => Ok(()),
        Some(started) => {
            let text =
                "the instance may have been started while its logical volumes were exchanged, and run on the old ones";
            Err(Failure::new(Code::RestoreUnfinished, text).because_of(&started))
        }
    }
}

/// The instance as it is now. A libvirt that is just being restarted is not worth all that was written.
pub(super) async fn found_again(hypervisor: &dyn Hypervisor, instance: InstanceId) -> Result<Instance, Failure> {
    let id = InstanceRef::Id(instance);
    for _ in 1..FIND_TRIES_MAX {
        match hypervisor.find(&id).await {
            Err(failure) if failure.class() == Class::Transient => sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await,
            found => return found,
        }
    }
    hypervisor.find(&id).await
}

/// Removes the old volumes once the new ones have taken their places.
pub(super) struct RemovePrevious;

impl Named for RemovePrevious {
    fn name(&self) -> &'static str {
        "remove_previous"
    }

    fn retry(&self) -> StepRetry {
        StepRetry::REMOVAL
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(GO_BY_ANOTHER_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for RemovePrevious {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let volumes = context.choice()?.volumes.clone();
        let left = Left::of(&volumes, VolumePlace::previous);
        let removed = ask_about_names(&mut context.common, Request::RemovePrevious { volumes }).await;
        removed.map(|_| Value::Null).map_err(|failure| left.of_failure(failure))
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}
