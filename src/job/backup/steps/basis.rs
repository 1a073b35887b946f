//! Looking at what the repository has of the instance, and deciding what the new backup is based on.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::super::basis::{self, Basis};
use super::super::context::Context;
use super::super::plan::Room;
use crate::failure::{Code, Failure};
use crate::job::steps::unexpected;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::{Make, Named};

/// Longest time for reading the manifests of all backups of an instance.
const LATEST_SECONDS_MAX: u64 = 300;

/// Decides what is stored of which disk. Under the lease, so that nobody takes away what it decides for.
pub(in super::super) struct ChooseBasis;

impl Named for ChooseBasis {
    fn name(&self) -> &'static str {
        "basis"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(LATEST_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for ChooseBasis {
    /// The value is the basis, for whoever reads the journal.
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let request = Request::Latest { instance: context.plan.instance_id };
        let limit = Duration::from_secs(LATEST_SECONDS_MAX);
        let found = match context.common.session.ask(request, limit).await? {
            Reply::Latest { backups, unreadable } => (backups, unreadable),
            other => return Err(unexpected("latest", &other)),
        };
        let (repository, (backups, unreadable)) = (context.common.job.repository.id, found);
        if unreadable > 0 {
            let which =
                format!("{unreadable} earlier backups of the instance can't be read or belong to another repository");
            let text = format!("{which}: nothing is based on them");
            context.common.warnings.push(text);
        }
        let basis = basis::choose(&context.plan, repository, &backups, unreadable);
        context.common.warnings.extend(check_room(context, &basis)?);
        let value = serde_json::to_value(&basis)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down the basis").because(&error))?;
        context.basis = basis;
        Ok(value)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// What surely does not fit is not begun. Answers a warning of what may not. A push asks again wherever a disk turns out to stand on
/// nothing: the guest itself is paused when QEMU fills the share.
pub(super) fn check_room(context: &Context, basis: &Basis) -> Result<Option<String>, Failure> {
    let (free, is_push) = (context.common.free_bytes, context.plan.push().is_some());
    let Room { least, most } = context.plan.room(|disk| basis.base(&disk.target).is_none());
    if free < least {
        let text = format!("the repository has {free} bytes free, and the backup takes at least {least}");
        return Err(Failure::new(Code::RepositoryFull, text));
    }
    let all = context.plan.room(|_| true).most;
    Ok(if free < most {
        Some(format!(
            "nobody could tell how much some disks hold: the backup may take up to {most} bytes where the repository had {free} free"
        ))
    } else if is_push && free < all {
        Some(format!(
            "nobody could tell how much was changed: if it was all, QEMU writes {all} bytes where the repository had {free} free, and the \
             guest is paused while there is no room"
        ))
    } else {
        None
    })
}
