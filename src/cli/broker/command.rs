//! `longshore broker`: what an operator does to the broker of a fleet.

use clap::Subcommand;

use super::{remove, setup};
use crate::cli::exit::Exit;
use crate::cli::output::CliError;

#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Secure a RabbitMQ for a fleet: queues, policies, and a user with least rights for each host and role
    Setup(Box<setup::SetupArgs>),
    /// Take a host out of the fleet: its user in any case, and its queues if they are empty
    ///
    /// The user goes first, which closes its connections; then the queues take no more jobs. Where one of them still holds messages, or is
    /// read by whoever may hold some, all of them stay and the command fails: see to the messages and run it again, or throw them away
    /// with --discard-messages. Nothing at all is done where the user has tags, other rights than `setup` gives it, or rights in another
    /// virtual host.
    RemoveHost(remove::RemoveArgs),
}

pub fn run(command: &BrokerCommand) -> Result<Exit, CliError> {
    match command {
        BrokerCommand::Setup(args) => setup::run(args),
        BrokerCommand::RemoveHost(args) => remove::run(args),
    }
}
