//! How much a restore would write, and whether its volumes could be made where they are to be: looked at, with nothing changed, no lock and
//! no lease.

use std::path::Path;

use super::image::Backups;
use super::protocol::{ToMake, ToWeigh};
use super::share::{Dir, open_repository};
use super::{new_files, volume};
use crate::failure::Failure;

/// Bytes that a backup in the repository at `root` stores of each disk as data, at most, with what it is based on; refuses what a restore would
/// refuse of the places, but for volumes that somebody uses.
pub fn weigh_at(root: &Path, wanted: &ToWeigh) -> Result<Vec<u64>, Failure> {
    weigh(&open_repository(root)?, wanted)
}

/// The same, of a repository that is open.
pub(super) fn weigh(root: &Dir, wanted: &ToWeigh) -> Result<Vec<u64>, Failure> {
    let mut backups = Backups::new(root, wanted.instance);
    let published = backups.open(wanted.backup)?;
    let mut data_bytes = Vec::new();
    for disk in wanted.to_make.disks() {
        let links = backups.chain(wanted.backup, disk)?;
        let stored = links.iter().fold(0_u64, |bytes, link| bytes.saturating_add(link.data_bytes));
        let found = published.manifest.disks.iter().find(|found| found.target == *disk);
        data_bytes.push(stored.min(found.map_or(u64::MAX, |found| found.virtual_bytes)));
    }
    match &wanted.to_make {
        ToMake::New(new) => new_files::look_at(new, &data_bytes)?,
        ToMake::InPlace { volumes, keep_previous } => volume::look_at(volumes, &data_bytes, *keep_previous)?,
    }
    Ok(data_bytes)
}
