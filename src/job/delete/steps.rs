//! The steps of a deletion, each with its way back.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::{Context, Merged};
use super::plan::DeletePlan;
use super::result::DeleteResult;
use crate::failure::{Code, Failure};
use crate::job::steps::{AGAIN_SECONDS_MAX, Reports, again, unexpected};
use crate::model::deletion::{self, DeletionPlan, MergedBackup};
use crate::mover::protocol::{Merger, Reply, Request};
use crate::saga::step::{Commit, Make, Named, StepRetry};

/// Longest time for reading what is based on what.
const CHOOSE_SECONDS_MAX: u64 = 120;

/// Longest time for removing merged images.
const DISCARD_SECONDS_MAX: u64 = 120;

/// Longest time for taking backups out of the listing: names alone, and a manifest.
const DELETE_SECONDS_MAX: u64 = 300;

/// Tries of that, for a share that has a bad moment.
const DELETE_TRIES_MAX: u32 = 3;

/// Pause between them.
const DELETE_PAUSE_SECONDS: u64 = 5;

/// Longest time for removing the files: a share may be slow to free what large images took.
const REMOVE_SECONDS_MAX: u64 = 1800;

/// Reads what is based on what, and decides what goes.
pub(super) struct Choose;

impl Choose {
    /// The step's name, under which the decision stands in the records.
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
        choose(context, self.deadline()).await?;
        serde_json::to_value(context.chosen()?)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down what is deleted").because(&error))
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

async fn choose(context: &mut Context, limit: Duration) -> Result<(), Failure> {
    let request = Request::Chains { instance: context.plan.instance_id };
    let members = match context.common.session.ask(request, limit).await? {
        Reply::Chains { members } => members,
        other => return Err(unexpected("chains", &other)),
    };
    let DeletePlan { backup_id, mode, may_be_gone, .. } = *context.plan;
    let chosen = match deletion::plan(&members, backup_id, mode) {
        Ok(chosen) => {
            context.common.warnings.extend(may_be_gone.then(|| {
                "an earlier attempt of this job may have deleted or merged something that is not told here".to_owned()
            }));
            chosen
        }
        Err(failure) if failure.code == Code::BackupNotFound && may_be_gone => {
            context.common.warnings.push(format!(
                "backup `{backup_id}` is not there any more: an earlier attempt of this job has deleted it, unless it was never there"
            ));
            DeletionPlan { backup_id, mode, merged: None, deleted: Vec::new(), freed_bytes: 0 }
        }
        Err(failure) => return Err(failure),
    };
    context.chosen = Some(chosen);
    Ok(())
}

/// Makes the images by which the one child needs the backup no more. Where there is none, nothing.
pub(super) struct Merge {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Merge {
    /// The step's name, under which what was merged stands in the records.
    pub const NAME: &'static str = "merge";
}

impl Named for Merge {
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
        Duration::from_secs(AGAIN_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Merge {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let Some(merger) = merger(context)? else { return Ok(Value::Null) };
        let (instance, suffix) = (context.plan.instance_id, context.plan.suffix.clone());
        let request = Request::Merge { instance, merger, suffix };
        match context.common.ask_moving(self, request).await? {
            Reply::Merged { bytes, replaced_bytes } => {
                let merged = Merged { bytes, replaced_bytes };
                context.merged = Some(merged);
                serde_json::to_value(merged)
                    .map_err(|error| Failure::new(Code::Internal, "cannot write down what was merged").because(&error))
            }
            other => Err(unexpected("merge", &other)),
        }
    }

    /// Taking the lease removes what another mover has left, so that there is nothing to be discarded then.
    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        if merger(context)?.is_none() {
            return Ok(());
        }
        match again(&mut context.common).await {
            // Whoever has the lease now has removed it.
            Err(failure) if matches!(failure.code, Code::LeaseHeld | Code::LeaseLost) => return Ok(()),
            result => result?,
        }
        context.common.session.ask_patiently(Request::Discard, Duration::from_secs(DISCARD_SECONDS_MAX)).await.map(drop)
    }
}

fn merger(context: &Context) -> Result<Option<Merger>, Failure> {
    let merged = context.chosen()?.merged;
    Ok(merged.map(|MergedBackup { backup_id: child, from, .. }| Merger { child, from }))
}

/// Lets what was merged take its places, and takes the backups out of the listing. Wherever it is cut off every backup that is listed can
/// be restored, so that another attempt can begin anew from there.
pub(super) struct Delete;

impl Named for Delete {
    fn name(&self) -> &'static str {
        "delete"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(DELETE_SECONDS_MAX + AGAIN_SECONDS_MAX)
    }

    fn retry(&self) -> StepRetry {
        StepRetry { tries: DELETE_TRIES_MAX, pause: Duration::from_secs(DELETE_PAUSE_SECONDS) }
    }
}

#[async_trait]
impl Commit<Context> for Delete {
    /// A mover that died is followed by another. That one has merged nothing, and finds out whether that was needed still.
    async fn commit(&self, context: &mut Context) -> Result<Value, Failure> {
        let merger = merger(context)?;
        let backups: Vec<_> = context.chosen()?.deleted.iter().map(|deleted| deleted.backup_id).collect();
        if backups.is_empty() {
            return DeleteResult::of(context)?.to_value();
        }
        again(&mut context.common).await?;
        let request = Request::Delete { instance: context.plan.instance_id, merger, backups };
        match context.common.session.ask(request, Duration::from_secs(DELETE_SECONDS_MAX)).await? {
            Reply::Done => DeleteResult::of(context)?.to_value(),
            other => Err(unexpected("delete", &other)),
        }
    }
}

/// Removes the files of what is out of the listing. What this does not get to, the next who takes the instance's lease removes.
pub(super) struct RemoveDeleted;

impl Named for RemoveDeleted {
    fn name(&self) -> &'static str {
        "remove_deleted"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(REMOVE_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for RemoveDeleted {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let request = Request::RemoveDeleted { instance: context.plan.instance_id };
        // A mover that is not there any more has lost the lease, and who takes that removes them.
        again(&mut context.common).await?;
        context.common.session.ask(request, self.deadline()).await.map(|_| Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// A dry run, which needs no lease: what was chosen, and nothing is deleted.
impl Reports for Context {
    fn result(&mut self) -> Result<Value, Failure> {
        DeleteResult::of(self)?.to_value()
    }
}
