//! Merged images and the manifest that tells of them take the places of a child's own: one rename each.
//!
//! Everything is written and read back before the lease is confirmed for the last time. After that there are renames alone, of files that
//! whoever takes the lease over takes away first: so none of a holder who lost it comes to anything.

use serde_json::Value;

use super::instance_dir;
use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;
use crate::model::manifest::{BasedOn, ChangesFoundBy, Manifest, ManifestDisk};
use crate::mover::image::{MergedImage, backing_name, damaged, look};
use crate::mover::protocol::Merger;
use crate::mover::publish;
use crate::mover::share::{Dir, MANIFEST_BYTES_MAX, README, Sent, ShareError, must_be_stored, replace, restore_readme};

/// Images that were made and proven, each in a file of the instance's directory.
#[derive(Clone, Debug)]
pub(in crate::mover) struct Merging {
    /// For whom.
    pub merger: Merger,
    /// The beginning of the files' names; the rest is the name of the file whose place they will take.
    pub prefix: String,
    /// The images, those that are in their places already among them.
    pub images: Vec<MergedImage>,
}

/// All that takes a place, written and read back.
pub(super) struct Exchange {
    parent: Dir,
    /// The child's.
    dir: Dir,
    prefix: String,
    merger: Merger,
    images: Vec<Placed>,
    contents: [(&'static str, Sent); 2],
}

/// A merged image.
struct Placed {
    file: String,
    file_bytes: u64,
    /// The backing file that its header names.
    backing: Option<String>,
}

/// Writes what tells of the merged images beside them; none where the child has taken over already. `interrupted`: it has not, and what
/// was to take that one's place is not there.
pub(super) fn prepare(
    root: &Dir,
    instance: InstanceId,
    merger: Merger,
    merging: Option<&Merging>,
) -> Result<Option<Exchange>, Failure> {
    let (child, dir) = publish::open(root, instance, merger.child)?;
    if child.parent() != Some(merger.from) {
        return Ok(None);
    }
    let Some(merging) = merging.filter(|merging| merging.merger == merger) else {
        let text = format!("backup `{}` has not taken over yet what backup `{}` holds", merger.child, merger.from);
        return Err(Failure::new(Code::Interrupted, text));
    };
    let (from, _) = publish::open(root, instance, merger.from)?;
    let merged = merged_manifest(&child, &from, &merging.images)?;
    let placed = merging.images.iter().map(|image| placed(image, &merged)).collect::<Result<_, _>>()?;
    let (parent, prefix) = (instance_dir(root, instance)?, merging.prefix.clone());
    let manifest = rewritten(&dir.read(Manifest::FILE, MANIFEST_BYTES_MAX)?, &child, &merged)?;
    let write = |file: &'static str, content: &[u8]| -> Result<_, Failure> {
        let (fresh, sent) = (format!("{prefix}{file}"), Sent::of(content));
        // An earlier try of the same mover may have left it.
        parent.remove_file(&fresh)?;
        parent.write_new(&fresh, content)?;
        must_be_stored(&parent, &fresh, &sent)?;
        Ok((file, sent))
    };
    // The manifest last: until it is in its place the headers of the images say more than it does.
    let contents = [write(README, restore_readme(&merged).as_bytes())?, write(Manifest::FILE, &manifest)?];
    parent.sync()?;
    Ok(Some(Exchange { parent, dir, prefix, merger, images: placed, contents }))
}

/// How the image of a disk has to be when it is in its place.
fn placed(image: &MergedImage, merged: &Manifest) -> Result<Placed, Failure> {
    let disk = merged.disks.iter().find(|disk| disk.target == image.disk).filter(|disk| disk.file == image.file);
    let disk = disk.ok_or_else(|| {
        let text = format!("the merged image `{}` is of no disk of backup `{}`", image.file, merged.backup_id);
        Failure::new(Code::BackupDamaged, text)
    })?;
    let backing = disk.based_on.as_ref().map(|based_on| backing_name(based_on.backup_id, &image.file));
    Ok(Placed { file: image.file.clone(), file_bytes: image.file_bytes, backing })
}

/// The child as it is when all of its images have taken their places. Pure.
fn merged_manifest(child: &Manifest, from: &Manifest, images: &[MergedImage]) -> Result<Manifest, Failure> {
    let mut merged = child.clone();
    for disk in &mut merged.disks {
        if disk.based_on.as_ref().is_none_or(|based_on| based_on.backup_id != from.backup_id) {
            continue;
        }
        let missing = |what: &str| {
            Failure::new(Code::Interrupted, format!("disk `{}` of backup `{}` {what}", disk.target, child.backup_id))
        };
        let image = images.iter().find(|image| image.disk == disk.target).ok_or_else(|| missing("was not merged"))?;
        let below = from.disks.iter().find(|below| below.target == disk.target);
        let below = below.ok_or_else(|| missing("is based on a backup without it"))?;
        // What differs from the new base was found by comparing, whatever it was found by before.
        let found_by = ChangesFoundBy::Hashes;
        disk.based_on = below.based_on.clone().map(|based_on| BasedOn { found_by, ..based_on });
        if disk.based_on.is_none() {
            disk.full_reason = Some(format!("backup `{}`, which it was based on, was merged into it", from.backup_id));
        }
        (disk.file_bytes, disk.data_bytes) = (image.file_bytes, image.data_bytes);
    }
    Ok(merged)
}

/// The manifest as it stands in its file, with the disks that have changed: what a later version has written beside them stays.
fn rewritten(content: &[u8], child: &Manifest, merged: &Manifest) -> Result<Vec<u8>, Failure> {
    let unwritable =
        |error: serde_json::Error| Failure::new(Code::Internal, "cannot write the manifest").because(&error);
    let mut found: Value = serde_json::from_slice(content).map_err(unwritable)?;
    if found == serde_json::to_value(child).map_err(unwritable)? {
        return publish::encoded(merged);
    }
    let disks = found.get_mut("disks").and_then(Value::as_array_mut).into_iter().flatten();
    for (found, (before, after)) in disks.zip(child.disks.iter().zip(&merged.disks)) {
        let of = |disk: &ManifestDisk| match serde_json::to_value(disk) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err(Failure::new(Code::Internal, "a disk of a manifest is no object")),
            Err(error) => Err(unwritable(error)),
        };
        let (before, after) = (of(before)?, of(after)?);
        // What a later version says besides of an image is not so of another one.
        if before != after {
            *found = Value::Object(after);
        }
    }
    publish::encoded(&found)
}

impl Exchange {
    /// Lets everything take its place, from wherever an earlier try was cut off. `lease_lost`: something was taken away.
    pub fn take_places(&self) -> Result<(), Failure> {
        self.images.iter().try_for_each(|image| self.put_image(image))?;
        self.dir.sync()?;
        self.contents.iter().try_for_each(|(file, sent)| self.put_content(file, sent))?;
        self.dir.sync()?;
        Ok(())
    }

    fn put_image(&self, image: &Placed) -> Result<(), Failure> {
        let file = &image.file;
        // On CIFS the place may be empty, where an earlier try was cut off.
        let there = || match self.dir.stat(file)? {
            Some(_) => Ok::<_, Failure>(Some(look(&self.dir, file)?.1)),
            None => Ok(None),
        };
        match there()? {
            Some(backing) if backing == image.backing => return Ok(()),
            Some(backing) if backing != Some(backing_name(self.merger.from, file)) => {
                return Err(damaged(&self.dir, file, "it is based on neither of the two that it may be"));
            }
            Some(_) | None => {}
        }
        let fresh = format!("{}{file}", self.prefix);
        match self.parent.file_bytes(&fresh)? {
            Some(bytes) if bytes == image.file_bytes => {}
            Some(_) => return Err(damaged(&self.parent, &fresh, "it has another length than was proven")),
            None => return Err(taken_away(&fresh)),
        }
        match replace(&self.parent, &fresh, &self.dir, self.merger.child, file) {
            Ok(()) => Ok(()),
            // An answer may be lost: what counts is which image is there now.
            Err(_) if there()? == Some(image.backing.clone()) => Ok(()),
            Err(error) => Err(not_renamed(&fresh, error)),
        }
    }

    fn put_content(&self, file: &str, sent: &Sent) -> Result<(), Failure> {
        let fresh = format!("{}{file}", self.prefix);
        match replace(&self.parent, &fresh, &self.dir, self.merger.child, file) {
            Ok(()) => Ok(()),
            Err(error) => must_be_stored(&self.dir, file, sent).map_err(|_| not_renamed(&fresh, error)),
        }
    }
}

fn not_renamed(fresh: &str, error: ShareError) -> Failure {
    match error.is_missing() {
        true => taken_away(fresh).because(&error),
        false => error.of_rename(),
    }
}

/// Only whoever takes the lease over does that.
fn taken_away(fresh: &str) -> Failure {
    Failure::new(Code::LeaseLost, format!("`{fresh}`, which was to take a place in a backup, was taken away"))
}

#[cfg(test)]
mod tests;
