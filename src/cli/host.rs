//! `longshore host`: what others have to know of this host.

use clap::Subcommand;

use super::ConfigArgs;
use super::broker::load;
use super::exit::Exit;
use super::output::{self, CliError};
use crate::config::Config;
use crate::mover::protocol::CredentialPlaces;
use crate::mover::sealed::HostKey;

/// The file with the host's key in the worker's state directory: what opens sealed credentials is kept like the journal.
const KEY_FILE: &str = "host.key";

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Print the public key to which a share's credentials are sealed for this host. Its worker makes it when it first starts
    Key(ConfigArgs),
}

pub fn run(command: &HostCommand) -> Result<Exit, CliError> {
    let HostCommand::Key(args) = command;
    let file = credential_places(&load(args)?).host_key;
    // Made here, it would be another one wherever the configuration is not the worker's.
    if !file.exists() {
        let text = format!("there is no key `{}`: the host's worker makes it when it first starts", file.display());
        return Err(CliError::not_found(text));
    }
    output::line(&HostKey::read(&file)?.public().to_string()).map(|()| Exit::Done)
}

/// Where the configuration has the credentials of shares.
pub fn credential_places(config: &Config) -> CredentialPlaces {
    CredentialPlaces { dir: config.credentials.dir.clone(), host_key: config.worker.state_dir.join(KEY_FILE) }
}
