//! Writing over block devices, of which there is no second one: the last step before the exchange, and the only one without a way
//! back. Until it begins everything that was made can be taken away; once it has, a run that does not complete has failed for good, and says which
//! devices may hold a part of each. After a crash nothing is written again: the instance may have run meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::plan::refuse_if_changed;
use super::steps::found_again;
use crate::failure::{Code, Failure};
use crate::host::mover::{MoverName, Movers, Usage, User};
use crate::mover::protocol::{DeviceNumbers, Request, RestoredVolume, VolumePlace};
use crate::saga::step::{Make, Named};
use crate::saga::{End, Outcome, Record};

/// Longest time for claiming the devices.
const CLAIM_SECONDS_MAX: u64 = 60;

/// Writes the block devices over.
pub(super) struct Overwrite {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Overwrite {
    /// The step's name, by which the records say that it has begun.
    pub const NAME: &'static str = "overwrite";

    /// The record says that the devices may be written to from then on.
    pub fn is_begun(record: &Record) -> bool {
        matches!(record, Record::Began { step, .. } if step == Self::NAME)
    }
}

impl Named for Overwrite {
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
impl Make<Context> for Overwrite {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        if devices(&context.choice()?.volumes).is_empty() {
            return Ok(Value::Null);
        }
        let hypervisor = context.common.doors.hypervisor.clone();
        let instance = found_again(hypervisor.as_ref(), context.plan.instance_id).await?;
        refuse_if_changed(&context.plan, &context.choice()?.targets, &instance)?;
        let movers = context.common.doors.movers.clone();
        let unseen = refuse_users(movers.as_ref(), &context.choice()?.volumes, None).await?;
        let known = context.choice()?.warnings.clone();
        context.common.warnings.extend(unseen.filter(|unseen| !known.contains(unseen)));
        context.common.session.ask(Request::Claim, Duration::from_secs(CLAIM_SECONDS_MAX)).await?;
        // From now on the kernel lets nobody claim them; but who only opens them, as QEMU does, may have come meanwhile.
        let claimer = context.common.mover_name()?;
        refuse_users(movers.as_ref(), &context.choice()?.volumes, Some(&claimer)).await?;
        context.overwriting = true;
        context.common.ask_moving(self, Request::Overwrite).await?;
        Ok(Value::Null)
    }

    /// There is none. What is being written is broken off by what is asked of the mover next, the removal of the other new volumes.
    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// `in_use_elsewhere` where somebody on this host uses one of the devices that would be written over. Answers what of the host could not be
/// looked at, in a sentence.
pub(super) async fn refuse_users(
    movers: &dyn Movers,
    volumes: &[RestoredVolume],
    claimed_by: Option<&MoverName>,
) -> Result<Option<String>, Failure> {
    let devices = devices(volumes);
    if devices.is_empty() {
        return Ok(None);
    }
    let numbers: Vec<_> = devices.iter().map(|(_, numbers)| *numbers).collect();
    let Usage { user, unseen } = movers.usage(&numbers, claimed_by).await?;
    let Some((used, user)) = user else { return Ok(said_of(&unseen, &devices)) };
    let named = devices.iter().find(|(_, numbers)| *numbers == used);
    let path = named.map(|(path, _)| path.display().to_string()).unwrap_or_default();
    let text = match user {
        User::Process(who) => format!("{who} has `{path}`, or a disk or partition that it is a part of, open"),
        User::Device(what) => format!("{what} is on top of `{path}`, or of a disk or partition that it is a part of"),
    };
    Err(Failure::new(Code::InUseElsewhere, text))
}

fn said_of(unseen: &[String], devices: &[(PathBuf, DeviceNumbers)]) -> Option<String> {
    let paths: Vec<_> = devices.iter().map(|(path, _)| format!("`{}`", path.display())).collect();
    let text = || format!("it cannot be seen whether {} of this host use {}", unseen.join(" and "), paths.join(" or "));
    (!unseen.is_empty()).then(text)
}

/// The volumes that are written over.
fn devices(volumes: &[RestoredVolume]) -> Vec<(PathBuf, DeviceNumbers)> {
    let device = |volume: &RestoredVolume| match &volume.place {
        VolumePlace::Device { volume, numbers } => Some((volume.clone(), *numbers)),
        VolumePlace::File { .. } | VolumePlace::Logical { .. } | VolumePlace::Rbd { .. } => None,
    };
    volumes.iter().filter_map(device).collect()
}

/// What a run came to that had begun to write devices over.
pub(super) fn end(outcome: Outcome, volumes: &[RestoredVolume]) -> Outcome {
    let (End::Failed { failure } | End::Stopped { failure }) = &outcome.end else { return outcome };
    let names: Vec<_> = devices(volumes).iter().map(|(path, _)| format!("`{}`", path.display())).collect();
    if names.is_empty() {
        return outcome;
    }
    let text = format!(
        "the restore ended once it had begun to write {} over, which may hold a part of the backup and a part of what was there",
        names.join(" and ")
    );
    let failure = Failure::new(Code::RestoreUnfinished, text).because_of(failure).in_step(Overwrite::NAME);
    Outcome { end: End::Failed { failure }, ..outcome }
}
