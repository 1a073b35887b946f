//! What a new image leaves to an image of an earlier backup, and what of a disk it has to hold itself.

use std::path::PathBuf;
use std::sync::Arc;

use super::blocks::Blocks;
use super::extent_map::ExtentMap;
use super::original::Original;
use super::target::Backing;
use super::{chain, hex};
use crate::failure::{Code, Failure};
use crate::model::id::BackupId;
use crate::model::manifest::{BasedOn, ChangesFoundBy};
use crate::mover::nbd::Connection;
use crate::mover::protocol::CopyDisk;

/// A disk that is to be copied.
#[derive(Debug)]
pub struct ToCopy {
    /// The disk.
    pub(in crate::mover) disk: CopyDisk,
    /// What its image is to be based on, if anything; or why it can't be what was wanted.
    pub(in crate::mover) base: Result<Option<Base>, String>,
}

impl From<CopyDisk> for ToCopy {
    /// Into an image that stands alone.
    fn from(disk: CopyDisk) -> Self {
        Self { disk, base: Ok(None) }
    }
}

/// A disk of an earlier backup.
#[derive(Debug)]
pub(in crate::mover) struct Base {
    /// The backup.
    pub backup: BackupId,
    /// What that holds of the disk.
    pub original: Original,
    /// Where the images of that can be opened, the topmost first.
    pub images: Vec<PathBuf>,
    /// What the disk held in the moment since which its source says what was written to; none where that is not to be believed.
    pub since: Option<Arc<Blocks>>,
}

impl Base {
    /// As the manifest of the new backup has it, of a disk that is read there.
    pub(super) fn as_written(&self, source: &Connection) -> BasedOn {
        self.by(match changes(source, &self.original.blocks, self.since.as_deref()) {
            Some(_) => ChangesFoundBy::Bitmap,
            None => ChangesFoundBy::Hashes,
        })
    }

    /// Likewise, of a disk whose changes were found so.
    pub(super) fn by(&self, found_by: ChangesFoundBy) -> BasedOn {
        BasedOn { backup_id: self.backup, content_root: hex(&self.original.blocks), found_by }
    }

    /// As the new image has it.
    pub(super) fn backing(&self) -> Result<Backing, Failure> {
        let image = self.original.links.first().map(|link| link.image.as_str());
        let image = image.ok_or_else(|| Failure::new(Code::Internal, "a base has no image"))?;
        Ok(Backing { name: chain::backing_name(self.backup, image), node: chain::node(&self.images)? })
    }
}

/// What has been written to since the disk held `since`; none where nobody knows.
pub(super) fn changes<'c>(source: &'c Connection, base: &Blocks, since: Option<&Blocks>) -> Option<ExtentMap<'c>> {
    // What is new of a disk that grew need not be marked.
    let size = source.export().size;
    since.filter(|since| since.virtual_bytes() == size && base.virtual_bytes() == size)?;
    ExtentMap::of_changes(source)
}

/// Bytes that an image of a disk stores at most, with that base or without one.
pub(in crate::mover) fn stored_over(base: Option<&Base>, disk: &Original) -> u64 {
    let is_stored = |index: &u64| {
        disk.blocks.get(*index).is_some() && base.is_none_or(|base| !holds(&base.original.blocks, *index, &disk.blocks))
    };
    (0..disk.blocks.count()).filter(is_stored).map(|index| disk.blocks.block_bytes(index)).sum()
}

/// The base, unless a disk of that size can't have it.
pub(super) fn fitting(base: Result<Option<Base>, String>, virtual_bytes: u64) -> Result<Option<Base>, String> {
    match base {
        Ok(Some(base)) if base.original.blocks.virtual_bytes() > virtual_bytes => {
            let (then, backup) = (base.original.blocks.virtual_bytes(), base.backup);
            Err(format!("the disk has {virtual_bytes} bytes and had {then} in backup `{backup}`: it became smaller"))
        }
        base => base,
    }
}

/// A block of a disk is what it was: an image on that base need not hold it. What is beyond the end of the base reads as zeros.
pub(super) fn holds(base: &Blocks, index: u64, now: &Blocks) -> bool {
    same(base, index, now.get(index), now.block_bytes(index))
}

/// Likewise, for a block of those bytes with that hash, none for zeros.
pub(super) fn same(base: &Blocks, index: u64, hash: Option<&super::blocks::BlockHash>, bytes: u64) -> bool {
    base.get(index) == hash && (hash.is_none() || base.block_bytes(index) == bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::blocks::BLOCK_BYTES;
    use super::*;

    #[test]
    fn a_block_is_left_to_the_base_only_if_it_is_the_same_to_its_last_byte() {
        let of = |bytes: u64, data: &[(u64, u8)]| {
            let mut blocks = Blocks::new(bytes).unwrap();
            data.iter().for_each(|(index, fill)| blocks.set(*index, [*fill; 32]));
            blocks
        };
        let half = BLOCK_BYTES / 2;
        let (base, now) =
            (of(3 * BLOCK_BYTES + half, &[(1, 1), (2, 2), (3, 3)]), &of(6 * BLOCK_BYTES, &[(1, 1), (3, 3), (5, 5)]));
        let held: Vec<u64> = (0..now.count()).filter(|index| holds(&base, *index, now)).collect();
        // 2 became zeros, 3 was shorter, 4 was not there and is zeros, 5 was not there.
        assert_eq!(held, [0, 1, 4]);
    }
}
