//! What the files become once they have their names, which is where somebody else can see them: an instance, or a disk of one.
//!
//! It says either that this has happened, or that it has not, or that it is not known; and that it has not, only where libvirt has said so
//! itself, in this attempt, and owes no answer. After a crash it is only looked at.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::choose::{Becomes, Choice, Holder, holder};
use super::context::Context;
use super::names::{
    ASK_AGAIN_SECONDS, NAMES_SECONDS_MAX, TO_THE_DEADLINE, about_names, answered, identities, is_no_answer,
};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::mover::protocol::Request;
use crate::saga::step::{Commit, Make, Named};

/// Longest time for libvirt to define an instance or to attach a disk, tried anew where it does not answer.
const HYPERVISOR_SECONDS_MAX: u64 = 900;

/// How often that is tried where another libvirt operation holds the instance.
const BUSY_MAX: u32 = 12;

/// Longest time for libvirt to start the new instance.
const START_SECONDS_MAX: u64 = 60;

/// Defines the instance, attaches the disk or, of a volume alone, gives it its name.
pub(super) struct Place;

impl Named for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(NAMES_SECONDS_MAX + HYPERVISOR_SECONDS_MAX)
    }

    /// Not to be tried anew: another attempt would find some of it.
    fn deadline_code(&self) -> Code {
        Code::RestoreUnfinished
    }
}

#[async_trait]
impl Commit<Context> for Place {
    async fn commit(&self, context: &mut Context) -> Result<Value, Failure> {
        let choice = context.choice()?.clone();
        let hypervisor = context.common.doors.hypervisor.clone();
        match (&choice.becomes, std::mem::replace(&mut context.place_begun, true)) {
            // It says itself whether the file has its name.
            (Becomes::File, _) => about_names(context, |new| Request::PlaceNew { new }).await?,
            (_, false) => become_it(&*hypervisor, &choice).await?,
            (_, true) => find_out(&*hypervisor, &choice).await?,
        }
        context.result()?.to_value()
    }

    fn is_not_known(&self, failure: &Failure) -> bool {
        failure.code == Code::RestoreUnfinished
    }
}

fn unfinished(failure: Failure) -> Failure {
    Failure { code: Code::RestoreUnfinished, ..failure }
}

/// Asks libvirt until it has done it or has refused.
async fn become_it(hypervisor: &dyn Hypervisor, choice: &Choice) -> Result<(), Failure> {
    let (mut owes_an_answer, mut busy) = (false, 0);
    loop {
        let failure = match ask_libvirt(hypervisor, choice).await {
            Ok(()) => return Ok(()),
            Err(failure) if failure.code == Code::RestoreUnfinished => return Err(failure),
            Err(failure) => failure,
        };
        let is_silent = is_no_answer(&failure);
        owes_an_answer |= is_silent || failure.code == Code::Internal;
        // It may have come to be all the same.
        match identities(hypervisor, TO_THE_DEADLINE).await.map(|identities| holder(choice, &identities)) {
            Ok(Holder::Nobody) if is_silent => {}
            Ok(Holder::Nobody) if failure.code == Code::InstanceBusy && busy < BUSY_MAX => busy += 1,
            // The call that was not answered may have its effect yet; an instance that is not here may have taken the disk with it.
            Ok(Holder::Nobody) if owes_an_answer || failure.code == Code::InstanceNotHere => {
                return Err(unfinished(failure));
            }
            Ok(Holder::Nobody) => return Err(failure),
            Ok(Holder::Ours) => return is_whole(hypervisor, choice).await,
            Ok(Holder::Another(who)) => return Err(unfinished(failure).caused_by(who)),
            Err(silent) => return Err(unfinished(failure).because_of(&silent)),
        }
        tracing::warn!(failure = format!("{failure:#}"), "libvirt is asked again");
        sleep(Duration::from_secs(ASK_AGAIN_SECONDS)).await;
    }
}

async fn ask_libvirt(hypervisor: &dyn Hypervisor, choice: &Choice) -> Result<(), Failure> {
    match &choice.becomes {
        Becomes::Instance(new) => hypervisor.define(new).await,
        Becomes::Disk { instance_id, disk, .. } => hypervisor.attach(*instance_id, disk).await,
        Becomes::File => Ok(()),
    }
}

/// After a crash, or after a try that passed its deadline. Libvirt may have been asked, and whoever runs the host may have gone on with what
/// came of that, to another host as well: so what nobody has here is not nobody's, and nothing is asked or taken back.
async fn find_out(hypervisor: &dyn Hypervisor, choice: &Choice) -> Result<(), Failure> {
    match holder(choice, &identities(hypervisor, TO_THE_DEADLINE).await.map_err(unfinished)?) {
        Holder::Ours => is_whole(hypervisor, choice).await,
        Holder::Another(who) => Err(Failure::new(Code::RestoreUnfinished, who)),
        Holder::Nobody => {
            let text = "libvirt may have been asked to take the new files, and no instance of this host has them now";
            Err(Failure::new(Code::RestoreUnfinished, text))
        }
    }
}

/// What is ours is there in every respect, as far as libvirt shows it.
async fn is_whole(hypervisor: &dyn Hypervisor, choice: &Choice) -> Result<(), Failure> {
    let Becomes::Disk { instance_id, instance_name, disk } = &choice.becomes else { return Ok(()) };
    match answered(TO_THE_DEADLINE, || hypervisor.is_attached(*instance_id, disk)).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let text = format!("instance `{instance_name}` has the new file, and not as its disk `{}`", disk.target);
            Err(Failure::new(Code::RestoreUnfinished, text))
        }
        Err(failure) => Err(unfinished(failure)),
    }
}

/// Starts the new instance.
pub(super) struct Start;

impl Named for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(START_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::HypervisorTimedOut
    }
}

#[async_trait]
impl Make<Context> for Start {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let Becomes::Instance(new) = &context.choice()?.becomes else { return Ok(Value::Null) };
        if context.is_found_out {
            // Whoever has shut it off meanwhile may have done something with its volumes.
            let text = format!(
                "the worker ended before it was known whether instance `{}` was started, which is not started again",
                new.name
            );
            return Err(Failure::new(Code::Interrupted, text));
        }
        let id = new.id;
        context.common.doors.hypervisor.start(id).await.map(|()| Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}
