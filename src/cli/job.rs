//! `longshore job`: publish jobs, watch them, cancel them.

use clap::Subcommand;

use super::exit::Exit;
use super::output::CliError;
use super::{cancel, publish, watch};

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Publish a job to the queue of a host; prints the job's id
    #[command(subcommand)]
    Publish(publish::PublishCommand),
    /// Follow a job to its end: a progress bar, or with --json its events, one a line
    Watch(watch::WatchArgs),
    /// Cancel a run of a job: one that has not come to its host yet, that waits, or that is at work, which is taken back first. One that
    /// is past its commit completes. Needs a broker user who is one of the host's
    /// `broker.controllers`; `job watch` of an event reader shows the end
    Cancel(cancel::CancelArgs),
}

pub fn run(command: &JobCommand) -> Result<Exit, CliError> {
    match command {
        JobCommand::Publish(command) => publish::run(command),
        JobCommand::Watch(args) => watch::run(args),
        JobCommand::Cancel(args) => cancel::run(args),
    }
}
