//! What is made of the backup, and under which names, once it was seen: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::{ElsewherePlan, PlannedAttach, PlannedTo};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::definition::{self, Another, Made, Mark, Saved, Variables};
use crate::host::hypervisor::{Identity, NewDisk, NewInstance};
use crate::job::restore::mapping::wanted;
use crate::model::destination::MacAddresses;
use crate::model::id::{DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::model::manifest::{Manifest, ManifestDisk};
use crate::mover::protocol::{NewContent, NewFile, NewFiles};

/// The records of a backup that hold its definition: what the instance ran with comes first, since those are the disks that were backed up.
const DEFINITIONS: [&str; 2] = [LIVE_DEFINITION, "domain.xml"];
/// The record that there is only where the instance ran with others than it was defined with.
const LIVE_DEFINITION: &str = "domain-live.xml";
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

impl Choice {
    /// Paths that are nobody else's.
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.new.files.iter().map(|file| &file.path).chain(&self.new.vacant)
    }
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

/// The record of a backup that holds the definition of which a new instance is made. `backup_damaged`: there is none.
pub fn definition_record(manifest: &Manifest) -> Result<&'static str, Failure> {
    let has = |name: &&&str| manifest.records.iter().any(|record| record.file == **name);
    DEFINITIONS
        .iter()
        .find(has)
        .copied()
        .ok_or_else(|| Failure::new(Code::BackupDamaged, format!("backup `{}` has no definition", manifest.backup_id)))
}

/// Reads that record, which takes seconds where somebody has made it for that.
///
/// `definition_refused`: it cannot be trusted. `backup_damaged`: it is no definition.
pub fn read_definition(content: Vec<u8>) -> Result<Saved, Failure> {
    let text = String::from_utf8(content).map_err(|error| {
        Failure::new(Code::BackupDamaged, "the definition in the backup is no text").because(&error)
    })?;
    Saved::read(&text)
}

fn nvram_path(directory: &Path, name: &InstanceName) -> PathBuf {
    directory.join(format!("{name}_VARS.fd"))
}

/// What was seen besides the backup's manifest.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// The definition that the backup holds, for a new instance.
    pub definition: Option<&'s Saved>,
    /// The instances of the host.
    pub identities: &'s [Identity],
    /// The memory of the host, bytes.
    pub memory_bytes: u64,
}

/// Decides.
///
/// `backup_not_found`: it is another instance's. `disk_not_found`, `disk_ambiguous`: the disks that the job names are not those of the
/// backup, or not exactly one. `instance_exists`, `volume_exists`: the host has what the job wants to be new. `definition_refused`: the
/// host has less memory than it wants, or it cannot be trusted.
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
    let Chosen { files, vacant, becomes, warnings } = match &plan.to {
        PlannedTo::NewInstance { .. } => new_instance(plan, &disks, manifest, seen)?,
        PlannedTo::Volume { path, format, attach } => {
            let [disk] = disks[..] else {
                let text =
                    format!("backup `{}` has {} disks, and one volume is made of one", manifest.backup_id, disks.len());
                return Err(
                    Failure::new(Code::DiskAmbiguous, text).caused_by("the job can name it in `disks` (`--disk`)")
                );
            };
            let (becomes, warnings) =
                attach.as_ref().map_or((Becomes::File, Vec::new()), |attach| attached(attach, disk, path, *format));
            Chosen { files: vec![of_disk(plan, disk, path, *format)?], vacant: Vec::new(), becomes, warnings }
        }
    };
    let choice = Choice {
        number: manifest.number,
        taken_at: manifest.taken_at,
        new: NewFiles { roots: plan.roots.clone(), files, vacant },
        becomes,
        warnings,
    };
    must_be_free(&choice, seen.identities)?;
    Ok(choice)
}

/// No instance of the host has what is to be new, before any of it has its name.
pub fn must_be_free(choice: &Choice, identities: &[Identity]) -> Result<(), Failure> {
    let new = if let Becomes::Instance(new) = &choice.becomes { Some(new) } else { None };
    let macs = new.map(|new| definition::own(&new.definition)).transpose()?.unwrap_or_default().mac_addresses;
    for other in identities {
        let exists = |what: String| {
            let text = format!("instance `{}` with the uuid {} has {what}", other.name, other.id);
            Err(Failure::new(Code::InstanceExists, text))
        };
        match new {
            Some(new) if new.id == other.id => return exists("the uuid that the new one was to get".into()),
            Some(new) if other.name == new.name.as_str() => {
                return exists("the name that the new one was to get".into());
            }
            _ => {}
        }
        if let Some(mac) = macs.intersection(&other.mac_addresses).next() {
            return exists(format!("the MAC address {mac}, which the new one was to have as well"));
        }
        if let Some(path) = choice.paths().find(|path| other.files.contains(*path)) {
            let text = format!("`{}` is a file of instance `{}`", path.display(), other.name);
            return Err(Failure::new(Code::VolumeExists, text));
        }
    }
    Ok(())
}

/// Who has what a restore may have named already, on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody that is seen here.
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

struct Chosen {
    files: Vec<NewFile>,
    /// Where libvirt is to make a file.
    vacant: Vec<PathBuf>,
    becomes: Becomes,
    warnings: Vec<String>,
}

fn new_instance(
    plan: &ElsewherePlan,
    disks: &[&ManifestDisk],
    manifest: &Manifest,
    seen: Seen<'_>,
) -> Result<Chosen, Failure> {
    let (PlannedTo::NewInstance { id, name, mac_addresses, directory, volumes: paths, .. }, Some(saved)) =
        (&plan.to, seen.definition)
    else {
        return Err(Failure::new(Code::Internal, "an instance was to be made of what is no instance"));
    };
    if let Some(disk) = paths.keys().find(|path| !disks.iter().any(|disk| disk.target == **path)) {
        let text = format!("a path is given for disk `{disk}`, which is none of the disks to be restored");
        return Err(Failure::new(Code::DiskNotFound, text));
    }
    let (mut files, mut volumes, mut warnings) = (Vec::new(), BTreeMap::new(), Vec::new());
    if definition_record(manifest)? == LIVE_DEFINITION {
        let text = "the new instance is as the first one ran at the backup, and not as it was defined: what was added while it ran stays";
        warnings.push(text.to_owned());
    }
    for disk in disks {
        if !saved.disk_targets.contains(disk.target.as_str()) {
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
    let variables = saved.variables;
    let nvram = (variables != Variables::None).then(|| nvram_path(directory, name));
    let in_backup = manifest.records.iter().any(|record| record.file == NVRAM);
    let nvram_is_restored = variables == Variables::InFile && in_backup;
    let mut vacant = Vec::new();
    match &nvram {
        Some(path) if nvram_is_restored => {
            files.push(new_file(plan, path, NewContent::Record { file: NVRAM.to_owned() })?);
        }
        // libvirt takes what is there for the firmware's variables, whosever they are.
        Some(path) => vacant.push(path.clone()),
        None => {}
    }
    let restored_by = format!("{}/{}", plan.key, plan.attempt);
    let Made { definition, warnings: more, memory_bytes } = saved.another(&Another {
        id: *id,
        name,
        mark: Mark { by: restored_by.clone(), backup: plan.backup_id },
        mac_addresses: *mac_addresses,
        taken: &taken(*mac_addresses, saved, seen.identities),
        volumes: &volumes,
        left_out: &left_out(disks, manifest),
        nvram: nvram.as_deref(),
        nvram_is_restored,
    })?;
    if memory_bytes > seen.memory_bytes {
        let text = format!(
            "the definition in the backup wants {memory_bytes} bytes of memory, and the host has {}",
            seen.memory_bytes
        );
        return Err(Failure::new(Code::DefinitionRefused, text));
    }
    warnings.extend(more);
    let new = NewInstance { id: *id, name: name.clone(), definition, restored_by };
    Ok(Chosen { files, vacant, becomes: Becomes::Instance(new), warnings })
}

/// The first instance may come back to this host, or be on another one: a new address is none of its own.
fn taken(mac_addresses: MacAddresses, saved: &Saved, identities: &[Identity]) -> BTreeSet<String> {
    let mut taken = saved.mac_addresses.clone();
    if mac_addresses == MacAddresses::New {
        taken.extend(identities.iter().flat_map(|other| other.mac_addresses.iter().cloned()));
    }
    taken
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
