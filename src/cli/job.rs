//! `longshore job`: publish jobs, watch them.

use clap::Subcommand;

use super::exit::Exit;
use super::output::CliError;
use super::{publish, watch};

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Publish a job to the queue of a host; prints the job's id
    #[command(subcommand)]
    Publish(publish::PublishCommand),
    /// Follow a job to its end: a progress bar, or with --json its events, one a line
    Watch(watch::WatchArgs),
}

pub fn run(command: &JobCommand) -> Result<Exit, CliError> {
    match command {
        JobCommand::Publish(command) => publish::run(command),
        JobCommand::Watch(args) => watch::run(args),
    }
}
