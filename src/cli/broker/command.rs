//! `longshore broker`: what an operator does to the broker of a fleet.

use clap::Subcommand;

use super::{remove, setup};
use crate::cli::exit::Exit;
use crate::cli::output::CliError;

#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Secure a RabbitMQ for a fleet: queues, policies, and a user with least rights for each host and role
    Setup(Box<setup::SetupArgs>),
    /// Take a host out of the fleet: its user, and its queues if they are empty
    RemoveHost(remove::RemoveArgs),
}

pub fn run(command: &BrokerCommand) -> Result<Exit, CliError> {
    match command {
        BrokerCommand::Setup(args) => setup::run(args),
        BrokerCommand::RemoveHost(args) => remove::run(args),
    }
}
