//! The nouns: ids, instance and disks, repository, backup and manifest, job, what a validation finds. Pure values, no I/O, nothing async.
//!
//! A value of these types is already right: it was checked when it was made, so nobody checks it again.

pub mod deletion;
pub mod destination;
pub mod id;
pub mod instance;
pub mod job;
pub mod manifest;
pub mod network;
pub mod owner;
pub mod pin;
pub mod repository;
pub mod restoration;
pub mod validation;
