//! The steps of a restore to elsewhere, each with its way back.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::choose::{Becomes, Choice, DEFINITIONS, Seen, choose, looked_for, must_be_free};
use super::context::Context;
use super::plan::PlannedTo;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::job::restore::names::{NAMES_BY_ANOTHER_SECONDS_MAX, ask_about_names, is_silence, may_be_there};
use crate::job::steps::unexpected;
use crate::model::job::Work;
use crate::model::manifest::Manifest;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::{Commit, Make, Named};

/// Longest time for reading the backup's manifest and definition, and for looking at the host's instances.
const CHOOSE_SECONDS_MAX: u64 = 180;

/// Longest time for one request of that.
const LOOK_SECONDS_MAX: u64 = 60;

/// Longest time for libvirt to define an instance or to attach a disk, tried anew where it does not answer.
const HYPERVISOR_SECONDS_MAX: u64 = 600;

/// Pause before it is looked again what became of that.
const LOOK_AGAIN_SECONDS: u64 = 5;

/// How often a disk is attached to an instance that another libvirt operation holds, and how often the host's instances are looked at before
/// the first name is given.
const TRIES_MAX: u32 = 12;

/// Longest time for libvirt to start the new instance.
const START_SECONDS_MAX: u64 = 60;

/// Reads the backup's manifest and definition, and decides what is made of it.
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
        let Work::RestoreNew(spec) = context.common.job.work.clone() else {
            return Err(Failure::new(Code::Internal, "a job that is no restore to elsewhere was taken for one"));
        };
        let request = Request::Find { instance: context.plan.instance_id, backup: context.plan.backup_id };
        let manifest = match ask(context, request).await? {
            Reply::Found { manifest } => manifest,
            other => return Err(unexpected("find", &other)),
        };
        let definition = match context.plan.to {
            PlannedTo::NewInstance { .. } => read_definition(context, &manifest).await?,
            PlannedTo::Volume { .. } => String::new(),
        };
        let missing = missing(context, &definition).await?;
        let identities = context.common.doors.hypervisor.identities().await?;
        let seen = Seen { definition: &definition, missing: &missing, identities: &identities };
        let choice = choose(&context.plan, &spec.disks, &manifest, seen)?;
        let value = serde_json::to_value(&choice)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down what is restored").because(&error))?;
        context.choice = Some(choice);
        Ok(value)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

async fn ask(context: &mut Context, request: Request) -> Result<Reply, Failure> {
    context.common.session.ask(request, Duration::from_secs(LOOK_SECONDS_MAX)).await
}

async fn read_definition(context: &mut Context, manifest: &Manifest) -> Result<String, Failure> {
    let has = |name: &&&str| manifest.records.iter().any(|record| record.file == **name);
    let Some(file) = DEFINITIONS.iter().find(has) else {
        let text = format!("backup `{}` has no definition", manifest.backup_id);
        return Err(Failure::new(Code::BackupDamaged, text));
    };
    let (instance, backup) = (context.plan.instance_id, context.plan.backup_id);
    match ask(context, Request::ReadRecord { instance, backup, file: (*file).to_owned() }).await? {
        Reply::Record { content } => String::from_utf8(content).map_err(|error| {
            Failure::new(Code::BackupDamaged, format!("the definition `{file}` of the backup is no text"))
                .because(&error)
        }),
        other => Err(unexpected("read_record", &other)),
    }
}

async fn missing(context: &mut Context, definition: &str) -> Result<BTreeSet<std::path::PathBuf>, Failure> {
    let paths = looked_for(&context.plan, definition)?;
    if paths.is_empty() {
        return Ok(BTreeSet::new());
    }
    match ask(context, Request::LookFor { paths }).await? {
        Reply::Missing { paths } => Ok(paths.into_iter().collect()),
        other => Err(unexpected("look_for", &other)),
    }
}

/// Makes the files, under names that nobody looks at.
pub(super) struct MakeFiles {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl MakeFiles {
    /// The step's name, under which what was written stands in the records.
    pub const NAME: &'static str = "restore";
}

impl Named for MakeFiles {
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
        Duration::from_secs(NAMES_BY_ANOTHER_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for MakeFiles {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let (instance, backup) = (context.plan.instance_id, context.plan.backup_id);
        let request = Request::MakeNew { instance, backup, new: context.choice()?.new.clone() };
        match context.common.ask_moving(self, request).await? {
            Reply::Copied { disks, warnings } => {
                context.common.warnings.extend(warnings);
                context.copied = disks;
                serde_json::to_value(&context.copied)
                    .map_err(|error| Failure::new(Code::Internal, "cannot write down what was written").because(&error))
            }
            other => Err(unexpected("make_new", &other)),
        }
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let new = context.choice()?.new.clone();
        let names = new.files.iter().map(|file| file.fresh.display().to_string()).collect::<Vec<_>>();
        let removed = ask_about_names(&mut context.common, Request::RemoveNew { new }).await;
        removed.map(drop).map_err(|failure| may_be_there(failure, &names))
    }
}

/// Gives the files their names, and defines the instance or attaches the disk. What is to come to be stands in the records since before the
/// first byte was written, so whoever comes after a crash brings it to its end or takes it back.
pub(super) struct Place;

impl Named for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(2 * NAMES_BY_ANOTHER_SECONDS_MAX + HYPERVISOR_SECONDS_MAX)
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
        let placed = match std::mem::replace(&mut context.place_begun, true) {
            // Whoever has come meanwhile has come after that: what may be theirs by now is not taken away for it.
            true => place(context, &choice).await,
            false => match still_free(hypervisor.as_ref(), &choice).await {
                Ok(()) => place(context, &choice).await,
                refused => refused,
            },
        };
        match placed {
            Ok(()) => context.result()?.to_value(),
            // What is half there is not made less by more.
            Err(unfinished) if unfinished.code == Code::RestoreUnfinished => Err(unfinished),
            Err(failure) => {
                let taken_back = about_names(context, |new| Request::TakeBackNew { new }, &choice).await;
                match taken_back {
                    Ok(()) => Err(failure),
                    Err(stuck) => Err(Failure { code: Code::RestoreUnfinished, ..failure.because_of(&stuck) }),
                }
            }
        }
    }
}

/// Hours may have passed since it was decided.
async fn still_free(hypervisor: &dyn Hypervisor, choice: &Choice) -> Result<(), Failure> {
    must_be_free(choice, &until_answered(TRIES_MAX, || hypervisor.identities()).await?)
}

/// An error means that whatever was to come to be of the files did not, but they may have their names.
async fn place(context: &mut Context, choice: &Choice) -> Result<(), Failure> {
    about_names(context, |new| Request::PlaceNew { new }, choice).await?;
    let hypervisor = context.common.doors.hypervisor.clone();
    match &choice.becomes {
        Becomes::Instance(new) => until_answered(u32::MAX, || hypervisor.define(new)).await,
        Becomes::Disk { instance_id, disk, .. } => {
            until_answered(u32::MAX, || hypervisor.attach(*instance_id, disk)).await
        }
        Becomes::File => Ok(()),
    }
}

/// Asks for something about the names until it is known what came of it; the step's own deadline is the bound.
async fn about_names(
    context: &mut Context,
    request: impl Fn(crate::mover::protocol::NewFiles) -> Request,
    choice: &Choice,
) -> Result<(), Failure> {
    loop {
        let unknown = match ask_about_names(&mut context.common, request(choice.new.clone())).await {
            Ok(Reply::Done) => return Ok(()),
            Ok(Reply::NotKnown { failure }) => failure,
            Ok(other) => return Err(unexpected("place_new", &other)),
            Err(failure) if is_silence(&failure) => failure,
            Err(failure) => return Err(failure),
        };
        tracing::warn!(failure = format!("{unknown:#}"), "it is not known what became of the names of new files");
        sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await;
    }
}

/// Asks libvirt until it answers, as what it did not answer may have happened, but no more than `silent_max` times; one that says that the
/// instance is busy only so often. The step's own deadline is the bound.
async fn until_answered<T, F: Future<Output = Result<T, Failure>>>(
    silent_max: u32,
    call: impl Fn() -> F,
) -> Result<T, Failure> {
    let (mut silent, mut busy) = (0_u32, 0_u32);
    loop {
        let failure = match call().await {
            Err(failure) if is_no_answer(&failure) && silent < silent_max => {
                silent += 1;
                failure
            }
            Err(failure) if failure.code == Code::InstanceBusy && busy < TRIES_MAX => {
                busy += 1;
                failure
            }
            answer => return answer,
        };
        tracing::warn!(failure = format!("{failure:#}"), "libvirt is asked again");
        sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await;
    }
}

fn is_no_answer(failure: &Failure) -> bool {
    matches!(failure.code, Code::HypervisorTimedOut | Code::HypervisorUnavailable)
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
        let id = new.id;
        context.common.doors.hypervisor.start(id).await.map(|()| Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}
