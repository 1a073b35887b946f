//! The backups on a share as anybody can read them: every directory with a manifest, and what is wrong with the others.

use std::path::Path;

use super::{Dir, ENTRIES_MAX, HIGHEST_NUMBER, INSTANCES, NUMBER_MAX, ShareError, highest_taken, read_identity};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::{CHAIN_IMAGES_MAX, Manifest};

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
        let below = |instance: InstanceId| list_below(&instances.open_dir(instance.to_string())?, instance);
        match entry.parse::<InstanceId>().map(below) {
            Ok(Ok(of_instance)) => listed.extend(of_instance),
            Ok(Err(failure)) => listed.push(Listed::Damaged { directory: shown(&entry), failure }),
            Err(_) => listed.push(stranger(shown(&entry), "an instance")),
        }
    }
    sort(&mut listed);
    Ok(listed)
}

/// The manifest of an instance's latest backup after those of the backups below it, as far as they can be read; and how many of the
/// instance's can't be, or belong to another repository. One at a time: a share may hold more than goes into memory. Blocks.
pub(crate) fn latest_chain(root: &Dir, instance: InstanceId) -> Result<(Vec<Manifest>, u64), Failure> {
    let parent = match root.open_dir(INSTANCES)?.open_dir(instance.to_string()) {
        Err(error) if error.is_missing() => return Ok((Vec::new(), 0)),
        opened => opened?,
    };
    let repository = read_identity(root)?.repository_id;
    let (mut latest, mut unreadable) = (None, 0);
    for entry in visible(&parent)? {
        let Ok(backup) = entry.parse::<BackupId>() else { continue };
        match read_manifest(&parent, instance, backup) {
            Ok(found) if found.repository_id != repository => unreadable += 1,
            Ok(found) if latest.as_ref().is_none_or(|latest: &Manifest| found.number > latest.number) => {
                latest = Some(found);
            }
            Ok(_) => {}
            // One on a bad spot of the storage stops no new backup.
            Err(_) => unreadable += 1,
        }
    }
    let mut chain: Vec<_> = latest.into_iter().collect();
    while let Some(below) = chain.last().and_then(Manifest::parent).filter(|_| chain.len() < CHAIN_IMAGES_MAX) {
        match read_manifest(&parent, instance, below) {
            Ok(found) => chain.push(found),
            Err(_) => break,
        }
    }
    chain.reverse();
    Ok((chain, unreadable))
}

/// The manifest of one backup. None of that id: `backup_not_found`; there but damaged: that failure, unless a good one is
/// there too, as where an instance's directory was copied under another name.
pub fn find_backup(root: &Path, backup: BackupId) -> Result<Manifest, Failure> {
    let opened = open_repository(root)?;
    let instances = opened.open_dir(INSTANCES)?;
    let mut failed = None;
    for entry in visible(&instances)? {
        let Ok(instance) = entry.parse::<InstanceId>() else { continue };
        match find_below(&instances, instance, backup) {
            Ok(Some(manifest)) => return Ok(manifest),
            Ok(None) => {}
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    Err(failed.unwrap_or_else(|| {
        Failure::new(Code::BackupNotFound, format!("`{}` has no backup `{backup}`", root.display()))
    }))
}

/// A backup and what it is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// From the one that stands alone to the one that was asked for; from as far down as they can be read.
    pub backups: Vec<Manifest>,
    /// Why it does not go down to one that stands alone.
    pub broken: Option<Failure>,
}

/// The chain of a backup. None of that id: `backup_not_found`.
pub fn chain_of(root: &Path, backup: BackupId) -> Result<Chain, Failure> {
    let leaf = find_backup(root, backup)?;
    let parent = open_repository(root)?.open_dir(INSTANCES)?.open_dir(leaf.instance_id.to_string())?;
    let (mut backups, mut broken) = (vec![leaf], None);
    while let Some((manifest, below)) = backups.last().and_then(|at| at.parent().map(|below| (at, below))) {
        let named = format!("backup `{}` is based on backup `{below}`", manifest.backup_id);
        let found = read_manifest(&parent, manifest.instance_id, below);
        // Numbers fall, or a manifest that lies could lead in a circle.
        let is_below = |found: &Manifest| found.number < manifest.number;
        match found {
            Ok(found) if is_below(&found) => backups.push(found),
            Ok(_) => {
                broken = Some(Failure::new(Code::BackupDamaged, format!("{named}, which is not an earlier one")));
                break;
            }
            Err(failure) => {
                broken = Some(Failure::new(Code::BackupDamaged, named).because_of(&failure));
                break;
            }
        }
    }
    backups.reverse();
    Ok(Chain { backups, broken })
}

/// The directories of the instances in a repository. What is not one is left out.
pub(crate) fn instances(root: &Dir) -> Result<Vec<(InstanceId, Dir)>, Failure> {
    let instances = root.open_dir(INSTANCES)?;
    let mut found = Vec::new();
    for entry in visible(&instances)? {
        let Ok(instance) = entry.parse::<InstanceId>() else { continue };
        match instances.open_dir(instance.to_string()) {
            Err(ShareError::NotWhatItSays { .. }) => {}
            opened => found.push((instance, opened?)),
        }
    }
    Ok(found)
}

fn find_below(instances: &Dir, instance: InstanceId, backup: BackupId) -> Result<Option<Manifest>, Failure> {
    let directory = match instances.open_dir(instance.to_string()) {
        // There is no backup behind a link in the place of an instance's directory.
        Err(ShareError::NotWhatItSays { .. }) => return Ok(None),
        opened => opened?,
    };
    match directory.stat(backup.to_string())? {
        Some(_) => read_manifest(&directory, instance, backup).map(Some),
        None => Ok(None),
    }
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
    if manifest.number > NUMBER_MAX {
        return Err(damaged(&directory, "its manifest has a number that no backup is given"));
    }
    Ok(manifest)
}

/// The highest number among the backups that an instance has or had, 0 for none, and a warning where some can't be read: an old
/// backup that is damaged, or on a bad spot of the storage, stops no new one.
pub(crate) fn highest_number(parent: &Dir, instance: InstanceId) -> Result<(u64, Option<String>), Failure> {
    let taken = highest_taken(parent)?;
    let (mut highest, mut unreadable, mut first) = (taken.unwrap_or(0), 0, None);
    for entry in visible(parent)? {
        let Ok(backup) = entry.parse::<BackupId>() else { continue };
        match read_manifest(parent, instance, backup) {
            Ok(manifest) => highest = highest.max(manifest.number),
            Err(failure) => {
                unreadable += 1;
                first = first.or(Some(failure));
            }
        }
    }
    let of_backups = first
        .map(|failure| format!("{unreadable} earlier backups of the instance can't be read, one because: {failure:#}"));
    let of_taken = taken.is_none().then(|| {
        format!(
            "`{}` does not say which number the last deleted backup had",
            parent.path().join(HIGHEST_NUMBER).display()
        )
    });
    let warnings: Vec<_> = of_taken.into_iter().chain(of_backups).collect();
    Ok((highest, (!warnings.is_empty()).then(|| warnings.join("; "))))
}

/// By instance and number, what is damaged last of its instance.
fn sort(listed: &mut [Listed]) {
    listed.sort_by_cached_key(|entry| match entry {
        Listed::Backup(manifest) => (manifest.instance_id.to_string(), manifest.number, String::new()),
        Listed::Damaged { directory, .. } => (directory.clone(), u64::MAX, directory.clone()),
    });
}

fn list_below(parent: &Dir, instance: InstanceId) -> Result<Vec<Listed>, Failure> {
    let mut listed = Vec::new();
    for entry in visible(parent)? {
        let directory = format!("{instance}/{}", shown(&entry));
        listed.push(match entry.parse::<BackupId>() {
            Ok(backup) => match read_manifest(parent, instance, backup) {
                Ok(manifest) => Listed::Backup(manifest),
                Err(failure) => Listed::Damaged { directory, failure },
            },
            Err(_) => stranger(directory, "a backup"),
        });
    }
    Ok(listed)
}

/// The repository at a path, if it is one.
pub(crate) fn open_repository(path: &Path) -> Result<Dir, Failure> {
    let root = Dir::open_root(path).map_err(|error| match error.is_missing() {
        true => Failure::new(Code::RepositoryNotFound, format!("there is no directory `{}`", path.display())),
        false => Failure::from(error),
    })?;
    read_identity(&root)?;
    Ok(root)
}

/// Names that are not hidden; one that is not UTF-8 is shown with replacement characters and parses as nothing.
pub(crate) fn visible(directory: &Dir) -> Result<Vec<String>, Failure> {
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
