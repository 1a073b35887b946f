//! The worker.

pub mod admit;
pub mod settle;
