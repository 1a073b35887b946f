//! `longshore backup`: what a repository holds, read from its directory alone.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::Exit;
use super::output::{self, CliError};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::mover::share::{Listed, find_backup, list_backups};

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// List the backups, oldest first within each instance
    List(ListArgs),
    /// Show one backup's manifest
    Show(ShowArgs),
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

pub fn run(command: &BackupCommand) -> Result<Exit, CliError> {
    match command {
        BackupCommand::List(args) => list(args),
        BackupCommand::Show(args) => {
            let manifest = find_backup(&args.directory, args.backup)?;
            output::json(&manifest)?;
            Ok(Exit::Done)
        }
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
