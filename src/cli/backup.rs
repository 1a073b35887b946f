//! `longshore backup`: what a repository holds, read from its directory alone.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::chain::{self, ChainArgs};
use super::exit::Exit;
use super::output::{self, CliError};
use super::validate::{self, Wanted};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::mover::share::{Listed, find_backup, list_backups};

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// List the backups, oldest first within each instance
    List(ListArgs),
    /// Show one backup's manifest
    Show(ShowArgs),
    /// Show what one backup needs to be restored: from the full one up to it, with what each takes and is based on (a `+` marks a disk
    /// that is)
    Chain(ChainArgs),
    /// Look whether one backup is whole, with what it is based on; needs to be root
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// Only those of this instance, by uuid or name
    #[arg(long)]
    instance: Option<String>,
    /// The manifests, one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
    /// How far: `structure` (images and hashes) or `content` (every block is read)
    #[arg(long, default_value = "content", value_parser = ["structure", "content"])]
    level: String,
    /// Read no more than so many bytes of disks within a second
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    max_bytes_per_second: Option<u64>,
    /// What was found, as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: &BackupCommand) -> Result<Exit, CliError> {
    match command {
        BackupCommand::List(args) => list(args),
        BackupCommand::Show(args) => {
            let manifest = find_backup(&args.directory, args.backup)?;
            output::json(&manifest)?;
            Ok(Exit::Done)
        }
        BackupCommand::Chain(args) => chain::run(args),
        BackupCommand::Verify(args) => validate::run(&Wanted {
            directory: &args.directory,
            level: validate::level(&args.level)?,
            backup: Some(args.backup),
            max_bytes_per_second: args.max_bytes_per_second,
            json: args.json,
        }),
    }
}

/// What cannot be read is told on stderr, and makes the exit a warning: a list that leaves something out says so.
fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    for listed in list_backups(&args.directory)? {
        match listed {
            Listed::Backup(manifest) if wanted(&manifest, args.instance.as_deref()) => print(&manifest, args.json)?,
            Listed::Backup(_) => {}
            Listed::Damaged { directory, failure } => {
                eprintln!("{}", output::printable(&format!("instances/{directory}: {failure:#}")));
                exit = Exit::Warnings;
            }
        }
    }
    Ok(exit)
}

fn wanted(manifest: &Manifest, instance: Option<&str>) -> bool {
    instance.is_none_or(|wanted| {
        manifest.instance_name.as_str() == wanted
            || wanted.parse::<InstanceId>().is_ok_and(|id| id == manifest.instance_id)
    })
}

fn print(manifest: &Manifest, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_line(manifest);
    }
    let stored = manifest.disks.iter().map(|disk| disk.file_bytes).sum();
    let disks: Vec<_> = manifest.disks.iter().map(|disk| disk.target.as_str()).collect();
    output::line(&format!(
        "{}  {:>4}  {}  {}  {:<11}  {:<10}  {:>11}  {}",
        manifest.backup_id,
        manifest.number,
        manifest.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        manifest.instance_name,
        output::word(&manifest.quiesce.consistency),
        output::word(&manifest.verification),
        output::bytes(stored),
        disks.join(","),
    ))
}
