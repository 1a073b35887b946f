//! How much a restore would write, and whether its volumes could be made where they are to be: looked at, with nothing changed, no lock and
//! no lease.

use std::path::Path;

use super::image::{Backups, Original, Wanted};
use super::new_files;
use super::protocol::{RestoredVolume, ToMake, ToWeigh, VolumePlace, Weighed};
use super::share::{Dir, open_repository};
use super::volume::{self, Amount};
use crate::failure::Failure;
use crate::model::id::BackupId;

/// What a restore of a backup in the repository at `root` would write; refuses what a restore would refuse of the places, but for volumes
/// that somebody uses.
pub fn weigh_at(root: &Path, wanted: &ToWeigh) -> Result<Weighed, Failure> {
    weigh(&open_repository(root)?, wanted)
}

/// The same, of a repository that is open.
pub(super) fn weigh(root: &Dir, wanted: &ToWeigh) -> Result<Weighed, Failure> {
    let mut backups = Backups::new(root, wanted.instance);
    let published = backups.open(wanted.backup)?;
    let mut data_bytes = Vec::new();
    for disk in wanted.to_make.disks() {
        let links = backups.chain(wanted.backup, disk)?;
        let stored = links.iter().fold(0_u64, |bytes, link| bytes.saturating_add(link.data_bytes));
        let found = published.manifest.disks.iter().find(|found| found.target == *disk);
        data_bytes.push(stored.min(found.map_or(u64::MAX, |found| found.virtual_bytes)));
    }
    let warnings = match &wanted.to_make {
        ToMake::New(new) => new_files::look_at(new, &data_bytes).map(|()| Vec::new())?,
        ToMake::InPlace { volumes, keep_previous } => {
            let amount = |(volume, bytes): (&RestoredVolume, &u64)| amount(&mut backups, wanted.backup, volume, *bytes);
            let amounts = volumes.iter().zip(&data_bytes).map(amount).collect::<Result<Vec<_>, _>>()?;
            volume::look_at(volumes, &amounts, *keep_previous)?
        }
    };
    Ok(Weighed { data_bytes, warnings })
}

/// Where its data lies is of account in a thin pool, and how little it may be in a pool of RBD, and nowhere else.
fn amount(
    backups: &mut Backups<'_>,
    backup: BackupId,
    volume: &RestoredVolume,
    data_bytes: u64,
) -> Result<Amount, Failure> {
    let RestoredVolume { disk, virtual_bytes, content_root, place, .. } = volume;
    if !matches!(place, VolumePlace::Logical { .. } | VolumePlace::Rbd { .. }) {
        return Ok(Amount::anywhere(data_bytes));
    }
    let wanted = Wanted { backup, disk, virtual_bytes: *virtual_bytes, content_root };
    Original::look(backups, wanted).map(|original| original.amount())
}
