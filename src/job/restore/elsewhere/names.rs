//! The names of the new files: looked at once more after hours, given, and taken back as long as nobody can have been given the files.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::choose::{Choice, Holder, holder, must_be_free};
use super::context::Context;
use super::steps::ask;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{Hypervisor, Identity};
use crate::job::restore::names::{NAMES_BY_ANOTHER_SECONDS_MAX, ask_about_names, is_silence};
use crate::job::steps::unexpected;
use crate::mover::protocol::{NewFiles, Reply, Request};
use crate::saga::step::{Make, Named};

/// Longest time for looking at the host again before the first name is given.
const LOOK_AGAIN_SECONDS_MAX: u64 = 300;

/// Pause before it is asked again what nobody has answered.
pub(super) const ASK_AGAIN_SECONDS: u64 = 5;

/// How often libvirt is asked where it does not answer, and nothing has its name yet.
const SILENT_MAX: u32 = 10;

/// How often it is asked from then on: until the step's own deadline, since its silence says nothing of the files.
pub(super) const TO_THE_DEADLINE: u32 = u32::MAX;

/// Longest time for giving the names or taking them back: a mover that does not answer is followed by another one.
pub(super) const NAMES_SECONDS_MAX: u64 = 2 * NAMES_BY_ANOTHER_SECONDS_MAX;

/// Hours may have passed since it was decided. What was made is still there, and what is to be new is still nobody's.
pub(super) struct LookAgain;

impl Named for LookAgain {
    fn name(&self) -> &'static str {
        "look_again"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(LOOK_AGAIN_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for LookAgain {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let new = context.new_files()?;
        match ask(context, Request::LookAtNew { new }).await? {
            Reply::Places { .. } => {}
            other => return Err(unexpected("look_at_new", &other)),
        }
        let hypervisor = context.common.doors.hypervisor.clone();
        let identities = identities(&*hypervisor, SILENT_MAX).await?;
        must_be_free(context.choice()?, &identities).map(|()| Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Gives the files their names, before somebody is given the files. Where a crash comes in between, they are taken back.
pub(super) struct GiveNames;

impl GiveNames {
    /// The step's name.
    pub const NAME: &'static str = "give_names";
}

impl Named for GiveNames {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(NAMES_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::VolumeIo
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(NAMES_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for GiveNames {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        about_names(context, |new| Request::PlaceNew { new }).await.map(|()| Value::Null)
    }

    /// What anybody has all the same keeps its name.
    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let choice = context.choice()?.clone();
        let hypervisor = context.common.doors.hypervisor.clone();
        // Until they are taken back, as long as this was not even looked at.
        context.names_may_be_given = true;
        let taken_back =
            match identities(&*hypervisor, TO_THE_DEADLINE).await.map(|identities| holder(&choice, &identities)) {
                Ok(Holder::Nobody) => about_names(context, |new| Request::TakeBackNew { new }).await,
                Ok(Holder::Ours) => Err(Failure::new(Code::RestoreUnfinished, "an instance has the new files by now")),
                Ok(Holder::Another(who)) => Err(Failure::new(Code::RestoreUnfinished, who)),
                Err(failure) => Err(failure),
            };
        context.names_may_be_given = taken_back.is_err();
        taken_back.map_err(|failure| names(&choice).fold(failure, Failure::caused_by))
    }
}

fn names(choice: &Choice) -> impl Iterator<Item = String> {
    choice.new.files.iter().map(|file| format!("`{}` may still be there", file.path.display()))
}

/// Asks libvirt for the instances of the host until it answers, or has not so often.
pub(super) async fn identities(hypervisor: &dyn Hypervisor, silent_max: u32) -> Result<Vec<Identity>, Failure> {
    answered(silent_max, || hypervisor.identities()).await
}

/// Asks libvirt something that changes nothing, until it answers or has not so often.
pub(super) async fn answered<T, A>(silent_max: u32, ask: impl Fn() -> A) -> Result<T, Failure>
where
    A: Future<Output = Result<T, Failure>>,
{
    let mut silent = 0;
    loop {
        match ask().await {
            Err(failure) if is_no_answer(&failure) && silent < silent_max => silent += 1,
            answer => return answer,
        }
        sleep(Duration::from_secs(ASK_AGAIN_SECONDS)).await;
    }
}

pub(super) fn is_no_answer(failure: &Failure) -> bool {
    matches!(failure.code, Code::HypervisorTimedOut | Code::HypervisorUnavailable)
}

/// Asks for something about the names until it is known what came of it; the step's own deadline is the bound. An error means that no file
/// has its name.
pub(super) async fn about_names(context: &mut Context, request: impl Fn(NewFiles) -> Request) -> Result<(), Failure> {
    let new = context.new_files()?;
    loop {
        let unknown = match ask_about_names(&mut context.common, request(new.clone())).await {
            Ok(Reply::Done) => return Ok(()),
            Ok(Reply::NotKnown { failure }) => failure,
            Ok(other) => return Err(unexpected("place_new", &other)),
            Err(failure) if is_silence(&failure) => failure,
            Err(failure) => return Err(failure),
        };
        tracing::warn!(failure = format!("{unknown:#}"), "it is not known what became of the names of new files");
        sleep(Duration::from_secs(ASK_AGAIN_SECONDS)).await;
    }
}
