//! What the facts of one instance mean. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{BackupFacts, Hidden, HiddenKind, InstanceFacts, LeaseFacts, Seen};
use super::{backup_path, instance_path, links};
use crate::model::id::{BackupId, DiskTarget, InstanceId, RepositoryId};
use crate::model::manifest::Manifest;
use crate::model::pin::Pin;
use crate::model::validation::{Finding, FindingCode};
use crate::mover::share::README;

/// A holder of a lease of whom nothing was heard for so long is a dead one: it gives up before a minute has passed, and whoever watches
/// it waits for two. The rest is for clocks.
const HEARD_SECONDS_MAX: i64 = 600;
/// Findings of one backup's files: more than any backup has files.
const FINDINGS_OF_BACKUP_MAX: usize = 1000;

/// All that is wrong with an instance's backups as far as names, lengths, manifests and records go.
pub(in crate::mover) fn judge(repository: RepositoryId, facts: &InstanceFacts, now_seconds: i64) -> Vec<Finding> {
    let mut found = around(facts, now_seconds);
    let mut lengths = Vec::new();
    for (id, backup) in &facts.backups {
        found.extend(few(of_backup(repository, facts.instance, *id, backup, &mut lengths)));
    }
    found.extend(lengths_that_differ(facts.instance, &lengths));
    found.extend(repeated_numbers(facts));
    found.extend(links::judge(facts));
    found
}

/// A manifest may name any number of files that are not there.
fn few(mut found: Vec<Finding>) -> Vec<Finding> {
    if found.len() > FINDINGS_OF_BACKUP_MAX {
        let more = found.len() - FINDINGS_OF_BACKUP_MAX;
        found.truncate(FINDINGS_OF_BACKUP_MAX);
        if let Some(last) = found.last_mut() {
            last.text = format!("{}; {more} more such things are in this backup", last.text);
        }
    }
    found
}

/// The directory itself, and what is no backup.
fn around(facts: &InstanceFacts, now_seconds: i64) -> Vec<Finding> {
    let path = instance_path(facts.instance);
    let mut found = Vec::new();
    if facts.cut_short {
        let text = "it holds more than any instance's directory does; the rest of it was not looked at";
        found.push(Finding::new(FindingCode::TooMany, &path, text));
    }
    found.extend(facts.hidden.iter().map(|hidden| left_over(hidden, facts.lease, &path, now_seconds)));
    let strangers = facts.foreign.iter();
    found.extend(strangers.map(|name| foreign(&format!("{path}/{name}"))));
    found.into_iter().map(|finding| finding.of_instance(facts.instance)).collect()
}

/// Something that is none of ours.
pub(in crate::mover) fn foreign(path: &str) -> Finding {
    Finding::new(FindingCode::ForeignFile, path, "nothing of Longshore's has such a name")
}

fn left_over(hidden: &Hidden, lease: LeaseFacts, path: &str, now_seconds: i64) -> Finding {
    let path = format!("{path}/{}", hidden.name);
    let age = age(now_seconds.saturating_sub(hidden.touched_seconds));
    let (code, text) = match (hidden.kind, lease) {
        (HiddenKind::Fenced, _) => (FindingCode::FencedLeftOver, format!("it was touched last {age} ago")),
        (_, lease) if is_at_work(lease, now_seconds) => {
            let text = format!("it was touched last {age} ago, and the lease of its instance is held");
            (FindingCode::StagingInUse, text)
        }
        (HiddenKind::Staging, _) => {
            let text = format!("it was touched last {age} ago, and nobody holds the lease of its instance any more");
            (FindingCode::StagingLeftOver, text)
        }
        (HiddenKind::Deleting, _) => (FindingCode::DeletingLeftOver, format!("it was touched last {age} ago")),
    };
    Finding::new(code, &path, text)
}

fn is_at_work(lease: LeaseFacts, now_seconds: i64) -> bool {
    match lease {
        LeaseFacts::Free => false,
        LeaseFacts::Taken { heard_seconds: None } => true,
        LeaseFacts::Taken { heard_seconds: Some(heard) } => now_seconds.saturating_sub(heard) <= HEARD_SECONDS_MAX,
    }
}

/// For people.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A file that has not the length that its manifest names.
struct Length<'f> {
    backup: BackupId,
    file: &'f str,
    disk: Option<&'f DiskTarget>,
    wanted: u64,
    found: u64,
}

fn of_backup<'f>(
    repository: RepositoryId,
    instance: InstanceId,
    id: BackupId,
    facts: &'f BackupFacts,
    lengths: &mut Vec<Length<'f>>,
) -> Vec<Finding> {
    let path = backup_path(instance, id);
    let of = |code, path: &str, text: String| Finding::new(code, path, text).of_instance(instance).of_backup(id);
    let mut found = Vec::new();
    if facts.cut_short {
        found.push(of(FindingCode::TooMany, &path, "it holds more files than any backup does".to_owned()));
    }
    let manifest = match &facts.manifest {
        Ok(manifest) => manifest,
        Err(fault) => {
            let file = format!("{path}/{}", Manifest::FILE);
            found.push(of(fault.code, if facts.digest.is_some() { &file } else { &path }, fault.text.clone()));
            return found;
        }
    };
    let file = format!("{path}/{}", Manifest::FILE);
    if manifest.repository_id != repository {
        let text = format!("it belongs to repository `{}`, and this one is `{repository}`", manifest.repository_id);
        found.push(of(FindingCode::ManifestForeign, &file, text));
    }
    if (manifest.instance_id, manifest.backup_id) != (instance, id) {
        let text = format!("it belongs to backup `{}` of instance `{}`", manifest.backup_id, manifest.instance_id);
        found.push(of(FindingCode::ManifestMisplaced, &file, text));
    }
    for Named { file, disk, bytes } in named(manifest) {
        let at = format!("{path}/{}", super::read::printable(file));
        let fault = match facts.files.get(file) {
            None => Some((FindingCode::FileMissing, "its manifest names it, and it is not there".to_owned())),
            Some(Seen::Other) => Some((FindingCode::NotWhatItSays, "it is no regular file".to_owned())),
            Some(Seen::Unreadable(errno)) => {
                let why = errno.map_or_else(String::new, |errno| format!(": {errno}"));
                Some((FindingCode::Unreadable, format!("it cannot be looked at{why}")))
            }
            Some(Seen::File { bytes: found, .. }) => {
                if let Some(wanted) = bytes.filter(|wanted| wanted != found) {
                    lengths.push(Length { backup: id, file, disk, wanted, found: *found });
                }
                None
            }
        };
        found.extend(fault.map(|(code, text)| with_disk(of(code, &at, text), disk)));
    }
    for record in &manifest.records {
        let at = format!("{path}/{}", super::read::printable(&record.file));
        match facts.records.get(&record.file) {
            Some(Ok(hash)) if !hash.eq_ignore_ascii_case(&record.blake3) => {
                let text = format!("it has the BLAKE3 {hash}, and its manifest says {}", record.blake3);
                found.push(of(FindingCode::RecordChanged, &at, text));
            }
            Some(Err(fault)) => found.push(of(fault.code, &at, fault.text.clone())),
            Some(Ok(_)) | None => {}
        }
    }
    if !facts.files.contains_key(README) {
        let text = "the instructions for a restore without Longshore are missing".to_owned();
        found.push(of(FindingCode::ReadmeMissing, &format!("{path}/{README}"), text));
    }
    let beside = [Manifest::FILE, README, Pin::FILE];
    let ours: BTreeSet<&str> = named(manifest).map(|named| named.file).chain(beside).collect();
    let strangers = facts.files.keys().filter(|name| !ours.contains(name.as_str()));
    let strangers = strangers.map(|name| super::read::printable(name)).chain(facts.foreign.iter().cloned());
    found.extend(strangers.map(|name| foreign(&format!("{path}/{name}")).of_instance(instance).of_backup(id)));
    found
}

/// A file that a manifest names.
struct Named<'m> {
    file: &'m str,
    disk: Option<&'m DiskTarget>,
    bytes: Option<u64>,
}

fn named(manifest: &Manifest) -> impl Iterator<Item = Named<'_>> {
    let disks = manifest.disks.iter().flat_map(|disk| {
        let target = Some(&disk.target);
        [
            Named { file: &disk.file, disk: target, bytes: Some(disk.file_bytes) },
            Named { file: &disk.blocks_file, disk: target, bytes: None },
        ]
    });
    let record = |bytes: u64| Some(bytes);
    let records = manifest.records.iter();
    disks.chain(records.map(move |file| Named { file: &file.file, disk: None, bytes: record(file.bytes) }))
}

fn with_disk(finding: Finding, disk: Option<&DiskTarget>) -> Finding {
    match disk {
        Some(disk) => finding.of_disk(disk),
        None => finding,
    }
}

/// Two files of an instance that have each other's length were exchanged, whatever else happened to them.
fn lengths_that_differ(instance: InstanceId, lengths: &[Length<'_>]) -> Vec<Finding> {
    let by_lengths: BTreeMap<(u64, u64), &Length<'_>> =
        lengths.iter().map(|length| ((length.wanted, length.found), length)).collect();
    let told = lengths.iter().map(|length| {
        let path = format!("{}/{}", backup_path(instance, length.backup), super::read::printable(length.file));
        let (wanted, found) = (length.wanted, length.found);
        let finding = match by_lengths.get(&(found, wanted)) {
            Some(other) => {
                let other = format!("{}/{}", other.backup, super::read::printable(other.file));
                let text = format!("it has {found} bytes, which is the length of `{other}`, and that has {wanted}");
                Finding::new(FindingCode::FilesExchanged, &path, text)
            }
            None => {
                let text = format!("it has {found} bytes, and its manifest says {wanted}");
                Finding::new(FindingCode::FileSizeDiffers, &path, text)
            }
        };
        with_disk(finding.of_instance(instance).of_backup(length.backup), length.disk)
    });
    told.collect()
}

fn repeated_numbers(facts: &InstanceFacts) -> Vec<Finding> {
    let mut first: BTreeMap<u64, BackupId> = BTreeMap::new();
    let mut found = Vec::new();
    for id in facts.by_number() {
        let Some(manifest) = facts.manifest(id) else { continue };
        if let Some(other) = first.get(&manifest.number) {
            let path = format!("{}/{}", backup_path(facts.instance, id), Manifest::FILE);
            let text = format!("it has the number {}, as backup `{other}` has", manifest.number);
            let finding = Finding::new(FindingCode::NumberRepeated, &path, text);
            found.push(finding.of_instance(facts.instance).of_backup(id));
        } else {
            first.insert(manifest.number, id);
        }
    }
    found
}
