//! The steps that every kind of job shares.

mod repository;
mod watch;

pub(super) use repository::{AGAIN_SECONDS_MAX, Lease, MoverProcess, OpenRepository, again, unexpected};
pub(super) use watch::{started, watch};
