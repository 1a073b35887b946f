//! The steps that every kind of job shares.

mod report;
mod repository;
mod watch;

pub(super) use report::{Report, Reports};
pub(super) use repository::{
    AGAIN_SECONDS_MAX, Lease, MoverProcess, OpenRepository, OpenToLook, again, lease_holder, unexpected,
};
pub(super) use watch::{started, watch};
