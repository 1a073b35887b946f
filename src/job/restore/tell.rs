//! Saying what a restore would do: a dry run, which needs no lease and changes nothing.
//!
//! All that asks anybody comes before the commit, so that it can be stopped, and a worker that comes after a crash has nothing to ask.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::result::DryRun;
use super::steps::see;
use super::would;
use crate::failure::{Code, Failure};
use crate::job::common::Common;
use crate::job::steps::{Reports, unexpected};
use crate::mover::protocol::{Reply, Request, ToWeigh};
use crate::saga::step::{Make, Named};

/// Longest time for reading what each image of the backup's chain holds.
pub(super) const WEIGH_SECONDS_MAX: u64 = 120;

/// Longest time for that and for reading the manifest, with what either answer may be late.
const TELL_SECONDS_MAX: u64 = 240;

/// Finds out what a restore in place would do.
pub(super) struct Tell;

impl Tell {
    /// The step's name, under which that stands in the records.
    pub const NAME: &'static str = "tell";
}

impl Named for Tell {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(TELL_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Tell {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let (manifest, mapping) = see(context).await?;
        let wanted = ToWeigh {
            instance: context.plan.instance_id,
            backup: context.plan.backup_id,
            to_make: would::to_make(&mapping, context.plan.keep_previous),
        };
        let data_bytes = weigh(&mut context.common, wanted).await?;
        let would = would::in_place(&manifest, &mapping, &data_bytes);
        let mut warnings = would::remarks(&context.plan, &mapping);
        warnings.append(&mut context.common.warnings);
        context.told.insert(DryRun { would, warnings }).to_value()
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Bytes that the backup holds of each disk as data, with what it is based on.
pub(super) async fn weigh(common: &mut Common, wanted: ToWeigh) -> Result<Vec<u64>, Failure> {
    match common.session.ask(Request::Weigh { wanted }, Duration::from_secs(WEIGH_SECONDS_MAX)).await? {
        Reply::Weighed { data_bytes } => Ok(data_bytes),
        other => Err(unexpected("weigh", &other)),
    }
}

impl Reports for Context {
    fn result(&mut self) -> Result<Value, Failure> {
        reported(self.told.as_ref())
    }
}

pub(super) fn reported(told: Option<&DryRun>) -> Result<Value, Failure> {
    let unknown = || Failure::new(Code::Internal, "what a restore would do was to be told before it was known");
    told.ok_or_else(unknown)?.to_value()
}
