//! Saying what a restore to elsewhere would do: a dry run, which needs no lease and changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::steps::{CHOOSE_SECONDS_MAX, see};
use crate::failure::Failure;
use crate::job::restore::result::DryRun;
use crate::job::restore::tell::{WEIGH_SECONDS_MAX, reported, weigh};
use crate::job::restore::would;
use crate::job::steps::Reports;
use crate::mover::protocol::{ToMake, ToWeigh};
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
        let (manifest, choice) = see(context).await?;
        let wanted = ToWeigh {
            instance: context.plan.instance_id,
            backup: context.plan.backup_id,
            to_make: ToMake::New(choice.new.clone()),
        };
        let data_bytes = weigh(&mut context.common, wanted).await?;
        let would = would::elsewhere(&context.plan, &manifest, &choice, &data_bytes);
        let warnings = choice.warnings.into_iter().chain(context.common.warnings.drain(..)).collect();
        context.told.insert(DryRun { would, warnings }).to_value()
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
