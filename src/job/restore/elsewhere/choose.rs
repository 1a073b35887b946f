//! What is made of the backup, and under which names, once it was seen: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::{ElsewherePlan, PlannedAttach, PlannedTo};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::definition::{self, Another, Made, Mark, Variables};
use crate::host::hypervisor::{Identity, NewDisk, NewInstance};
use crate::job::restore::mapping::wanted;
use crate::model::destination::MacAddresses;
use crate::model::id::{DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::model::manifest::{Manifest, ManifestDisk};
use crate::mover::protocol::{NewContent, NewFile, NewFiles};

/// The records of a backup that hold its definition: what the instance ran with comes first, since those are the disks that were backed up.
pub const DEFINITIONS: [&str; 2] = ["domain-live.xml", "domain.xml"];
/// The record that holds the firmware's variables.
const NVRAM: &str = "nvram";
/// Longest name of a file, bytes (`NAME_MAX`).
const FILE_NAME_BYTES_MAX: usize = 255;

/// What was decided once the backup was seen. It stands in the records, so that a later worker can take it back or bring it to its
/// end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The backup's place among those of its instance.
    pub number: u64,
    /// The moment that it shows.
    pub taken_at: Timestamp,
    /// What is asked of the mover.
    pub new: NewFiles,
    /// What becomes of the files.
    pub becomes: Becomes,
    /// What is unusual.
    pub warnings: Vec<String>,
}

/// What becomes of new files once they have their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// The volumes of an instance.
    Instance(NewInstance),
    /// A disk of one.
    Disk {
        /// The instance.
        instance_id: InstanceId,
        /// Its name.
        instance_name: InstanceName,
        /// The disk.
        disk: NewDisk,
    },
    /// Nothing more.
    File,
}

/// Files whose being there makes a difference to what is chosen: media in the drives of a new instance, and what its firmware's variables
/// would be in.
pub fn looked_for(plan: &ElsewherePlan, definition: &str) -> Result<Vec<PathBuf>, Failure> {
    let PlannedTo::NewInstance { directory, name, .. } = &plan.to else { return Ok(Vec::new()) };
    let mut paths = definition::drive_files(definition, &plan.roots)?;
    if definition::variables(definition)? != Variables::None {
        paths.push(nvram_path(directory, name));
    }
    Ok(paths)
}

fn nvram_path(directory: &Path, name: &InstanceName) -> PathBuf {
    directory.join(format!("{name}_VARS.fd"))
}

/// What was seen besides the backup's manifest.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// The definition that the backup holds, for a new instance.
    pub definition: &'s str,
    /// Files of [`looked_for`] that are not there.
    pub missing: &'s BTreeSet<PathBuf>,
    /// The instances of the host.
    pub identities: &'s [Identity],
}

/// Decides.
///
/// `backup_not_found`: it is another instance's. `disk_not_found`, `disk_ambiguous`: the disks that the job names are not those of the
/// backup, or not exactly one. `instance_exists`, `volume_exists`: the host has what the job wants to be new.
pub fn choose(
    plan: &ElsewherePlan,
    disks: &[DiskTarget],
    manifest: &Manifest,
    seen: Seen<'_>,
) -> Result<Choice, Failure> {
    if manifest.instance_id != plan.instance_id {
        let text = format!(
            "backup `{}` is of instance `{}` and not of `{}`",
            manifest.backup_id, manifest.instance_id, plan.instance_id
        );
        return Err(Failure::new(Code::BackupNotFound, text));
    }
    let disks = wanted(disks, manifest)?;
    let (files, becomes, warnings) = match &plan.to {
        PlannedTo::NewInstance { .. } => new_instance(plan, &disks, manifest, seen)?,
        PlannedTo::Volume { path, format, attach } => {
            let [disk] = disks[..] else {
                let text =
                    format!("backup `{}` has {} disks, and one volume is made of one", manifest.backup_id, disks.len());
                return Err(Failure::new(Code::DiskAmbiguous, text).caused_by("the job can name it in `disks`"));
            };
            let (becomes, warnings) =
                attach.as_ref().map_or((Becomes::File, Vec::new()), |attach| attached(attach, disk, path, *format));
            (vec![of_disk(plan, disk, path, *format)?], becomes, warnings)
        }
    };
    let choice = Choice {
        number: manifest.number,
        taken_at: manifest.taken_at,
        new: NewFiles { roots: plan.roots.clone(), files },
        becomes,
        warnings,
    };
    must_be_free(&choice, seen.identities)?;
    Ok(choice)
}

/// No instance of the host has what is to be new. What was made by this choice itself is no hindrance.
pub fn must_be_free(choice: &Choice, identities: &[Identity]) -> Result<(), Failure> {
    let new = if let Becomes::Instance(new) = &choice.becomes { Some(new) } else { None };
    let macs = new.map(|new| definition::own(&new.definition)).transpose()?.unwrap_or_default().mac_addresses;
    for other in identities.iter().filter(|other| !new.is_some_and(|new| other.is_that(new))) {
        let exists = |what: String| {
            let text = format!("instance `{}` with the uuid {} has {what}", other.name, other.id);
            Err(Failure::new(Code::InstanceExists, text))
        };
        match new {
            Some(new) if new.id == other.id => return exists("the uuid that the new one was to get".into()),
            Some(new) if new.name == other.name => return exists("the name that the new one was to get".into()),
            _ => {}
        }
        if let Some(mac) = macs.intersection(&other.mac_addresses).next() {
            return exists(format!("the MAC address {mac}, which the new one was to have as well"));
        }
        // Whoever attaches it looks at the disks of that instance itself, where it may be one already.
        let attached = matches!(&choice.becomes, Becomes::Disk { instance_id, .. } if *instance_id == other.id);
        let mut files = choice.new.files.iter().filter(|_| !attached);
        if let Some(file) = files.find(|file| other.files.contains(&file.path)) {
            let text = format!("`{}` is a disk of instance `{}`", file.path.display(), other.name);
            return Err(Failure::new(Code::VolumeExists, text));
        }
    }
    Ok(())
}

/// Who has what a restore may have named already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// What it was to become: the new instance, or the instance that was to get the disk. Of a volume alone, whoever has it.
    Ours,
    /// Another instance, or ours in another shape: in words.
    Another(String),
}

/// Looks who has the files, backing files included. What anybody has is never taken away.
pub fn holder(choice: &Choice, identities: &[Identity]) -> Holder {
    let has = |other: &Identity| choice.new.files.iter().any(|file| other.files.contains(&file.path));
    if let Becomes::Instance(new) = &choice.becomes
        && identities.iter().any(|other| other.is_that(new))
    {
        return Holder::Ours;
    }
    let is_it = |other: &Identity| match &choice.becomes {
        Becomes::Instance(_) => false,
        Becomes::Disk { instance_id, .. } => other.id == *instance_id,
        Becomes::File => true,
    };
    let mut those = identities.iter().filter(|other| has(other));
    // One that is not ours decides.
    match (those.clone().find(|other| !is_it(other)), those.next()) {
        (Some(other), _) => Holder::Another(format!("instance `{}` has a new file of this restore", other.name)),
        (None, Some(_)) => Holder::Ours,
        (None, None) => match &choice.becomes {
            Becomes::Instance(new) if identities.iter().any(|other| other.id == new.id) => {
                let text = format!(
                    "instance `{}` is there, and its definition does not say that it is of this restore",
                    new.id
                );
                Holder::Another(text)
            }
            _ => Holder::Nobody,
        },
    }
}

type Chosen = (Vec<NewFile>, Becomes, Vec<String>);

fn new_instance(
    plan: &ElsewherePlan,
    disks: &[&ManifestDisk],
    manifest: &Manifest,
    seen: Seen<'_>,
) -> Result<Chosen, Failure> {
    let PlannedTo::NewInstance { id, name, mac_addresses, directory, volumes: paths, .. } = &plan.to else {
        return Err(Failure::new(Code::Internal, "an instance was to be made of what is no instance"));
    };
    if let Some(disk) = paths.keys().find(|path| !disks.iter().any(|disk| disk.target == **path)) {
        let text = format!("a path is given for disk `{disk}`, which is none of the disks to be restored");
        return Err(Failure::new(Code::DiskNotFound, text));
    }
    let known = definition::disk_targets(seen.definition)?;
    let (mut files, mut volumes, mut warnings) = (Vec::new(), BTreeMap::new(), Vec::new());
    for disk in disks {
        if !known.contains(disk.target.as_str()) {
            warnings.push(format!("disk `{}` of the backup is not in its definition, and was left out", disk.target));
            continue;
        }
        let format = format_of(disk);
        let own_name = || directory.join(format!("{name}-{}.{}", disk.target, format.as_str()));
        let path = paths.get(&disk.target).cloned().unwrap_or_else(own_name);
        files.push(of_disk(plan, disk, &path, format)?);
        volumes.insert(disk.target.clone(), (path, format));
    }
    if volumes.is_empty() {
        let text = format!("no disk of backup `{}` is in its definition", manifest.backup_id);
        return Err(Failure::new(Code::DiskNotFound, text));
    }
    let variables = definition::variables(seen.definition)?;
    let nvram = (variables != Variables::None).then(|| nvram_path(directory, name));
    let in_backup = manifest.records.iter().any(|record| record.file == NVRAM);
    let nvram_is_restored = variables == Variables::InFile && in_backup;
    if let Some(path) = &nvram {
        if nvram_is_restored {
            files.push(new_file(plan, path, NewContent::Record { file: NVRAM.to_owned() })?);
        } else {
            must_be_nobodys(path, &files, seen)?;
        }
    }
    let restored_by = format!("{}/{}", plan.key, plan.attempt);
    let Made { definition, warnings: more } = definition::another(
        seen.definition,
        &Another {
            id: *id,
            name,
            mark: Mark { by: restored_by.clone(), backup: plan.backup_id },
            mac_addresses: *mac_addresses,
            taken: &taken(*mac_addresses, seen)?,
            volumes: &volumes,
            left_out: &left_out(disks, manifest),
            nvram: nvram.as_deref(),
            nvram_is_restored,
            roots: &plan.roots,
            missing: seen.missing,
        },
    )?;
    warnings.extend(more);
    let new = NewInstance { id: *id, name: name.clone(), definition, restored_by };
    Ok((files, Becomes::Instance(new), warnings))
}

/// libvirt takes what is there for the firmware's variables, whosever they are.
fn must_be_nobodys(path: &Path, files: &[NewFile], seen: Seen<'_>) -> Result<(), Failure> {
    let is_new = files.iter().any(|file| file.path == path);
    let is_anothers = seen.identities.iter().any(|other| other.files.contains(path));
    match seen.missing.contains(path) && !is_new && !is_anothers {
        true => Ok(()),
        false => {
            let text = format!("`{}`, where the new firmware's variables would be, is there already", path.display());
            Err(Failure::new(Code::VolumeExists, text))
        }
    }
}

/// The first instance may come back to this host, or be on another one: a new address is none of its own.
fn taken(mac_addresses: MacAddresses, seen: Seen<'_>) -> Result<BTreeSet<String>, Failure> {
    let mut taken = definition::own(seen.definition)?.mac_addresses;
    if mac_addresses == MacAddresses::New {
        taken.extend(seen.identities.iter().flat_map(|other| other.mac_addresses.iter().cloned()));
    }
    Ok(taken)
}

fn left_out(disks: &[&ManifestDisk], manifest: &Manifest) -> BTreeMap<DiskTarget, String> {
    let skipped = manifest
        .skipped_disks
        .iter()
        .map(|disk| (disk.target.clone(), format!("it is not in the backup ({})", disk.reason)));
    let unwanted = manifest.disks.iter().filter(|disk| !disks.iter().any(|wanted| wanted.target == disk.target));
    skipped.chain(unwanted.map(|disk| (disk.target.clone(), "the job does not want it".to_owned()))).collect()
}

/// As the volume was stored, if it was a file.
fn format_of(disk: &ManifestDisk) -> ImageFormat {
    match &disk.source {
        DiskSource::File { format, .. } => *format,
        DiskSource::Block { .. } | DiskSource::Network { .. } | DiskSource::Other { .. } => ImageFormat::Qcow2,
    }
}

fn attached(attach: &PlannedAttach, disk: &ManifestDisk, path: &Path, format: ImageFormat) -> (Becomes, Vec<String>) {
    let PlannedAttach { instance_id, instance_name, target, bus, serials } = attach;
    let mut warnings = Vec::new();
    let serial = disk.serial.clone().filter(|serial| {
        let is_free = !serials.contains(serial);
        if !is_free {
            warnings.push(format!(
                "disk `{target}` was attached without its serial number `{serial}`, which another disk of instance \
                 `{instance_name}` has"
            ));
        }
        is_free
    });
    let disk = NewDisk { target: target.clone(), bus: *bus, path: path.to_owned(), format, serial };
    (Becomes::Disk { instance_id: *instance_id, instance_name: instance_name.clone(), disk }, warnings)
}

fn of_disk(plan: &ElsewherePlan, disk: &ManifestDisk, path: &Path, format: ImageFormat) -> Result<NewFile, Failure> {
    let content = NewContent::Disk {
        disk: disk.target.clone(),
        virtual_bytes: disk.virtual_bytes,
        content_root: disk.content_root.clone(),
        format,
    };
    new_file(plan, path, content)
}

/// Until it gets its name it is `<file>.longshore-<mover's name>.new`: no other attempt's, and plain to whoever finds it.
fn new_file(plan: &ElsewherePlan, path: &Path, content: NewContent) -> Result<NewFile, Failure> {
    let too_long = || {
        let text = format!("no new file can be made at `{}`: its name is too long", path.display());
        Failure::new(Code::PathNotAllowed, text)
    };
    let mut name = path.file_name().ok_or_else(too_long)?.to_owned();
    name.push(format!(".longshore-{}.new", plan.mover_name));
    match name.len() <= FILE_NAME_BYTES_MAX {
        true => Ok(NewFile {
            content,
            path: path.to_owned(),
            fresh: path.with_file_name(name),
            directory: None,
            made: None,
        }),
        false => Err(too_long()),
    }
}
