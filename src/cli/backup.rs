//! `longshore backup`: what a repository holds, read from its directory alone.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::chain::{self, ChainArgs};
use super::exit::Exit;
use super::output::{self, CliError};
use super::validate::{self, Wanted};
use crate::model::deletion::{self, DeleteMode, DeletionPlan};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::model::pin::Pin;
use crate::mover::delete::members_at;
use crate::mover::share::{self, Listed, find_backup, find_pin, list_backups};

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
    /// Keep a backup from being deleted, until it is unpinned
    Pin(PinArgs),
    /// Let a backup be deleted again
    Unpin(UnpinArgs),
    /// Say what deleting a backup would do: what goes, what is merged, what becomes free. Nothing is deleted; `job publish backup-delete` does
    PlanDelete(PlanDeleteArgs),
    /// Say what a restore would do on this host: in place, into a new instance, or of one volume. Nothing is changed; `job publish restore` does
    #[cfg(feature = "libvirt")]
    PlanRestore(Box<super::plan_restore::PlanRestoreArgs>),
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

#[derive(Debug, Args)]
pub struct PinArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
    /// Why it is to be kept
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who wants it kept
    #[arg(long, value_name = "WHO")]
    by: Option<String>,
}

#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
}

#[derive(Debug, Args)]
pub struct PlanDeleteArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
    /// How far the deletion may go, as in the job
    #[arg(long, default_value = "only", value_parser = mode)]
    mode: DeleteMode,
    /// The plan as one JSON object
    #[arg(long)]
    json: bool,
}

/// A backup as it is shown: what its manifest says, and its pin.
#[derive(Serialize)]
struct Shown<'m> {
    #[serde(flatten)]
    manifest: &'m Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<Pin>,
}

/// The words of the job's mode.
fn mode(text: &str) -> Result<DeleteMode, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is `only`, `chain` or `leaf_only`".to_owned())
}

pub fn run(command: &BackupCommand) -> Result<Exit, CliError> {
    match command {
        BackupCommand::List(args) => list(args),
        BackupCommand::Show(args) => {
            let manifest = find_backup(&args.directory, args.backup)?;
            let pin = find_pin(&args.directory, manifest.instance_id, manifest.backup_id)?;
            output::json(&Shown { manifest: &manifest, pin })?;
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
        BackupCommand::Pin(args) => {
            let (reason, pinned_by) = (Some(args.reason.clone()), args.by.clone());
            let pin = Pin { reason, pinned_by, pinned_at: Some(Timestamp::now()) };
            share::pin(&args.directory, args.backup, &pin)?;
            Ok(Exit::Done)
        }
        BackupCommand::Unpin(args) => {
            if !share::unpin(&args.directory, args.backup)? {
                eprintln!("backup {} was not pinned", args.backup);
            }
            Ok(Exit::Done)
        }
        BackupCommand::PlanDelete(args) => plan_delete(args),
        #[cfg(feature = "libvirt")]
        BackupCommand::PlanRestore(args) => super::plan_restore::run(args),
    }
}

/// What cannot be read is told on stderr, and makes the exit a warning: a list that leaves something out says so.
fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    for listed in list_backups(&args.directory)? {
        match listed {
            Listed::Backup(manifest) if wanted(&manifest, args.instance.as_deref()) => {
                // Gone meanwhile, or not to be read: it was listed all the same.
                let pin = find_pin(&args.directory, manifest.instance_id, manifest.backup_id).unwrap_or_default();
                print(&Shown { manifest: &manifest, pin }, args.json)?;
            }
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

fn plan_delete(args: &PlanDeleteArgs) -> Result<Exit, CliError> {
    let (_, members) = members_at(&args.directory, args.backup).map_err(CliError::of_plan)?;
    let plan = deletion::plan(&members, args.backup, args.mode).map_err(CliError::of_plan)?;
    if args.json {
        output::json_line(&plan)?;
        return Ok(Exit::Done);
    }
    let DeletionPlan { merged, deleted, freed_bytes, .. } = &plan;
    if let Some(merge) = merged {
        let onto = merge.onto.map_or_else(|| "which stands alone then".to_owned(), |onto| format!("on {onto} then"));
        output::line(&format!("would merge  what backup {} held, into {}, {onto}", merge.from, merge.backup_id))?;
    }
    for backup in deleted {
        let number = backup.number.map_or_else(|| "not known".to_owned(), |number| number.to_string());
        let bytes = output::bytes(backup.bytes);
        output::line(&format!("would go     backup {} (number {number}), {bytes}", backup.backup_id))?;
    }
    let at_most = if merged.is_some() { ", at most" } else { "" };
    output::line(&format!("free again   {}{at_most}", output::bytes(*freed_bytes)))?;
    Ok(Exit::Done)
}

fn print(shown: &Shown<'_>, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_line(shown);
    }
    let Shown { manifest, pin } = shown;
    let pin = pin.as_ref().map_or_else(String::new, |pin| match &pin.reason {
        Some(reason) => format!("  pinned: {reason}"),
        None => "  pinned".to_owned(),
    });
    let stored = manifest.disks.iter().map(|disk| disk.file_bytes).sum();
    let disks: Vec<_> = manifest.disks.iter().map(|disk| disk.target.as_str()).collect();
    output::line(&format!(
        "{}  {:>4}  {}  {}  {:<11}  {:<10}  {:>11}  {}{pin}",
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
