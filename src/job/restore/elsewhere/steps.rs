//! The steps of a restore to elsewhere that choose and make its files, each with its way back.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::choose::Choice;
use super::context::{Context, Made, must_be_as_many};
use crate::failure::{Code, Failure};
use crate::job::common::Common;
use crate::job::restore::look::chosen;
use crate::job::restore::names::{Left, NAMES_BY_ANOTHER_SECONDS_MAX, ask_about_names};
use crate::job::steps::unexpected;
use crate::model::job::{RestoreNewSpec, Work};
use crate::model::manifest::Manifest;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::{Make, Named};

/// Longest time for reading the backup's manifest and definition, and for looking at the host's instances.
pub(super) const CHOOSE_SECONDS_MAX: u64 = 180;

/// Longest time for one request of that.
const LOOK_SECONDS_MAX: u64 = 60;

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
        let (spec, manifest) = (spec_of(context)?, find(context).await?);
        let Common { session, doors, .. } = &mut context.common;
        let mut choice = chosen(session, &*doors.hypervisor, &context.plan, &spec.disks, &manifest).await?;
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

/// What the job asks for.
pub(super) fn spec_of(context: &Context) -> Result<RestoreNewSpec, Failure> {
    match &context.common.job.work {
        Work::RestoreNew(spec) => Ok(spec.clone()),
        _ => Err(Failure::new(Code::Internal, "a job that is no restore to elsewhere was taken for one")),
    }
}

/// The backup's manifest.
pub(super) async fn find(context: &mut Context) -> Result<Box<Manifest>, Failure> {
    let request = Request::Find { instance: context.plan.instance_id, backup: context.plan.backup_id };
    match ask(context, request).await? {
        Reply::Found { manifest } => Ok(manifest),
        other => Err(unexpected("find", &other)),
    }
}

pub(super) async fn ask(context: &mut Context, request: Request) -> Result<Reply, Failure> {
    context.common.session.ask(request, Duration::from_secs(LOOK_SECONDS_MAX)).await
}

/// Which directories the files will be in stands in the records before the first byte of them: whoever comes later, and perhaps before their
/// mount, knows by that whether it is they that it sees.
async fn look_at_places(context: &mut Context, choice: &mut Choice) -> Result<(), Failure> {
    match ask(context, Request::LookAtNew { new: choice.new.clone() }).await? {
        Reply::Places { directories } => {
            must_be_as_many(&choice.new, &directories)?;
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
                must_be_as_many(&context.choice()?.new, &inodes)?;
                context.made = Made { disks, inodes };
                serde_json::to_value(&context.made)
                    .map_err(|error| Failure::new(Code::Internal, "cannot write down what was written").because(&error))
            }
            other => Err(unexpected("make_new", &other)),
        }
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let new = context.new_files()?;
        let left = Left::files(new.files.iter().map(|file| file.fresh.clone()).collect());
        if context.names_may_be_given {
            // Somebody may put together what is there of both names.
            let text = "new files are left as they are, since names of some could not be taken back";
            return Err(left.of_failure(Failure::new(Code::RestoreUnfinished, text)));
        }
        let removed = ask_about_names(&mut context.common, Request::RemoveNew { new }).await;
        removed.map(drop).map_err(|failure| left.of_failure(failure))
    }
}
