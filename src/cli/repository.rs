//! `longshore repository`: make a directory, or the mounted root of a share, a backup repository, and look whether one is whole.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::Exit;
use super::output::{self, CliError};
use super::validate::{self, Wanted};
use crate::mover::share::init;

#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Write longshore.json and the directories of a new repository; prints the repository's id
    Init {
        /// An existing directory: the mounted share, or a directory for a `directory` repository
        directory: PathBuf,
    },
    /// Look whether a repository and the backups in it are whole, and name what is not; needs to be root. Nothing is repaired
    Validate(ValidateArgs),
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// How far: `reachable` (right, writable), `catalogue` (manifests, files, chains), `structure` (images and hashes), `content` (every
    /// block is read)
    #[arg(long, default_value = "catalogue", value_parser = ["reachable", "catalogue", "structure", "content"])]
    level: String,
    /// Read no more than so many bytes of disks within a second
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    max_bytes_per_second: Option<u64>,
    /// What was found, as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: &RepositoryCommand) -> Result<Exit, CliError> {
    match command {
        RepositoryCommand::Init { directory } => {
            let id = init(directory)?;
            output::line(&id.to_string())?;
            Ok(Exit::Done)
        }
        RepositoryCommand::Validate(args) => validate::run(&Wanted {
            directory: &args.directory,
            level: validate::level(&args.level)?,
            backup: None,
            max_bytes_per_second: args.max_bytes_per_second,
            json: args.json,
        }),
    }
}
