//! Why a message was not taken.

use std::fmt;

use crate::failure::{Code, Failure};
use crate::model::id::JobId;
use crate::model::job::JobKind;

/// A message that starts no run, with as much of its identity as could be read before it was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// What is wrong and where, in a sentence that repeats no secret.
    pub text: String,
    /// The field of the body that it begins with, in backticks, if one is at fault.
    pub field: Option<String>,
    /// The job id, if the body has a readable one.
    pub job_id: Option<JobId>,
    /// The run, if the body has a readable one.
    pub run: Option<u32>,
    /// The kind, if the body has one that this version knows.
    pub kind: Option<JobKind>,
}

impl Refusal {
    /// A refusal of a message whose identity is not known (yet).
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), field: None, job_id: None, run: None, kind: None }
    }

    /// The same, of one field, of which `what` is said.
    pub fn of_field(code: Code, field: &str, what: impl fmt::Display) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(code, format!("`{field}`{what}")) }
    }

    /// The refusal as a failure, as dead letters carry it.
    pub fn failure(&self) -> Failure {
        Failure::new(self.code, self.text.clone())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}
