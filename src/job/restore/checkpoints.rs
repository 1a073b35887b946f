//! The end of what the hypervisor keeps in mind of volumes that were put back: their bitmaps went with the old ones.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use crate::failure::Failure;
use crate::job::backup::tracking;
use crate::model::instance::{DiskSource, ImageFormat};
use crate::saga::step::{Make, Named};

/// Longest time for listing checkpoints and deleting ours, of which there is one a repository.
const CHECKPOINTS_SECONDS_MAX: u64 = 120;

/// Deletes our checkpoints of the instance. Where only some of its volumes were put back they stay: the others still have their
/// bitmaps, which only a running QEMU can remove, and the next backup finds out which checkpoint is not whole.
pub(super) struct ForgetCheckpoints;

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
        if !all_replaced(context)? {
            return Ok(Value::Null);
        }
        let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
        for name in hypervisor.checkpoints(instance).await? {
            if name.starts_with(tracking::OURS) {
                hypervisor.forget_checkpoint(instance, &name).await?;
            }
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// No volume of the instance is left that could have a bitmap.
fn all_replaced(context: &Context) -> Result<bool, Failure> {
    let replaced = &context.choice()?.volumes;
    Ok(context.plan.disks.iter().filter(|disk| disk.is_own).all(|disk| match &disk.source {
        Some(DiskSource::File { path, format: ImageFormat::Qcow2 }) => {
            replaced.iter().any(|volume| volume.place.volume() == path)
        }
        Some(DiskSource::Block { format: ImageFormat::Qcow2, .. }) => false,
        _ => true,
    }))
}
