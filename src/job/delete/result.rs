//! What comes of a deletion.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use crate::failure::{Code, Failure};
use crate::model::deletion::DeletionPlan;

/// What was deleted or, of a dry run, what would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteResult {
    /// What went, and what was merged before.
    pub plan: DeletionPlan,
    /// Nothing did.
    pub dry_run: bool,
    /// Bytes that are free again, less those by which a merged child has grown; of a dry run, at most so many.
    pub freed_bytes: u64,
    /// What is unusual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl DeleteResult {
    /// Of a deletion whose backups are out of the listing, or that only says what it would do.
    pub(super) fn of(context: &Context) -> Result<Self, Failure> {
        let plan = context.chosen()?.clone();
        let merged = context.merged.unwrap_or_default();
        // What the child's own images took is free again as well.
        let freed_bytes = plan.freed_bytes.saturating_add(merged.replaced_bytes).saturating_sub(merged.bytes);
        Ok(Self { plan, dry_run: context.plan.dry_run, freed_bytes, warnings: context.common.warnings.clone() })
    }

    /// As the commit's value.
    pub(super) fn to_value(&self) -> Result<Value, Failure> {
        serde_json::to_value(self).map_err(|error| {
            Failure::new(Code::Internal, "cannot write down the result of the deletion").because(&error)
        })
    }

    /// From the value of a completed saga.
    pub fn from_value(value: &Value) -> Result<Self, Failure> {
        Self::deserialize(value)
            .map_err(|error| Failure::new(Code::Internal, "cannot read the result of the deletion").because(&error))
    }
}
