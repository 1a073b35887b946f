//! What comes of a validation.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use crate::failure::{Code, Failure};
use crate::model::validation::Validation;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateResult {
    /// Of the repository.
    pub validation: Validation,
    /// What is unusual about the job itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl ValidateResult {
    /// Of a validation that is done, as the commit's value.
    pub(super) fn value_of(context: &mut Context) -> Result<Value, Failure> {
        let result = Self { validation: context.found()?.clone(), warnings: context.common.warnings.clone() };
        serde_json::to_value(result).map_err(|error| {
            Failure::new(Code::Internal, "cannot write down the result of the validation").because(&error)
        })
    }

    /// From the value of a completed saga.
    pub fn from_value(value: &Value) -> Result<Self, Failure> {
        Self::deserialize(value)
            .map_err(|error| Failure::new(Code::Internal, "cannot read the result of the validation").because(&error))
    }
}
