//! Which instances are looked at, and how much there is to do. Blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{BackupFacts, Fault, InstanceFacts, Seen};
use super::read::{Depth, instance, instance_id, printable};
use super::telling::Telling;
use super::{fault, instance_path, is_of_the_server, judge, must_be_there};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::ManifestDisk;
use crate::model::validation::{Finding, FindingCode, InstanceSize, ValidationLevel};
use crate::mover::protocol::WantedValidation;
use crate::mover::share::{Dir, ENTRIES_MAX, INSTANCES, LOCKS};

/// Contents of disks that are known by whose they are, at most.
const ROOTS_MAX: usize = 100_000;

/// What is to be looked at.
#[derive(Debug, Default)]
pub(in crate::mover) struct Selected {
    /// Instances.
    pub instances: Vec<InstanceId>,
    /// What was found on the way.
    pub findings: Vec<Finding>,
}

/// How much that is.
#[derive(Clone, Debug, Default)]
pub(in crate::mover) struct Measured {
    /// What each instance takes.
    pub sizes: Vec<InstanceSize>,
    /// Bytes of images and disks that will be passed.
    pub bytes: u64,
    /// Whose content a content root is.
    pub roots: BTreeMap<String, (InstanceId, BackupId, DiskTarget)>,
}

/// The directory of all instances; none where it can't be opened although the share is there.
pub(in crate::mover) fn instances_of(root: &Dir) -> Result<Result<Dir, Fault>, Failure> {
    match root.open_dir(INSTANCES) {
        Ok(instances) => Ok(Ok(instances)),
        Err(error) => must_be_there(root).map(|()| Err(fault(root, &error))),
    }
}

/// `backup_not_found`: one backup was asked for, and no instance has it.
pub(in crate::mover) fn select(root: &Dir, wanted: &WantedValidation) -> Result<Selected, Failure> {
    let mut selected = Selected { findings: beside(root), ..Selected::default() };
    // That it can't be opened was found out before.
    let Ok(instances) = instances_of(root)? else { return Ok(selected) };
    let (entries, cut_short) = match instances.list_some(ENTRIES_MAX) {
        Ok(listed) => listed,
        Err(error) => {
            must_be_there(root)?;
            let fault = fault(root, &error);
            selected.findings.push(Finding::new(fault.code, INSTANCES, fault.text));
            return Ok(selected);
        }
    };
    if cut_short {
        let text = format!("it holds more than {ENTRIES_MAX} entries; the rest was not looked at");
        selected.findings.push(Finding::new(FindingCode::TooMany, INSTANCES, text));
    }
    for entry in entries {
        match entry.name.to_str().and_then(instance_id) {
            Some(id) => selected.instances.push(id),
            None if entry.name.to_str().is_some_and(is_of_the_server) => {}
            None => {
                let path = format!("{INSTANCES}/{}", printable(&entry.name.to_string_lossy()));
                selected.findings.push(judge::foreign(&path));
            }
        }
    }
    selected.instances.sort();
    if !wanted.instances.is_empty() {
        only_named(root, &instances, wanted, &mut selected)?;
    }
    let Some(backup) = wanted.backup else { return Ok(selected) };
    selected.findings.clear();
    let has = |id: &InstanceId| {
        instances
            .open_dir(id.to_string())
            .is_ok_and(|dir| dir.stat(backup.to_string()).is_ok_and(|stat| stat.is_some()))
    };
    selected.instances.retain(has);
    if selected.instances.is_empty() {
        must_be_there(root)?;
    }
    match selected.instances.is_empty() {
        true => Err(Failure::new(Code::BackupNotFound, format!("the repository has no backup `{backup}`"))),
        false => Ok(selected),
    }
}

/// Leaves those that were asked for by name, and names those of them that are not there.
fn only_named(root: &Dir, instances: &Dir, wanted: &WantedValidation, selected: &mut Selected) -> Result<(), Failure> {
    let named: BTreeSet<InstanceId> = wanted.instances.iter().copied().collect();
    let listed: BTreeSet<InstanceId> = selected.instances.drain(..).collect();
    for id in named {
        let is_there =
            if listed.contains(&id) { Ok(true) } else { instances.stat(id.to_string()).map(|stat| stat.is_some()) };
        match is_there {
            Ok(true) => selected.instances.push(id),
            Ok(false) => {
                let text = "it was asked for, and it is not there";
                let finding = Finding::new(FindingCode::InstanceMissing, &instance_path(id), text);
                selected.findings.push(finding.of_instance(id));
            }
            Err(error) => {
                must_be_there(root)?;
                selected.findings.push(unreadable(id, fault(root, &error)));
            }
        }
    }
    Ok(())
}

/// What lies in the root, and among the leases, besides what belongs there. What can't be listed was told of before.
fn beside(root: &Dir) -> Vec<Finding> {
    let Ok((entries, _)) = root.list_some(ENTRIES_MAX) else { return Vec::new() };
    let ours = |name: &str| {
        matches!(name, "longshore.json" | INSTANCES | LOCKS) || name.starts_with(".probe-") || is_of_the_server(name)
    };
    let names = entries.iter().map(|entry| entry.name.to_string_lossy().into_owned());
    let mut found: Vec<_> = names.filter(|name| !ours(name)).map(|name| judge::foreign(&printable(&name))).collect();
    let locks = root.open_dir(LOCKS).and_then(|locks| locks.list_some(ENTRIES_MAX));
    let leases = locks.map(|(leases, _)| leases).unwrap_or_default();
    let names = leases.iter().map(|entry| entry.name.to_string_lossy().into_owned());
    let strangers = names.filter(|name| instance_id(name).is_none() && !is_of_the_server(name));
    found.extend(strangers.map(|name| judge::foreign(&format!("{LOCKS}/{}", printable(&name)))));
    found
}

/// Measures the instances, and learns whose contents there are.
pub(in crate::mover) fn measure(
    root: &Dir,
    wanted: &WantedValidation,
    selected: &[InstanceId],
    telling: &Telling,
) -> Result<Measured, Failure> {
    let mut measured = Measured::default();
    let Ok(instances) = instances_of(root)? else { return Ok(measured) };
    for id in selected {
        let Ok(facts) = instance(root, &instances, *id, Depth::Names, telling)? else {
            must_be_there(root)?;
            continue;
        };
        if facts.backups.values().any(BackupFacts::is_unreadable) {
            must_be_there(root)?;
        }
        measured.sizes.push(size(&facts));
        for (backup, disk) in disks(&facts, wanted) {
            measured.bytes = measured.bytes.saturating_add(weight(disk, wanted, backup));
            if measured.roots.len() < ROOTS_MAX && is_content_root(&disk.content_root) {
                measured.roots.insert(disk.content_root.clone(), (*id, backup, disk.target.clone()));
            }
        }
    }
    Ok(measured)
}

/// Whatever a manifest may say: one that is none would take room, and no disk has it.
fn is_content_root(text: &str) -> bool {
    text.len() == blake3::OUT_LEN * 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn size(facts: &InstanceFacts) -> InstanceSize {
    let files = facts.backups.values().flat_map(|backup| backup.files.values());
    let bytes = files.map(|file| match file {
        Seen::File { bytes, .. } => *bytes,
        Seen::Other | Seen::Unreadable(_) => 0,
    });
    InstanceSize {
        instance_id: facts.instance,
        backups: u64::try_from(facts.backups.len()).unwrap_or(u64::MAX),
        file_bytes: bytes.fold(0, u64::saturating_add),
    }
}

/// The disks that are examined, each backup's after those of what it is based on.
pub(in crate::mover) fn disks<'f>(
    facts: &'f InstanceFacts,
    wanted: &WantedValidation,
) -> Vec<(BackupId, &'f ManifestDisk)> {
    let line = wanted.backup.map(|backup| facts.line(backup));
    let backups = facts.by_number().into_iter();
    let backups = backups.filter(|id| line.as_ref().is_none_or(|line| line.contains(id)));
    let manifests = backups.filter_map(|id| facts.manifest(id).map(|manifest| (id, manifest)));
    manifests.flat_map(|(id, manifest)| manifest.disks.iter().map(move |disk| (id, disk))).collect()
}

/// Bytes that are passed when a disk is examined.
pub(in crate::mover) fn weight(disk: &ManifestDisk, wanted: &WantedValidation, backup: BackupId) -> u64 {
    if wanted.level < ValidationLevel::Structure {
        return 0;
    }
    let content = if is_read(wanted, backup) { disk.virtual_bytes } else { 0 };
    disk.file_bytes.saturating_add(content)
}

/// Whether every block of a backup's disks is read. What one backup alone is based on is read where that one shows it.
pub(in crate::mover) fn is_read(wanted: &WantedValidation, backup: BackupId) -> bool {
    wanted.level >= ValidationLevel::Content && wanted.backup.is_none_or(|only| only == backup)
}

/// An instance's directory that could not be read.
pub(in crate::mover) fn unreadable(id: InstanceId, fault: Fault) -> Finding {
    Finding::new(fault.code, &instance_path(id), fault.text).of_instance(id)
}
