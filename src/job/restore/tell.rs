//! Saying what a restore would do: the end of a dry run, which needs no lease and changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::context::Context;
use super::result::DryRun;
use super::steps::{CHOOSE_SECONDS_MAX, see};
use super::would;
use crate::failure::Failure;
use crate::job::common::Common;
use crate::job::steps::unexpected;
use crate::mover::protocol::{Reply, Request, ToWeigh};
use crate::saga::step::{Commit, Named};

/// Longest time for reading what each image of the backup's chain holds.
pub(super) const WEIGH_SECONDS_MAX: u64 = 120;

/// Says what a restore in place would do.
pub(super) struct Tell;

impl Named for Tell {
    fn name(&self) -> &'static str {
        "tell"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(CHOOSE_SECONDS_MAX + WEIGH_SECONDS_MAX)
    }
}

#[async_trait]
impl Commit<Context> for Tell {
    async fn commit(&self, context: &mut Context) -> Result<Value, Failure> {
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
        DryRun { would, warnings }.to_value()
    }
}

/// Bytes that the backup holds of each disk as data, with what it is based on.
pub(super) async fn weigh(common: &mut Common, wanted: ToWeigh) -> Result<Vec<u64>, Failure> {
    match common.session.ask(Request::Weigh { wanted }, Duration::from_secs(WEIGH_SECONDS_MAX)).await? {
        Reply::Weighed { data_bytes } => Ok(data_bytes),
        other => Err(unexpected("weigh", &other)),
    }
}
