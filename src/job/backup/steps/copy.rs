//! Copying, and proving that what was written is what was read.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::basis::Basis;
use super::super::context::Context;
use super::super::plan::{BackupPlan, PlannedDisk, SourcePlan};
use super::super::tracking::{self, Tracking};
use super::watch::{Source, real_cause};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::dirty_context;
use crate::job::keys;
use crate::job::steps::unexpected;
use crate::model::instance::DiskSource;
use crate::mover::protocol::{ByteSource, CopyDisk, Reply, Request};
use crate::saga::step::{Make, Named};

/// Copies all disks into the staging directory, with which they go.
pub(in super::super) struct Copy {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Named for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Copy {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let plan = context.plan.clone();
        let disks: Vec<CopyDisk> = {
            let copied = |disk: &PlannedDisk| copy_disk(disk, &plan, &context.basis, &context.tracking);
            plan.disks.iter().map(copied).collect()
        };
        if plan.source == SourcePlan::Stopped {
            let common = &mut context.common;
            let secrets = plan.disks.iter().filter_map(|disk| disk.source.secret());
            keys::give(&mut common.session, common.doors.hypervisor.as_ref(), secrets).await?;
        }
        let reply = ask_moving(context, self, Request::Copy { disks }).await?;
        note_copied(context, self.name(), reply)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

fn copy_disk(disk: &PlannedDisk, plan: &BackupPlan, basis: &Basis, tracking: &Tracking) -> CopyDisk {
    let since = basis.since.get(&disk.target).filter(|_| tracking::trusts_bitmaps(plan));
    let (source, format) = match &plan.source {
        SourcePlan::Pull(pull) => {
            let dirty = tracking.since.contains_key(&disk.target).then(|| dirty_context(&disk.target));
            (ByteSource::Export { socket: pull.socket.clone(), name: disk.target.to_string(), dirty }, None)
        }
        // QEMU copies by itself in a push, so that nobody asks.
        SourcePlan::Stopped | SourcePlan::Push(_) => {
            // libvirt gives its bitmaps the names of their checkpoints.
            let bitmap = since.map(|since| since.checkpoint.clone());
            (ByteSource::Volume { source: disk.source.clone(), bitmap }, stored_format(&disk.source))
        }
    };
    CopyDisk {
        target: disk.target.clone(),
        source,
        virtual_bytes: disk.virtual_bytes,
        format,
        base: basis.base(&disk.target).cloned(),
        since: since.map(|since| since.held.clone()),
    }
}

fn stored_format(source: &DiskSource) -> Option<crate::model::instance::ImageFormat> {
    match source {
        DiskSource::File { format, .. } | DiskSource::Block { format, .. } | DiskSource::Network { format, .. } => {
            Some(*format)
        }
        DiskSource::Other { .. } => None,
    }
}

/// Keeps what became of the disks, for the manifest.
pub(super) fn note_copied(context: &mut Context, asked: &str, reply: Reply) -> Result<Value, Failure> {
    match reply {
        Reply::Copied { disks, warnings } => {
            let data_bytes: u64 = disks.iter().map(|disk| disk.data_bytes).sum();
            context.copied = disks;
            context.common.warnings.extend(warnings);
            Ok(json!({ "data_bytes": data_bytes }))
        }
        other => Err(unexpected(asked, &other)),
    }
}

/// Reads every image back from the share and compares it with its source, which still stands.
pub(in super::super) struct Compare {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Named for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Compare {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        ask_moving(context, self, Request::Compare).await?;
        Ok(Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// The volumes of the stopped instance are what they were when the copy began, and it is still stopped.
pub(in super::super) struct SourcesUnchanged {
    /// Longest time for all of it: a volume without times to look at is compared.
    pub deadline: Duration,
}

impl Named for SourcesUnchanged {
    fn name(&self) -> &'static str {
        "sources_unchanged"
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for SourcesUnchanged {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        ask_moving(context, self, Request::SourcesUnchanged).await?;
        match Source::of(context).lost().await {
            Some(lost) => Err(lost),
            None => Ok(Value::Null),
        }
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Asks for something that moves bytes, and fails as `stalled` when none moves for the stall limit.
pub(super) async fn ask_moving(
    context: &mut Context,
    step: &(dyn Named + Sync),
    request: Request,
) -> Result<Reply, Failure> {
    match context.common.ask_moving(step, request).await {
        Ok(reply) => Ok(reply),
        Err(failure) => Err(real_cause(Source::of(context), failure).await),
    }
}
