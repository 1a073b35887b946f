//! Reading an instance's directory, with a bound on everything. Blocks.

use std::collections::BTreeMap;
use std::io::Read;

use nix::sys::stat::{FileStat, SFlag};

use super::facts::{BackupFacts, Fault, Hidden, HiddenKind, InstanceFacts, LeaseFacts, Seen};
use super::telling::Telling;
use super::{fault, is_of_the_server, must_be_there};
use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::model::validation::FindingCode;
use crate::mover::lease;
use crate::mover::share::{
    DELETING_PREFIX, Dir, ENTRIES_MAX, FENCED_PREFIX, HIGHEST_NUMBER, HIGHEST_TEMPORARY, MANIFEST_BYTES_MAX,
    MERGING_PREFIX, NUMBER_MAX, README, REPLACED_PREFIX, STAGING_PREFIX, ShareError,
};

/// Files of one backup: records and two for each disk, with room to spare.
const FILES_MAX: usize = 4096;
/// Manifests of one instance that are held at once, bytes: of thousands of backups, and no more than a host can bear.
const MANIFESTS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Files of one instance's backups, held at once: of tens of thousands of backups.
const FILES_OF_INSTANCE_MAX: usize = 200_000;
/// Disks of one backup: more than any instance has.
const DISKS_MAX: usize = 1024;
/// Longest record that is read: firmware variables have some MiB.
const RECORD_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of a record that are read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;

/// What is read of each backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum Depth {
    /// Its manifest, and the names and lengths of its files.
    Names,
    /// Its records as well.
    Records,
}

/// Reads the directory of an instance in `instances`. An error means that nobody waits for it any more; what can't be read of the share
/// is a fact like another. `Err` within: the directory itself can't be listed.
pub(in crate::mover) fn instance(
    root: &Dir,
    instances: &Dir,
    id: InstanceId,
    depth: Depth,
    telling: &Telling,
) -> Result<Result<InstanceFacts, Fault>, Failure> {
    let listed =
        instances.open_dir(id.to_string()).and_then(|dir| dir.list_some(ENTRIES_MAX).map(|found| (dir, found)));
    let (dir, (entries, cut_short)) = match listed {
        Ok(listed) => listed,
        Err(error) => return Ok(Err(fault(root, &error))),
    };
    let mut facts = InstanceFacts {
        instance: id,
        backups: BTreeMap::new(),
        hidden: Vec::new(),
        foreign: Vec::new(),
        cut_short,
        lease: lease_of(root, id),
    };
    let (mut manifests_left, mut files_left) = (MANIFESTS_BYTES_MAX, FILES_OF_INSTANCE_MAX);
    for entry in entries {
        telling.go_on()?;
        telling.tell(0);
        let name = entry.name.to_str();
        if let Some(backup) = name.and_then(backup_id) {
            if manifests_left == 0 || files_left == 0 {
                facts.cut_short = true;
                continue;
            }
            let (found, manifest_bytes) = self::backup(root, &dir, backup, depth, telling)?;
            manifests_left = manifests_left.saturating_sub(manifest_bytes);
            let files = found.as_ref().map_or(0, |found| found.files.len() + found.foreign.len());
            files_left = files_left.saturating_sub(files);
            facts.backups.extend(found.map(|found| (backup, found)));
        } else if let Some((name, kind)) = name.and_then(|name| hidden(name).map(|kind| (name, kind))) {
            let touched_seconds = dir.stat(name).ok().flatten().map(|stat| stat.st_mtime);
            let hidden = touched_seconds.map(|touched_seconds| Hidden { name: name.to_owned(), kind, touched_seconds });
            facts.hidden.extend(hidden);
        } else if !name
            .is_some_and(|name| [HIGHEST_NUMBER, HIGHEST_TEMPORARY].contains(&name) || is_of_the_server(name))
        {
            facts.foreign.push(printable(&entry.name.to_string_lossy()));
        }
    }
    facts.hidden.sort_by(|one, other| one.name.cmp(&other.name));
    facts.foreign.sort();
    Ok(Ok(facts))
}

/// A name that we would give to a backup.
pub(in crate::mover) fn backup_id(name: &str) -> Option<BackupId> {
    name.parse().ok().filter(|id: &BackupId| id.to_string() == name)
}

/// A name that we would give to an instance's directory.
pub(in crate::mover) fn instance_id(name: &str) -> Option<InstanceId> {
    name.parse().ok().filter(|id: &InstanceId| id.to_string() == name)
}

pub(in crate::mover) fn printable(name: &str) -> String {
    name.chars().flat_map(char::escape_debug).collect()
}

fn hidden(name: &str) -> Option<HiddenKind> {
    let kinds = [
        (STAGING_PREFIX, HiddenKind::Staging),
        (MERGING_PREFIX, HiddenKind::Staging),
        (REPLACED_PREFIX, HiddenKind::Staging),
        (FENCED_PREFIX, HiddenKind::Fenced),
        (DELETING_PREFIX, HiddenKind::Deleting),
    ];
    kinds.into_iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, kind)| kind)
}

/// One that can't be seen counts as taken: what might be somebody's is not called dead.
fn lease_of(root: &Dir, id: InstanceId) -> LeaseFacts {
    match lease::heard_of(root, id) {
        Ok(None) => LeaseFacts::Free,
        Ok(Some(heard_seconds)) => LeaseFacts::Taken { heard_seconds },
        Err(_) => LeaseFacts::Taken { heard_seconds: None },
    }
}

/// None for one that vanished since it was listed; and how many bytes its manifest has.
pub(in crate::mover) fn backup(
    root: &Dir,
    parent: &Dir,
    id: BackupId,
    depth: Depth,
    telling: &Telling,
) -> Result<(Option<BackupFacts>, u64), Failure> {
    let broken = |fault: Fault| BackupFacts {
        manifest: Err(fault),
        digest: None,
        files: BTreeMap::new(),
        foreign: Vec::new(),
        cut_short: false,
        records: BTreeMap::new(),
    };
    let opened = parent.open_dir(id.to_string()).and_then(|dir| dir.list_some(FILES_MAX).map(|found| (dir, found)));
    let (dir, (entries, cut_short)) = match opened {
        Ok(opened) => opened,
        Err(error) if error.is_missing() => return Ok((None, 0)),
        Err(error) => return Ok((Some(broken(fault(root, &error))), 0)),
    };
    let (mut files, mut foreign) = (BTreeMap::new(), Vec::new());
    for entry in entries.iter().filter(|entry| !entry.name.to_str().is_some_and(is_of_the_server)) {
        match (entry.name.to_str(), dir.stat(&entry.name)) {
            (Some(name), Ok(Some(stat))) => drop(files.insert(name.to_owned(), seen(&stat))),
            (Some(_), Ok(None)) => {}
            (Some(name), Err(error)) => drop(files.insert(name.to_owned(), Seen::Unreadable(error.errno()))),
            (None, _) => foreign.push(printable(&entry.name.to_string_lossy())),
        }
    }
    let content = dir.read(Manifest::FILE, MANIFEST_BYTES_MAX);
    let (manifest, digest, bytes) = match content {
        Ok(content) => {
            let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
            telling.read(bytes);
            (parse(&content), Some(blake3::hash(&content)), bytes)
        }
        Err(error) if error.is_missing() => {
            let text = "it has no manifest".to_owned();
            (Err(Fault { code: FindingCode::ManifestMissing, text }), None, 0)
        }
        Err(error @ ShareError::TooMuch { .. }) => {
            let text = fault(root, &error).text;
            (Err(Fault { code: FindingCode::ManifestUnreadable, text }), None, 0)
        }
        Err(error) => (Err(fault(root, &error)), None, 0),
    };
    if cut_short {
        stat_named(&dir, &manifest, &mut files);
    }
    let mut facts = BackupFacts { manifest, digest, files, foreign, cut_short, records: BTreeMap::new() };
    if depth == Depth::Records {
        facts.records = records(root, &dir, &facts, telling)?;
    }
    Ok((Some(facts), bytes))
}

/// Where not all names were listed, those that count are looked up.
fn stat_named(dir: &Dir, manifest: &Result<Manifest, Fault>, files: &mut BTreeMap<String, Seen>) {
    let Ok(manifest) = manifest else { return };
    let of_disks = manifest.disks.iter().flat_map(|disk| [disk.file.as_str(), disk.blocks_file.as_str()]);
    let records = manifest.records.iter().map(|record| record.file.as_str());
    for name in of_disks.chain(records).chain([README, Manifest::FILE]) {
        match dir.stat(name) {
            Ok(Some(stat)) => drop(files.insert(name.to_owned(), seen(&stat))),
            Err(error @ ShareError::Refused { .. }) => {
                files.insert(name.to_owned(), Seen::Unreadable(error.errno()));
            }
            Ok(None) | Err(_) => {}
        }
    }
}

fn parse(content: &[u8]) -> Result<Manifest, Fault> {
    let unreadable = |text: String| Fault { code: FindingCode::ManifestUnreadable, text };
    let manifest: Manifest =
        serde_json::from_slice(content).map_err(|error| unreadable(format!("its manifest cannot be read: {error}")))?;
    if manifest.format != Manifest::FORMAT {
        let text = format!("its manifest is of format {}; this version reads {}", manifest.format, Manifest::FORMAT);
        return Err(unreadable(text));
    }
    if manifest.disks.len() > DISKS_MAX || manifest.records.len() > FILES_MAX {
        let (disks, records) = (manifest.disks.len(), manifest.records.len());
        return Err(unreadable(format!(
            "its manifest names {disks} disks and {records} records, more than any backup has"
        )));
    }
    if manifest.number > NUMBER_MAX {
        return Err(unreadable(format!("its manifest has the number {}, which no backup is given", manifest.number)));
    }
    Ok(manifest)
}

fn seen(stat: &FileStat) -> Seen {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG {
        true => {
            Seen::File { bytes: u64::try_from(stat.st_size).unwrap_or(0), written: (stat.st_mtime, stat.st_mtime_nsec) }
        }
        false => Seen::Other,
    }
}

/// Hashes the records that have the length that the manifest names: of the others that alone is told.
fn records(
    root: &Dir,
    dir: &Dir,
    facts: &BackupFacts,
    telling: &Telling,
) -> Result<BTreeMap<String, Result<String, Fault>>, Failure> {
    let mut hashes = BTreeMap::new();
    let Ok(manifest) = &facts.manifest else { return Ok(hashes) };
    for record in &manifest.records {
        // A manifest may name one file many times.
        if hashes.contains_key(&record.file) {
            continue;
        }
        let is_as_long =
            matches!(facts.files.get(&record.file), Some(Seen::File { bytes, .. }) if *bytes == record.bytes);
        if !is_as_long {
            continue;
        }
        let hash = match record.bytes > RECORD_BYTES_MAX {
            true => {
                let text = format!("it has {} bytes, more than any record", record.bytes);
                Err(Fault { code: FindingCode::RecordChanged, text })
            }
            false => hash(root, dir, &record.file, telling)?,
        };
        hashes.insert(record.file.clone(), hash);
    }
    Ok(hashes)
}

/// BLAKE3 of a file, of [`RECORD_BYTES_MAX`] at most.
fn hash(root: &Dir, dir: &Dir, name: &str, telling: &Telling) -> Result<Result<String, Fault>, Failure> {
    let mut file = match dir.open_file(name, false) {
        Ok(file) => file.take(RECORD_BYTES_MAX),
        Err(error) => return Ok(Err(fault(root, &error))),
    };
    let (mut hasher, mut chunk) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        telling.go_on()?;
        let got = match file.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let text = format!("it cannot be read: {error}");
                return Ok(Err(Fault { code: FindingCode::Unreadable, text }));
            }
            Ok(0) => return Ok(Ok(hasher.finalize().to_hex().to_string())),
            Ok(got) => got,
        };
        hasher.update(chunk.get(..got).unwrap_or_default());
        telling.read(u64::try_from(got).unwrap_or(u64::MAX));
    }
}

/// Whether a backup is on the share as it was read: nobody has deleted, merged or replaced it since. One that can't be read any more counts
/// as unchanged, for as long as the share is there.
pub(in crate::mover) fn is_as_it_was(
    root: &Dir,
    instances: &Dir,
    instance: InstanceId,
    id: BackupId,
    before: &BackupFacts,
    telling: &Telling,
) -> Result<bool, Failure> {
    let parent = match instances.open_dir(instance.to_string()) {
        Ok(parent) => parent,
        Err(error) => {
            must_be_there(root)?;
            return Ok(!error.is_missing());
        }
    };
    let (now, _) = backup(root, &parent, id, Depth::Names, telling)?;
    if now.as_ref().is_some_and(BackupFacts::is_unreadable) {
        must_be_there(root)?;
        return Ok(true);
    }
    Ok(now.is_some_and(|now| now.digest == before.digest && now.files == before.files))
}
