//! `longshore repository`: make a directory, or the mounted root of a share, a backup repository.

use std::path::PathBuf;

use clap::Subcommand;

use super::exit::Exit;
use super::output::{self, CliError};
use crate::mover::share::init;

#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Write longshore.json and the directories of a new repository; prints the repository's id
    Init {
        /// An existing directory: the mounted share, or a directory for a `directory` repository
        directory: PathBuf,
    },
}

pub fn run(command: &RepositoryCommand) -> Result<Exit, CliError> {
    let RepositoryCommand::Init { directory } = command;
    let id = init(directory)?;
    output::line(&id.to_string())?;
    Ok(Exit::Done)
}
