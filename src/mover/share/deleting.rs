//! How a backup goes: its directory is moved out of the listing, and then removed. Blocks.
//!
//! ```text
//!   mkdir .deleting-<backup>.<uuid>/ ─▶ lease confirmed ─▶ <backup>/ moved into it, fsync ─▶ look for a pin once more
//!                                                               │ cut off: as below            │ pinned: moved back
//!                                                               ▼                              ▼
//!                                        .fenced-<backup>.<uuid>/ ◀─ moved out of it, which is removed; then this one is
//! ```
//!
//! Who pins a backup looks afterwards whether it is in its place still. So a pin that was put in time keeps it, whatever happens.
//!
//! What it is moved into is the fence: whoever takes the lease over removes that before anything else, and a holder who does not know
//! yet that the lease is lost can move nothing any more. So no backup goes once somebody else may have based another one on it. It has a name
//! that no other deletion has, as CIFS finds a directory again by its name alone; and it is empty when it is removed, as NFS keeps a
//! file that somebody has open, and with it the directory that it is in.
//!
//! The place that the backup had among its instance's is never given again: the highest that ever went is kept in a file.

use std::ffi::OsStr;

use uuid::Uuid;

use super::staging::{DELETING_PREFIX, FENCED_PREFIX, fenced_name};
use super::{Dir, ENTRIES_MAX, Entry, MANIFEST_BYTES_MAX, NUMBER_MAX, ShareError, is_pinned};
use crate::failure::{Code, Failure};
use crate::model::id::BackupId;
use crate::model::manifest::Manifest;

/// The file with the highest number of a backup that is no more, in the instance's directory.
pub(crate) const HIGHEST_NUMBER: &str = ".highest-number";
/// Under which it is written first.
pub(crate) const HIGHEST_TEMPORARY: &str = ".highest-number.tmp";
/// Longest that is read, bytes; ours is 11.
const HIGHEST_BYTES_MAX: u64 = 64;

/// Times that a way out is emptied: a holder who lost the lease may put one thing more into it, for as long as it is there.
const EMPTIED_MAX: u32 = 8;

/// Where a backup is moved to.
#[derive(Debug)]
pub(crate) struct WayOut {
    backup: BackupId,
    name: String,
    directory: Dir,
}

impl WayOut {
    /// Makes it in the instance's directory. The lease is to be confirmed after that, and before anything is moved.
    pub fn make(parent: &Dir, backup: BackupId) -> Result<Self, Failure> {
        let name = format!("{DELETING_PREFIX}{backup}.{}", Uuid::new_v4());
        Ok(Self { backup, directory: parent.ensure_dir(&name)?, name })
    }

    /// The backup that it is for.
    pub fn backup(&self) -> BackupId {
        self.backup
    }

    /// Moves the backup out of the listing. One that is not there is no error. `number` is its place, where it is known; `lease` that of
    /// the lease that is held, which no backup's is beyond, as each lease publishes once.
    pub fn take(&self, parent: &Dir, number: Option<u64>, lease: u64) -> Result<(), Failure> {
        let (backup, name) = (self.backup, self.backup.to_string());
        let pinned = || Failure::new(Code::BackupPinned, format!("backup `{backup}` is not deleted: it is pinned"));
        match parent.open_dir(&name) {
            Ok(directory) if is_pinned(&directory)? => return Err(pinned()),
            Ok(_) => {}
            Err(error) if error.is_missing() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        match keep_number(parent, number, lease) {
            // A share that is full is to get room again, which is worth more.
            Err(error) if error.is_full() => tracing::warn!(number, "no room for the number of a deleted backup"),
            kept => kept?,
        }
        if let Err(error) = parent.rename_into(&name, &self.directory, &name) {
            // An answer may be lost: what counts is where it is now.
            match (parent.stat(&name)?, self.directory.stat(&name)) {
                (None, Ok(Some(_))) => {}
                _ if error.is_missing() => return Err(taken_away(backup).because(&error)),
                _ => return Err(error.of_rename()),
            }
        }
        parent.sync()?;
        if is_pinned(&self.directory.open_dir(&name)?)? {
            self.directory.rename_into(&name, parent, &name)?;
            parent.sync()?;
            return Err(pinned());
        }
        Ok(())
    }

    /// As [`remove_taken`], of this one alone.
    pub fn remove(&self, parent: &Dir) -> Result<(), Failure> {
        let taken = end(parent, self.name.as_ref())?;
        remove_all(parent, taken.iter().map(AsRef::as_ref))
    }
}

/// Somebody else has the lease, and has removed what the backup was to be moved into.
fn taken_away(backup: BackupId) -> Failure {
    Failure::new(
        Code::LeaseLost,
        format!("backup `{backup}` could not be moved: what it was to be moved into was taken away"),
    )
}

/// Removes the files of what was moved out of the instance's listing, whoever moved it. Only under the lease. A link is removed, and never
/// followed. All of it is tried before the first failure is answered.
pub(crate) fn remove_taken(parent: &Dir) -> Result<(), Failure> {
    let of = |prefix: &str| -> Result<Vec<_>, Failure> {
        let names = parent.list(ENTRIES_MAX)?.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| name.to_str().is_some_and(|name| name.starts_with(prefix))).collect())
    };
    for name in of(DELETING_PREFIX)? {
        end(parent, &name)?;
    }
    let doomed = of(FENCED_PREFIX)?;
    remove_all(parent, doomed.iter().map(AsRef::as_ref))
}

fn remove_all<'n>(parent: &Dir, names: impl Iterator<Item = &'n OsStr>) -> Result<(), Failure> {
    let mut failed = None;
    for name in names {
        if let Err(error) = parent.remove_tree(name) {
            failed = failed.or(Some(error));
        }
    }
    parent.sync()?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Ends a way out: what is in it goes under other names, which are answered, to be removed; and then nobody can move anything into it any
/// more. A backup in it that turns out to be pinned goes back to its place, unless what it is based on is not in its own any more.
pub(super) fn end(parent: &Dir, name: &OsStr) -> Result<Vec<String>, Failure> {
    let mut taken = Vec::new();
    for _ in 0..EMPTIED_MAX {
        let entries = match parent.open_dir(name) {
            Err(error) if error.is_missing() => return Ok(taken),
            // What is no directory leads nowhere.
            Err(ShareError::NotWhatItSays { .. }) => return Ok(parent.remove_file(name).map(|()| taken)?),
            opened => {
                let way_out = opened?;
                let entries = way_out.list(ENTRIES_MAX)?;
                for entry in &entries {
                    taken.extend(move_out(parent, &way_out, entry)?);
                }
                entries
            }
        };
        match parent.remove_dir(name) {
            Err(error) if error.is_taken() && !entries.is_empty() => {}
            removed => return Ok(removed.map(|()| taken)?),
        }
    }
    Err(ShareError::TooMuch { shown: parent.shown(name), limit: EMPTIED_MAX.into(), unit: "rounds of emptying" }.into())
}

/// The name that it got, unless it went back to its place, or was removed at once.
fn move_out(parent: &Dir, way_out: &Dir, entry: &Entry) -> Result<Option<String>, Failure> {
    let name = entry.name.to_str().unwrap_or_default();
    let backup = name.parse::<BackupId>().ok().filter(|id| id.to_string() == name);
    let is_kept = match (way_out.open_dir(&entry.name), backup) {
        (Err(ShareError::NotWhatItSays { .. }), _) | (Ok(_), None) => false,
        (opened, _) => {
            is_pinned(&opened?)? && parent.stat(&entry.name)?.is_none() && has_its_parent(parent, way_out, name)?
        }
    };
    if is_kept {
        way_out.rename_into(&entry.name, parent, &entry.name)?;
        parent.sync()?;
        return Ok(None);
    }
    // Before its first file goes: from then on it is never taken for whole.
    let fenced = fenced_name(name);
    match way_out.rename_into(&entry.name, parent, &fenced) {
        // A full share may have no room for the other name, and what is to go is what fills it.
        Err(error) if error.is_full() => Ok(way_out.remove_tree(&entry.name).map(|()| None)?),
        renamed => Ok(renamed.map(|()| Some(fenced))?),
    }
}

/// Whether a backup that is in a way out could be restored from its place. One whose manifest can't be read could not be anywhere.
fn has_its_parent(parent: &Dir, way_out: &Dir, name: &str) -> Result<bool, Failure> {
    let content = match way_out.open_dir(name)?.read(Manifest::FILE, MANIFEST_BYTES_MAX) {
        Err(error) if error.is_missing() => return Ok(false),
        Err(ShareError::NotWhatItSays { .. } | ShareError::TooMuch { .. }) => return Ok(false),
        read => read?,
    };
    match serde_json::from_slice::<Manifest>(&content).ok().map(|manifest| manifest.parent()) {
        None => Ok(false),
        Some(None) => Ok(true),
        Some(Some(based_on)) => Ok(parent.stat(based_on.to_string())?.is_some()),
    }
}

/// The highest number of a backup that is no more; 0 where none is known to have had one. None where the file says nothing that we would
/// write.
pub(crate) fn highest_taken(parent: &Dir) -> Result<Option<u64>, ShareError> {
    let content = match parent.read(HIGHEST_NUMBER, HIGHEST_BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.is_missing() => return Ok(Some(0)),
        Err(ShareError::NotWhatItSays { .. } | ShareError::TooMuch { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let number = std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse().ok());
    Ok(number.filter(|number| *number <= NUMBER_MAX))
}

fn keep_number(parent: &Dir, number: Option<u64>, lease: u64) -> Result<(), ShareError> {
    let highest = highest_taken(parent)?;
    let number = match (number, highest) {
        (Some(number), Some(_)) => number,
        (number, _) => lease.max(number.unwrap_or(0)),
    };
    match highest {
        Some(highest) if highest >= number => return Ok(()),
        Some(_) => {}
        // A directory would not make way for a file.
        None => parent.remove_tree(HIGHEST_NUMBER)?,
    }
    parent.remove_tree(HIGHEST_TEMPORARY)?;
    parent.write_new(HIGHEST_TEMPORARY, format!("{number}\n").as_bytes())?;
    parent.rename(HIGHEST_TEMPORARY, HIGHEST_NUMBER)
}

#[cfg(test)]
mod tests;
