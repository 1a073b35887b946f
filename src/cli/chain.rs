//! `longshore backup chain`: what a backup needs to be restored, from the one that stands alone up to it.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::exit::Exit;
use super::output::{self, CliError};
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::{BasedOn, Manifest, ManifestDisk};
use crate::mover::share::{Chain, chain_of};

#[derive(Debug, Args)]
pub struct ChainArgs {
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
    /// The chain, one JSON object a line and backup
    #[arg(long)]
    json: bool,
}

/// A link that is broken is told on stderr, and makes the exit a warning.
pub fn run(args: &ChainArgs) -> Result<Exit, CliError> {
    let Chain { backups, broken } = chain_of(&args.directory, args.backup)?;
    for manifest in &backups {
        let link = Link::of(manifest);
        if args.json {
            output::json_line(&link)?;
        } else {
            output::line(&link.row())?;
        }
    }
    if !args.json {
        let all = backups.iter().flat_map(|manifest| &manifest.disks).map(|disk| disk.file_bytes);
        let all = output::bytes(all.fold(0, u64::saturating_add));
        output::line(&format!("needs {} backups, {all} in all", backups.len()))?;
    }
    match broken {
        None => Ok(Exit::Done),
        Some(failure) => {
            eprintln!("{}", output::printable(&format!("the chain is broken: {failure:#}")));
            Ok(Exit::Warnings)
        }
    }
}

/// A backup of the chain.
#[derive(Debug, Serialize)]
struct Link<'m> {
    backup_id: BackupId,
    instance_id: InstanceId,
    number: u64,
    taken_at: Timestamp,
    /// The backup that it is based on; none for one that stands alone.
    based_on: Option<BackupId>,
    /// Its images, bytes.
    file_bytes: u64,
    disks: Vec<LinkDisk<'m>>,
}

#[derive(Debug, Serialize)]
struct LinkDisk<'m> {
    target: &'m DiskTarget,
    file: &'m str,
    file_bytes: u64,
    data_bytes: u64,
    virtual_bytes: u64,
    content_root: &'m str,
    /// None for an image that stands alone.
    based_on: Option<&'m BasedOn>,
}

impl<'m> Link<'m> {
    fn of(manifest: &'m Manifest) -> Self {
        let disk = |disk: &'m ManifestDisk| LinkDisk {
            target: &disk.target,
            file: &disk.file,
            file_bytes: disk.file_bytes,
            data_bytes: disk.data_bytes,
            virtual_bytes: disk.virtual_bytes,
            content_root: &disk.content_root,
            based_on: disk.based_on.as_ref(),
        };
        Self {
            backup_id: manifest.backup_id,
            instance_id: manifest.instance_id,
            number: manifest.number,
            taken_at: manifest.taken_at,
            based_on: manifest.parent(),
            file_bytes: manifest.disks.iter().map(|disk| disk.file_bytes).fold(0, u64::saturating_add),
            disks: manifest.disks.iter().map(disk).collect(),
        }
    }

    fn row(&self) -> String {
        let kind = if self.based_on.is_some() { "incremental" } else { "full" };
        let based_on = self.based_on.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let disks: Vec<_> = self
            .disks
            .iter()
            .map(|disk| format!("{}{}", disk.target, if disk.based_on.is_some() { "+" } else { "" }))
            .collect();
        format!(
            "{}  {:>4}  {}  {kind:<11}  {:>11}  {based_on:<36}  {}",
            self.backup_id,
            self.number,
            self.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            output::bytes(self.file_bytes),
            disks.join(","),
        )
    }
}
