//! Longshore: a message-queue driven worker fleet that backs up and restores KVM instances to shared storage.

pub mod broker;
pub mod cli;
pub mod config;
pub mod failure;
pub mod host;
pub mod job;
pub mod journal;
pub mod message;
pub mod model;
pub mod mover;
pub mod saga;
pub mod shutdown;
pub mod telemetry;
pub mod worker;
