//! `longshore dead`: the dead letters, looked at, replayed, discarded.
//!
//! Each command reads the queue alone. Whoever comes second is told so, and a letter that is not dealt with stays in its place.

mod audit;
mod discard;
mod export;
mod list;
mod perform;
mod replay;
mod select;
mod show;

use clap::Subcommand;

use super::exit::Exit;
use super::output::CliError;
use crate::broker::letters::ReadLettersError;

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List the dead letters, oldest first, or count them
    List(list::ListArgs),
    /// Show one: the job, why it failed, with all causes, and who says so
    Show(show::ShowArgs),
    /// Ask for dead jobs again, each as its next run; the letter goes when the job is in a host's queue
    Replay(Box<replay::ReplayArgs>),
    /// Throw letters away, with a reason that is told in an event
    Discard(discard::DiscardArgs),
    /// Print letters whole, one JSON object a line; they stay
    Export(export::ExportArgs),
}

pub fn run(command: &DeadCommand) -> Result<Exit, CliError> {
    match command {
        DeadCommand::List(args) => list::run(args),
        DeadCommand::Show(args) => show::run(args),
        DeadCommand::Replay(args) => replay::run(args),
        DeadCommand::Discard(args) => discard::run(args),
        DeadCommand::Export(args) => export::run(args),
    }
}

fn unread(error: ReadLettersError) -> CliError {
    match error {
        ReadLettersError::InUse { queue } => CliError::failed(format!(
            "somebody else is reading the dead letters: try again when they have ended. The broker's list of connections has theirs, \
             `longshore dead … letters`, with user and address (`rabbitmqctl list_connections user peer_host client_properties`; \
             `list_consumers` for queue `{queue}`)"
        )),
        ReadLettersError::NoQueue { .. } => CliError::not_found(error),
        ReadLettersError::Broker(error) => CliError::failed(error),
    }
}
