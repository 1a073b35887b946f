//! `longshore host`: what others have to know of this host.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

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
    /// Print the public key to which a share's credentials are sealed for this host; the first time, make it
    Key(ConfigArgs),
}

pub fn run(command: &HostCommand) -> Result<Exit, CliError> {
    let HostCommand::Key(args) = command;
    output::line(&key(&load(args)?)?).map(|()| Exit::Done)
}

/// The host's public key, base64. It is made if there is none.
pub fn key(config: &Config) -> Result<String, CliError> {
    let directory = &config.worker.state_dir;
    // As the journal makes it, which is at home there.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| CliError::failed(format!("cannot make `{}`: {error}", directory.display())))?;
    Ok(HostKey::read_or_make(&credential_places(config).host_key)?.public().to_string())
}

/// Where the configuration has the credentials of shares.
pub fn credential_places(config: &Config) -> CredentialPlaces {
    CredentialPlaces { dir: config.credentials.dir.clone(), host_key: config.worker.state_dir.join(KEY_FILE) }
}
