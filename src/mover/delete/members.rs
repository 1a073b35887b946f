//! The backups of one instance, and what each is based on.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::failure::{Code, Failure};
use crate::model::deletion::Member;
use crate::model::id::{BackupId, InstanceId};
use crate::mover::image::look;
use crate::mover::share::{
    Dir, ENTRIES_MAX, ShareError, instances, is_pinned, open_repository, read_manifest, visible,
};

/// How the names of images end.
const IMAGE_SUFFIX: &[u8] = b".qcow2";

/// Those in the instance's directory. The headers of their images are asked as well what they need, which says something else than the
/// manifest does where a merge was cut off, and is all that there is where the manifest can't be read.
pub(in crate::mover) fn members(parent: &Dir, instance: InstanceId) -> Result<Vec<Member>, Failure> {
    let mut members = Vec::new();
    for entry in visible(parent)? {
        let Ok(backup) = entry.parse::<BackupId>() else { continue };
        match member(parent, instance, backup) {
            Ok(member) => members.push(member),
            // Without the lease, what is being looked at may go.
            Err(_) if parent.stat(backup.to_string())?.is_none() => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(members)
}

/// The instance of a backup in the repository at `root`, and its backups. Where an instance's directory was copied under another name,
/// the one whose manifest of the backup can be read.
pub fn members_at(root: &Path, backup: BackupId) -> Result<(InstanceId, Vec<Member>), Failure> {
    let mut other = None;
    for (instance, parent) in instances(&open_repository(root)?)? {
        if parent.stat(backup.to_string())?.is_some() {
            let is_good = read_manifest(&parent, instance, backup).is_ok();
            let found = (instance, members(&parent, instance)?);
            if is_good {
                return Ok(found);
            }
            other = other.or(Some(found));
        }
    }
    other.ok_or_else(|| Failure::new(Code::BackupNotFound, format!("`{}` has no backup `{backup}`", root.display())))
}

fn member(parent: &Dir, instance: InstanceId, backup: BackupId) -> Result<Member, Failure> {
    let mut member = Member {
        backup_id: backup,
        number: None,
        based_on: BTreeSet::new(),
        images_on: BTreeSet::new(),
        unclear: None,
        bytes: 0,
        pinned: false,
    };
    let directory = match parent.open_dir(backup.to_string()) {
        // What is no directory holds nothing.
        Err(ShareError::NotWhatItSays { .. }) => return Ok(member),
        opened => opened?,
    };
    member.pinned = is_pinned(&directory)?;
    match read_manifest(parent, instance, backup) {
        Ok(manifest) => {
            member.number = Some(manifest.number);
            member.bytes = manifest.stored_bytes();
            member.based_on =
                manifest.disks.iter().filter_map(|disk| Some(disk.based_on.as_ref()?.backup_id)).collect();
            manifest.disks.iter().for_each(|disk| ask_image(&directory, disk.file.as_ref(), &mut member));
        }
        // It can't be read, and will not be the next time either. Its images say what they need.
        Err(failure) if failure.code == Code::RepositoryUnsafe => {
            for entry in directory.list(ENTRIES_MAX)? {
                member.bytes = member.bytes.saturating_add(regular(&directory, &entry.name)?.unwrap_or(0));
                if entry.name.as_bytes().ends_with(IMAGE_SUFFIX) {
                    ask_image(&directory, &entry.name, &mut member);
                }
            }
        }
        Err(failure) => member.unclear = Some(failure),
    }
    Ok(member)
}

/// Notes what an image needs, or why that can't be seen. One that is not there, or is no file, needs nothing.
fn ask_image(directory: &Dir, file: &OsStr, member: &mut Member) {
    match backing_of(directory, file) {
        Ok(None) => {}
        Ok(Some(backup)) => drop(member.images_on.insert(backup)),
        Err(failure) => member.unclear = Some(failure),
    }
}

fn backing_of(directory: &Dir, file: &OsStr) -> Result<Option<BackupId>, Failure> {
    if regular(directory, file)?.is_none() {
        return Ok(None);
    }
    let name = file.to_string_lossy();
    let Some(backing) = look(directory, &name)?.1 else { return Ok(None) };
    backup_in(&backing).map(Some).ok_or_else(|| {
        let text = format!("the header of `{name}` names `{backing}`, which is not how Longshore names an image");
        Failure::new(Code::BackupDamaged, text.escape_debug().to_string())
    })
}

/// The length of a file, bytes; none for what is no file, or is not there.
fn regular(directory: &Dir, name: &OsStr) -> Result<Option<u64>, Failure> {
    match directory.file_bytes(name) {
        Err(ShareError::NotWhatItSays { .. } | ShareError::NotPlain { .. }) => Ok(None),
        found => Ok(found?),
    }
}

/// The backup that a backing file's name, as we write it, leads to.
fn backup_in(backing: &str) -> Option<BackupId> {
    let (backup, _) = backing.strip_prefix("../")?.split_once('/')?;
    backup.parse().ok()
}

#[cfg(test)]
mod tests;
