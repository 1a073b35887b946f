//! Saying what a restore to elsewhere would do: a dry run, which needs no lease and changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::steps::{CHOOSE_SECONDS_MAX, find, spec_of};
use crate::failure::Failure;
use crate::job::common::Common;
use crate::job::restore::look::{WEIGH_SECONDS_MAX, elsewhere};
use crate::job::restore::tell::reported;
use crate::job::steps::Reports;
use crate::saga::step::{Make, Named};

/// Finds it out.
pub(super) struct Tell;

impl Tell {
    /// The step's name, under which what was found out stands in the records.
    pub const NAME: &'static str = "tell";
}

impl Named for Tell {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(CHOOSE_SECONDS_MAX + WEIGH_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Tell {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let spec = spec_of(context)?;
        let manifest = find(context).await?;
        let Common { session, doors, warnings, .. } = &mut context.common;
        let mut told = elsewhere(session, &*doors.hypervisor, &context.plan, &spec, &manifest).await?;
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
