//! The steps of a restore to elsewhere, each with its way back.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::choose::{Becomes, Choice, DEFINITIONS, Holder, Seen, choose, holder, looked_for, must_be_free};
use super::context::{Context, Made};
use super::plan::PlannedTo;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Identity;
use crate::job::restore::names::{NAMES_BY_ANOTHER_SECONDS_MAX, ask_about_names, is_silence, may_be_there};
use crate::job::steps::unexpected;
use crate::model::id::InstanceRef;
use crate::model::job::Work;
use crate::model::manifest::Manifest;
use crate::mover::protocol::{NewFiles, Reply, Request};
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
        let mut choice = choose(&context.plan, &spec.disks, &manifest, seen)?;
        look_at_places(context, &mut choice).await?;
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

/// Which directories the files will be in stands in the records before the first byte of them: whoever comes later, and perhaps before their
/// mount, knows by that whether it is they that it sees.
async fn look_at_places(context: &mut Context, choice: &mut Choice) -> Result<(), Failure> {
    match ask(context, Request::LookAtNew { new: choice.new.clone() }).await? {
        Reply::Places { directories } => {
            choice.new.files.iter_mut().zip(directories).for_each(|(file, inode)| file.directory = Some(inode));
            Ok(())
        }
        other => Err(unexpected("look_at_new", &other)),
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
            Reply::MadeNew { disks, inodes } => {
                context.made = Made { disks, inodes };
                serde_json::to_value(&context.made)
                    .map_err(|error| Failure::new(Code::Internal, "cannot write down what was written").because(&error))
            }
            other => Err(unexpected("make_new", &other)),
        }
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let new = context.new_files()?;
        let names = new.files.iter().map(|file| file.fresh.display().to_string()).collect::<Vec<_>>();
        let removed = ask_about_names(&mut context.common, Request::RemoveNew { new }).await;
        removed.map(drop).map_err(|failure| may_be_there(failure, &names))
    }
}

/// Gives the files their names, and defines the instance or attaches the disk. What is to come to be stands in the records since before the
/// first byte was written, so whoever comes after a crash brings it to its end or takes it back; but what somebody has by then stays his.
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
        if std::mem::replace(&mut context.place_begun, true) {
            // Whoever has come meanwhile has come after that: what may be theirs by now is not taken away for it.
            match after_a_crash(context, &choice).await? {
                Holder::Ours => finish(context, &choice).await.map_err(unfinished)?,
                Holder::Another(who) => return Err(unfinished(Failure::new(Code::RestoreUnfinished, who))),
                Holder::Nobody => place_or_take_back(context, &choice).await?,
            }
        } else {
            // Nothing has its name yet, so there is none to take back.
            still_free(context, &choice).await?;
            place_or_take_back(context, &choice).await?;
        }
        context.result()?.to_value()
    }

    fn is_not_known(&self, failure: &Failure) -> bool {
        failure.code == Code::RestoreUnfinished
    }
}

fn unfinished(failure: Failure) -> Failure {
    match failure.code {
        Code::RestoreUnfinished => failure,
        _ => Failure { code: Code::RestoreUnfinished, ..failure },
    }
}

/// Hours may have passed since it was decided.
async fn still_free(context: &mut Context, choice: &Choice) -> Result<(), Failure> {
    must_be_free(choice, &identities(context, TRIES_MAX).await?)
}

async fn identities(context: &mut Context, silent_max: u32) -> Result<Vec<Identity>, Failure> {
    let hypervisor = context.common.doors.hypervisor.clone();
    until_answered(silent_max, || hypervisor.identities()).await
}

/// Who has what was begun, asked of libvirt before anybody touches a name: an operator may have gone on with it.
async fn after_a_crash(context: &mut Context, choice: &Choice) -> Result<Holder, Failure> {
    let holder = holder(choice, &identities(context, u32::MAX).await.map_err(unfinished)?);
    let (Holder::Nobody, Becomes::Disk { instance_id, disk, .. }) = (&holder, &choice.becomes) else {
        return Ok(holder);
    };
    let hypervisor = context.common.doors.hypervisor.clone();
    let instance = InstanceRef::Id(*instance_id);
    match until_answered(u32::MAX, || hypervisor.find(&instance)).await {
        // Perhaps on top of the new file: what backs the disks of one that is shut off, nobody tells.
        Ok(found) if found.disks.iter().any(|found| found.target == disk.target) => {
            let text = format!("instance `{}` has a disk `{}`, which may be the new one", found.name, disk.target);
            Ok(Holder::Another(text))
        }
        Ok(_) => Ok(Holder::Nobody),
        Err(failure) if failure.code == Code::InstanceNotHere => Ok(Holder::Nobody),
        Err(failure) => Err(unfinished(failure)),
    }
}

/// An error that is not `restore_unfinished` means that nothing has come to be and no file has its name.
async fn place_or_take_back(context: &mut Context, choice: &Choice) -> Result<(), Failure> {
    let placed = match about_names(context, |new| Request::PlaceNew { new }).await {
        Ok(()) => become_it(context, choice).await,
        // None has its name.
        Err(failure) => return Err(failure),
    };
    let failure = match placed {
        Ok(()) => return Ok(()),
        // What is half there is not made less by more.
        Err(failure) if failure.code == Code::RestoreUnfinished => return Err(failure),
        Err(failure) => failure,
    };
    // It may have come to be all the same; what a guest may have open keeps its name.
    match identities(context, u32::MAX).await.map(|identities| holder(choice, &identities)) {
        Ok(Holder::Ours) => finish(context, choice).await.map_err(unfinished),
        Ok(Holder::Another(who)) => Err(unfinished(failure).caused_by(who)),
        Err(stuck) => Err(unfinished(failure).because_of(&stuck)),
        Ok(Holder::Nobody) => match about_names(context, |new| Request::TakeBackNew { new }).await {
            Ok(()) => Err(failure),
            Err(stuck) => Err(unfinished(failure).because_of(&stuck)),
        },
    }
}

async fn become_it(context: &mut Context, choice: &Choice) -> Result<(), Failure> {
    let hypervisor = context.common.doors.hypervisor.clone();
    match &choice.becomes {
        Becomes::Instance(new) => until_answered(u32::MAX, || hypervisor.define(new)).await,
        Becomes::Disk { instance_id, disk, .. } => {
            until_answered(u32::MAX, || hypervisor.attach(*instance_id, disk)).await
        }
        Becomes::File => Ok(()),
    }
}

/// Of something that is ours and has come to be, as far as libvirt shows it.
async fn finish(context: &mut Context, choice: &Choice) -> Result<(), Failure> {
    match &choice.becomes {
        Becomes::Instance(_) => Ok(()),
        Becomes::Disk { .. } => become_it(context, choice).await,
        Becomes::File => about_names(context, |new| Request::PlaceNew { new }).await,
    }
}

/// Asks for something about the names until it is known what came of it; the step's own deadline is the bound.
async fn about_names(context: &mut Context, request: impl Fn(NewFiles) -> Request) -> Result<(), Failure> {
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
