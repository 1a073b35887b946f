//! Saying what a restore would do: a dry run, which needs no lease and changes nothing.
//!
//! All that asks anybody comes before the commit, so that it can be stopped, and a worker that comes after a crash has nothing to ask.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::look::{LOOK_SECONDS_MAX, WEIGH_SECONDS_MAX, in_place};
use super::result::DryRun;
use super::steps::{find, spec_of};
use crate::failure::{Code, Failure};
use crate::job::common::Common;
use crate::job::steps::Reports;
use crate::saga::step::{Make, Named};

/// Longest time for looking who uses a block device, with what any answer may be late.
const USERS_SECONDS_MAX: u64 = 180;

/// Longest time for all of it: the manifest, block devices, and what the images hold.
const TELL_SECONDS_MAX: u64 = 2 * LOOK_SECONDS_MAX + WEIGH_SECONDS_MAX + USERS_SECONDS_MAX;

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
        let spec = spec_of(context)?;
        let manifest = find(context).await?;
        let Common { session, doors, warnings, .. } = &mut context.common;
        let mut told = in_place(session, doors, &context.plan, &spec, &manifest).await?;
        told.warnings.append(warnings);
        context.told.insert(told).to_value()
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
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
