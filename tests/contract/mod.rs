//! Suites that a fake and the real thing both pass.

pub mod broker;
pub mod letters;
pub mod wanted_jobs;
