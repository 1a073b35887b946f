//! The backups on a share as anybody can read them: every directory with a manifest, and what is wrong with the others.

use std::path::Path;

use super::{Dir, ENTRIES_MAX, INSTANCES, ShareError, read_identity};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;

/// Longest manifest that is read or written, bytes.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a listing is mostly backups")]
pub enum Listed {
    /// A published backup.
    Backup(Manifest),
    /// A directory that is neither a backup nor one of the hidden ones that work in progress has.
    Damaged {
        /// The directory below `instances`, as it may be printed.
        directory: String,
        /// What is wrong.
        failure: Failure,
    },
}

/// All backups in the repository at `root`, by instance and number. What can't be read is listed as damaged; an error is
/// only returned when the repository itself can't be.
pub fn list_backups(root: &Path) -> Result<Vec<Listed>, Failure> {
    let root = open_repository(root)?;
    let instances = root.open_dir(INSTANCES)?;
    let mut listed = Vec::new();
    for entry in visible(&instances)? {
        match entry.parse::<InstanceId>().map(|instance| list_instance(&instances, instance)) {
            Ok(Ok(of_instance)) => listed.extend(of_instance),
            Ok(Err(failure)) => listed.push(Listed::Damaged { directory: shown(&entry), failure }),
            Err(_) => listed.push(stranger(shown(&entry), "an instance")),
        }
    }
    listed.sort_by_cached_key(|entry| match entry {
        Listed::Backup(manifest) => (manifest.instance_id.to_string(), manifest.number, String::new()),
        Listed::Damaged { directory, .. } => (directory.clone(), u64::MAX, directory.clone()),
    });
    Ok(listed)
}

/// The manifest of one backup. None of that id: `backup_not_found`; there but damaged: that failure.
pub fn find_backup(root: &Path, backup: BackupId) -> Result<Manifest, Failure> {
    let opened = open_repository(root)?;
    let instances = opened.open_dir(INSTANCES)?;
    for entry in visible(&instances)? {
        let Ok(instance) = entry.parse::<InstanceId>() else { continue };
        let directory = match instances.open_dir(&entry) {
            // A link in the place of some instance's directory hides nothing of the others.
            Err(ShareError::NotWhatItSays { .. }) => continue,
            opened => opened?,
        };
        if directory.stat(backup.to_string())?.is_some() {
            return read_manifest(&directory, instance, backup);
        }
    }
    Err(Failure::new(Code::BackupNotFound, format!("`{}` has no backup `{backup}`", root.display())))
}

/// Reads the manifest of the backup in directory `backup` of an instance's directory, and holds it against the names of both.
pub(crate) fn read_manifest(parent: &Dir, instance: InstanceId, backup: BackupId) -> Result<Manifest, Failure> {
    let directory = parent.open_dir(backup.to_string())?;
    let content =
        directory.read(Manifest::FILE, MANIFEST_BYTES_MAX).map_err(|error: ShareError| match error.is_missing() {
            true => damaged(&directory, "it has no manifest"),
            false => Failure::from(error),
        })?;
    let manifest: Manifest = serde_json::from_slice(&content)
        .map_err(|error| damaged(&directory, "its manifest cannot be read").because(&error))?;
    if manifest.format != Manifest::FORMAT {
        return Err(damaged(&directory, "its manifest is of a format that this version does not read"));
    }
    if manifest.backup_id != backup || manifest.instance_id != instance {
        return Err(damaged(&directory, "its manifest is that of another backup"));
    }
    Ok(manifest)
}

/// The highest number among the published backups of an instance, 0 for none, and what could not be read.
pub(crate) fn highest_number(parent: &Dir, instance: InstanceId) -> Result<(u64, Vec<String>), Failure> {
    let mut highest = 0;
    let mut warnings = Vec::new();
    for entry in visible(parent)? {
        let Ok(backup) = entry.parse::<BackupId>() else { continue };
        match read_manifest(parent, instance, backup) {
            Ok(manifest) => highest = highest.max(manifest.number),
            Err(failure) if failure.code == Code::RepositoryUnsafe => warnings.push(format!("{failure:#}")),
            Err(failure) => return Err(failure),
        }
    }
    Ok((highest, warnings))
}

fn list_instance(instances: &Dir, instance: InstanceId) -> Result<Vec<Listed>, Failure> {
    let parent = instances.open_dir(instance.to_string())?;
    let mut listed = Vec::new();
    for entry in visible(&parent)? {
        let directory = format!("{instance}/{}", shown(&entry));
        listed.push(match entry.parse::<BackupId>() {
            Ok(backup) => match read_manifest(&parent, instance, backup) {
                Ok(manifest) => Listed::Backup(manifest),
                Err(failure) => Listed::Damaged { directory, failure },
            },
            Err(_) => stranger(directory, "a backup"),
        });
    }
    Ok(listed)
}

fn open_repository(path: &Path) -> Result<Dir, Failure> {
    let root = Dir::open_root(path).map_err(|error| match error.is_missing() {
        true => Failure::new(Code::RepositoryNotFound, format!("there is no directory `{}`", path.display())),
        false => Failure::from(error),
    })?;
    read_identity(&root)?;
    Ok(root)
}

/// Names that are not hidden; one that is not UTF-8 is shown with replacement characters and parses as nothing.
fn visible(directory: &Dir) -> Result<Vec<String>, Failure> {
    let entries = directory.list(ENTRIES_MAX)?;
    let names = entries.into_iter().map(|entry| entry.name.to_string_lossy().into_owned());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

fn shown(name: &str) -> String {
    super::error::shown(name.as_ref())
}

fn stranger(directory: String, expected: &str) -> Listed {
    let text = format!("`{directory}` has not the name of {expected}");
    Listed::Damaged { directory, failure: Failure::new(Code::RepositoryUnsafe, text) }
}

fn damaged(directory: &Dir, what: &str) -> Failure {
    Failure::new(Code::RepositoryUnsafe, format!("`{}` is no backup: {what}", directory.path().display()))
}
