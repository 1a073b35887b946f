//! How a saga ended.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;

/// The end of one execution of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What became of it.
    #[serde(flatten)]
    pub end: End,
    /// What went wrong without changing the end: after the commit, or with the log while unwinding.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Failure>,
    /// What could not be undone or released or, after the commit, removed, and may still be there, in the order in which it was begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_over: Vec<LeftOver>,
}

/// What became of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// Every step was done, and the commit happened.
    Completed {
        /// What the commit returned; null for a saga without one.
        value: Value,
    },
    /// A step failed before the commit, a hold was lost, or it never became known whether the commit happened.
    Failed {
        /// The first thing that went wrong.
        failure: Failure,
    },
    /// It was asked to stop before the commit.
    Stopped {
        /// The reason it was given.
        failure: Failure,
    },
}

/// A thing that may still be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOver {
    /// The step that made or held it, or was to remove it.
    pub step: String,
    /// Why it could not be taken back.
    pub failure: Failure,
}

impl Outcome {
    /// The outcome of a saga that did nothing.
    pub(super) fn refused(failure: Failure) -> Self {
        Self { end: End::Failed { failure }, warnings: Vec::new(), left_over: Vec::new() }
    }
}
