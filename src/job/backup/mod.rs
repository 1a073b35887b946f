//! The backup of one instance.

pub mod facts;
pub mod freeze;
pub mod plan;
pub mod settings;
