//! Files that a restore makes where nothing is, and how they get their names.
//!
//! Two names beside each other are all the state that there is, so that another mover can go on where one was cut off:
//!
//! ```text
//!   fresh   path
//!    new      -      made
//!    new     new     named, the first name not yet taken away (where a file system renames only onto what is there)
//!     -      new     named
//!     -       -      nobody knows: what was made is not seen, and may be all the same, as where a mount is missing
//!    new    other    somebody else has taken the name: nothing of it is touched
//! ```
//!
//! A new file is known by its inode, and its directory as well: what has the name is the new file only if it is that. A file system whose inodes
//! have other numbers once it is mounted anew keeps nothing of that: there, nothing is taken away after a boot, and it is told.
//!
//! It promises that nothing is ever overwritten, and that no file is made or named outside of the roots: below them no link is
//! followed. Everything here blocks, for as long as the storage does.

mod naming;
mod place;
mod record;
#[cfg(test)]
mod tests;

use std::path::Path;

pub(super) use naming::{Outcome, place, remove, take_back};
pub(super) use place::{directories, inodes, prepare};
pub(super) use record::{read, write};

use super::protocol::{NewContent, NewFiles};
use super::share::open_repository;
use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId};

/// A file of a published backup in the repository at `root`, held against its manifest.
pub fn record_at(root: &Path, instance: InstanceId, backup: BackupId, file: &str) -> Result<Vec<u8>, Failure> {
    read(&open_repository(root)?, instance, backup, file)
}

/// Looks whether the files could be made, of which the disks have so many bytes of data, in their order. Changes nothing.
pub(super) fn look_at(new: &NewFiles, data_bytes: &[u64]) -> Result<(), Failure> {
    place::look(new, data_bytes).map(drop)
}

/// What the files take, in their order: of disks `data_bytes`, one after another.
fn bytes_of<'n>(new: &'n NewFiles, data_bytes: &'n [u64]) -> impl Iterator<Item = u64> + 'n {
    let mut of_disks = data_bytes.iter().copied();
    new.files.iter().map(move |file| match file.content {
        NewContent::Disk { .. } => of_disks.next().unwrap_or(0),
        // Less than what is kept free in any case.
        NewContent::Record { .. } => 0,
    })
}
