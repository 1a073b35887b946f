//! The checkpoint of the backup, and the end of those before it.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::context::Context;
use super::super::tracking;
use super::basis::check_room;
use crate::failure::{Code, Failure};
use crate::saga::step::{Make, Named};

/// Longest time for listing checkpoints or deleting those of earlier backups, of which there is one as a rule.
const CHECKPOINTS_SECONDS_MAX: u64 = 120;

/// Decides what is asked of the hypervisor; the checkpoint itself is made in the moment of the backup. Its undo is here, for it comes
/// after the end of the backup job, which keeps checkpoints from being deleted.
pub(in super::super) struct Track;

impl Track {
    pub(in super::super) const NAME: &'static str = "tracking";
}

/// What has been decided.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Tracked {
    /// The checkpoint that may have to be undone.
    checkpoint: Option<String>,
    /// Those that go once the backup is published, whoever is there to see to it.
    #[serde(default)]
    pub(in super::super) old: Vec<String>,
}

impl Named for Track {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(CHECKPOINTS_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Track {
    /// The value is a [`Tracked`].
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let are_known = self.choose(context).await;
        if context.plan.push().is_some() {
            let reason = match tracking::trusts_bitmaps(&context.plan) {
                false => "an earlier attempt has failed, after which no bitmap is trusted",
                true if are_known => "the instance does not know the checkpoint of the latest backup any more",
                true => "nobody could tell which checkpoints the instance has",
            };
            context.basis.only_since(&context.tracking.since, &format!("QEMU writes all of it in a push: {reason}"));
            check_room(context, &context.basis)?;
        }
        let checkpoint = context.tracking.checkpoint.as_ref().map(|checkpoint| checkpoint.name.clone());
        serde_json::to_value(Tracked { checkpoint, old: context.old_checkpoints.clone() })
            .map_err(|error| Failure::new(Code::Internal, "cannot write down the checkpoints").because(&error))
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        let Some(name) = &context.plan.checkpoint else { return Ok(()) };
        match context.common.doors.hypervisor.delete_checkpoint(context.plan.instance_id, name).await {
            // Where QEMU does not run nobody can take the bitmap away: it goes with the next backup of the running instance.
            Err(later) if matches!(later.code, Code::InstanceNotHere | Code::InstanceStateUnsupported) => Ok(()),
            deleted => deleted,
        }
    }
}

impl Track {
    /// Answers whether the checkpoints of the instance could be listed.
    async fn choose(&self, context: &mut Context) -> bool {
        let (hypervisor, plan) = (context.common.doors.hypervisor.clone(), context.plan.clone());
        let ours = tracking::prefix(context.common.job.repository.id);
        match hypervisor.checkpoints(plan.instance_id).await {
            Ok(all) => context.old_checkpoints = all.into_iter().filter(|name| name.starts_with(&ours)).collect(),
            Err(failure) => {
                context.common.warnings.push(format!("changes are not tracked: {failure:#}"));
                return false;
            }
        }
        let mut known_again = Vec::new();
        for lost in tracking::unknown(&context.basis, &context.old_checkpoints) {
            let made_at = context.basis.moment.map_or(0, Timestamp::as_second);
            match hypervisor.redefine_checkpoint(plan.instance_id, &lost, made_at).await {
                Ok(()) => known_again.push(lost.name),
                // Then everything is read, which the manifest says.
                Err(failure) => tracing::debug!(checkpoint = lost.name, failure = format!("{failure:#}"), "it is gone"),
            }
        }
        context.old_checkpoints.extend(known_again);
        context.tracking = tracking::choose(&plan, &context.basis, &context.old_checkpoints);
        true
    }
}

/// Deletes the checkpoints that count for nothing any more, now that a later backup is published.
pub(in super::super) struct ForgetCheckpoints;

impl Named for ForgetCheckpoints {
    fn name(&self) -> &'static str {
        "forget_checkpoints"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(CHECKPOINTS_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for ForgetCheckpoints {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        for name in &context.old_checkpoints {
            match context.common.doors.hypervisor.delete_checkpoint(context.plan.instance_id, name).await {
                Err(later) if matches!(later.code, Code::InstanceNotHere | Code::InstanceStateUnsupported) => break,
                deleted => deleted?,
            }
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}
