//! Pins: the file beside a manifest that keeps its backup. Blocks.

use std::path::Path;

use nix::errno::Errno;

use super::listing::{instances, open_repository};
use super::{Dir, ShareError};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::model::pin::Pin;

/// Longest pin that is read, bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// The backup whose directory that is has a pin. Anything of that name is one.
pub(crate) fn is_pinned(directory: &Dir) -> Result<bool, Failure> {
    Ok(directory.stat(Pin::FILE)?.is_some())
}

/// The pin of a backup in the repository at `root`, if it has one. What can't be read says nothing, but is one.
pub fn find_pin(root: &Path, instance: InstanceId, backup: BackupId) -> Result<Option<Pin>, Failure> {
    let directory = open_repository(root)?.open_dir(super::INSTANCES)?.open_dir(instance.to_string())?;
    let directory = directory.open_dir(backup.to_string())?;
    if !is_pinned(&directory)? {
        return Ok(None);
    }
    let content = directory.read(Pin::FILE, BYTES_MAX).unwrap_or_default();
    Ok(Some(serde_json::from_slice(&content).unwrap_or_default()))
}

/// Pins a backup, in the place of an earlier pin. `backup_not_found`: there is no such backup, or it was deleted meanwhile.
pub fn pin(root: &Path, backup: BackupId, pin: &Pin) -> Result<(), Failure> {
    let mut content = serde_json::to_vec_pretty(pin)
        .map_err(|error| Failure::new(Code::Internal, "cannot write a pin").because(&error))?;
    content.push(b'\n');
    for (parent, directory) in open_all(root, backup)? {
        // Under a name of its own first: a pin is there whole, or not at all.
        let temporary = format!(".pin-{}", uuid::Uuid::new_v4());
        directory.write_new(&temporary, &content)?;
        let renamed = directory.rename(&temporary, Pin::FILE);
        if renamed.is_err() {
            directory.remove_file(&temporary)?;
        }
        renamed?;
        directory.sync()?;
        // A deletion looks for a pin once more after it has taken the backup's name away. So one of the two notices the other.
        let found = parent.stat(backup.to_string())?;
        let own = directory.device_and_inode()?;
        if found.is_none_or(|found| (found.st_dev, found.st_ino) != own) {
            return Err(Failure::new(
                Code::BackupNotFound,
                format!("backup `{backup}` was deleted while it was pinned"),
            ));
        }
    }
    Ok(())
}

/// Takes the pin of a backup away; false where it had none.
pub fn unpin(root: &Path, backup: BackupId) -> Result<bool, Failure> {
    let mut had_one = false;
    for (_, directory) in open_all(root, backup)? {
        had_one |= is_pinned(&directory)?;
        directory.remove_file(Pin::FILE)?;
        directory.sync()?;
    }
    Ok(had_one)
}

/// The directories of that backup, each with its instance's: more than one where an instance's was copied under another name.
fn open_all(root: &Path, backup: BackupId) -> Result<Vec<(Dir, Dir)>, Failure> {
    let mut found = Vec::new();
    for (_, parent) in instances(&open_repository(root)?)? {
        match parent.open_dir(backup.to_string()) {
            // What has no manifest is no backup.
            Ok(directory) if directory.stat(Manifest::FILE)?.is_some() => found.push((parent, directory)),
            Ok(_) | Err(ShareError::Refused { errno: Errno::ENOENT, .. } | ShareError::NotWhatItSays { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match found.is_empty() {
        true => Err(Failure::new(Code::BackupNotFound, format!("`{}` has no backup `{backup}`", root.display()))),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mover::testing;

    #[test]
    fn a_pin_is_put_replaced_and_taken_away_and_anything_of_its_name_is_one() {
        let share = tempfile::tempdir().unwrap();
        super::super::init(share.path()).unwrap();
        let manifest = testing::published(share.path(), &testing::manifest(&["vda"]));
        let (instance, backup) = (manifest.instance_id, manifest.backup_id);
        let found = || find_pin(share.path(), instance, backup).unwrap();
        assert_eq!(found(), None);
        assert!(!unpin(share.path(), backup).unwrap());
        for reason in ["an audit", "another audit"] {
            let wanted = Pin { reason: Some(reason.to_owned()), ..Pin::default() };
            pin(share.path(), backup, &wanted).unwrap();
            assert_eq!(found(), Some(wanted));
        }
        let directory = share.path().join(super::super::INSTANCES).join(instance.to_string()).join(backup.to_string());
        assert!(
            std::fs::read_dir(&directory)
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with('.') })
        );
        for content in ["", "{", "[1]", r#"{"reason": 7}"#] {
            std::fs::write(directory.join(Pin::FILE), content).unwrap();
            assert_eq!(found(), Some(Pin::default()), "{content}");
        }
        assert!(unpin(share.path(), backup).unwrap());
        assert_eq!(found(), None);
        assert_eq!(pin(share.path(), BackupId::draw(), &Pin::default()).unwrap_err().code, Code::BackupNotFound);
        assert_eq!(unpin(share.path(), BackupId::draw()).unwrap_err().code, Code::BackupNotFound);
    }
}
