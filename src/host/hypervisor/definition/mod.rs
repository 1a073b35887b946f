//! Making of the definition that a backup holds that of another instance, which may run beside the first one: pure.
//!
//! Whatever two instances cannot both have is changed, and what cannot be given to a second one is dropped, each with a warning. Whoever can
//! write to a share can write a definition, and libvirt does as root what one says: so what is not known to be harmless is left out, with
//! a warning, and no path stands in what is made but those of the new files, of the host's own firmware, and of media below the
//! directories that the host allows.

mod devices;
mod disks;
mod edits;
mod firmware;
mod kept;
mod lines;
mod network;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Node;

use self::edits::{Edits, child, children, document, escaped, text_of};
use crate::failure::{Code, Failure};
use crate::model::destination::MacAddresses;
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::ImageFormat;

/// The namespace of [`Mark`] in a definition's metadata.
const MARK: &str = "urn:longshore:restored:1";

/// The types of domain that QEMU is.
const TYPES: [&str; 2] = ["kvm", "qemu"];

/// Most warnings of one definition, and the longest of them, characters: they stand in an event.
const WARNINGS_MAX: usize = 64;
const WARNING_CHARACTERS_MAX: usize = 240;

/// Most media that are looked for.
const MEDIA_MAX: usize = 32;

/// What a definition says of where it comes from, in its metadata: by it what was defined is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Job, run and attempt.
    pub by: String,
    /// The backup.
    pub backup: BackupId,
}

/// What another instance gets.
#[derive(Debug)]
pub struct Another<'c> {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name.
    pub name: &'c InstanceName,
    /// Where it comes from.
    pub mark: Mark,
    /// What becomes of its MAC addresses.
    pub mac_addresses: MacAddresses,
    /// MAC addresses that no new one may be, in lower case.
    pub taken: &'c BTreeSet<String>,
    /// Its volumes.
    pub volumes: &'c BTreeMap<DiskTarget, (PathBuf, ImageFormat)>,
    /// Why disks have none, where that is known.
    pub left_out: &'c BTreeMap<DiskTarget, String>,
    /// The file with its firmware's variables, for one that has some.
    pub nvram: Option<&'c Path>,
    /// They are those of the backup; else the firmware makes new ones.
    pub nvram_is_restored: bool,
    /// Directories below which its media may be.
    pub roots: &'c [PathBuf],
    /// Files of [`drive_files`] that are not there.
    pub missing: &'c BTreeSet<PathBuf>,
}

/// A definition that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// It.
    pub definition: String,
    /// What is others than it was, in a sentence each.
    pub warnings: Vec<String>,
}

/// What a definition has that no other on the host may have as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// MAC addresses, in lower case.
    pub mac_addresses: BTreeSet<String>,
    /// Files and devices that its disks are on, and that of its firmware's variables.
    pub files: BTreeSet<PathBuf>,
    /// Who restored it, as [`Mark::by`].
    pub restored_by: Option<String>,
}

/// What is to be changed in a definition.
#[derive(Debug, Default)]
struct Changes {
    edits: Edits,
    warnings: Vec<String>,
    /// Paths that may stand in it.
    granted: BTreeSet<String>,
}

impl Changes {
    /// Leaves out what a warning names so.
    fn remove(&mut self, node: Node<'_, '_>, what: String) {
        self.edits.remove(node);
        self.warnings.push(format!("{what} was left out of the new instance"));
    }
}

/// What a definition has of its own.
pub fn own(definition: &str) -> Result<Own, Failure> {
    let document = document(definition)?;
    let domain = document.root_element();
    let devices = || children(domain, "devices");
    let mac = |interface: Node<'_, '_>| Some(child(interface, "mac")?.attribute("address")?.to_ascii_lowercase());
    let on_disks = devices().flat_map(|devices| children(devices, "disk")).flat_map(disks::all_files);
    let nvram = child(domain, "os").and_then(|os| child(os, "nvram")).and_then(firmware::nvram_file);
    Ok(Own {
        mac_addresses: devices().flat_map(|devices| children(devices, "interface")).filter_map(mac).collect(),
        files: on_disks.chain(nvram).collect(),
        restored_by: marks(domain).find_map(|mark| mark.attribute("by")).map(str::to_owned),
    })
}

/// Media in the drives that a new instance may have as well, where they are there: images below the directories that the host allows.
pub fn drive_files(definition: &str, roots: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let document = document(definition)?;
    let disks = children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"));
    Ok(disks.filter_map(|disk| disks::medium(disk, roots).ok()).take(MEDIA_MAX).collect())
}

/// Targets of the disks that hold something: those of which a backup may have one.
pub fn disk_targets(definition: &str) -> Result<BTreeSet<String>, Failure> {
    let document = document(definition)?;
    let disks = children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"));
    Ok(disks.filter_map(disks::target).map(str::to_owned).collect())
}

/// What a definition says of its firmware's variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variables {
    /// There are none.
    None,
    /// They are in a plain file.
    InFile,
    /// They are somewhere else: in an image, on another host, or wherever libvirt puts them.
    Elsewhere,
}

/// Where the firmware's variables are.
pub fn variables(definition: &str) -> Result<Variables, Failure> {
    let document = document(definition)?;
    let Some(os) = child(document.root_element(), "os") else { return Ok(Variables::None) };
    Ok(match (firmware::has_variables(os), firmware::has_plain_variables(os)) {
        (false, _) => Variables::None,
        (true, true) => Variables::InFile,
        (true, false) => Variables::Elsewhere,
    })
}

/// Makes the definition of another instance of one that a backup holds.
///
/// `definition_refused`: it is of no instance that QEMU could run.
pub fn another(definition: &str, wanted: &Another<'_>) -> Result<Made, Failure> {
    let document = document(definition)?;
    let domain = document.root_element();
    must_be_of_qemu(domain)?;
    let mut changes = Changes::default();
    identity(domain, wanted, &mut changes);
    children(domain, "os").for_each(|os| firmware::change(os, wanted, &mut changes));
    for devices in children(domain, "devices") {
        for device in devices.children().filter(Node::is_element) {
            let ours = |alias: &Node<'_, '_>| !alias.attribute("name").is_some_and(|name| name.starts_with("ua-"));
            changes.edits.remove_all(children(device, "alias").filter(ours));
        }
        disks::change(devices, wanted, &mut changes);
        network::change(devices, wanted, &mut changes);
        lines::change(devices, &mut changes);
        devices::change(devices, &mut changes);
    }
    let Changes { edits, mut warnings, granted } = changes;
    let definition = kept::only_kept(&edits.apply(definition)?, &granted, &mut warnings)?;
    Ok(Made { definition, warnings: told(warnings) })
}

fn must_be_of_qemu(domain: Node<'_, '_>) -> Result<(), Failure> {
    let refused = |how: String| {
        let text = format!("no new instance can be made of the definition in the backup: {how}");
        Err(Failure::new(Code::DefinitionRefused, text))
    };
    if let Some(namespace) = domain.tag_name().namespace() {
        return refused(format!("it is of the namespace `{}`", shortened(namespace)));
    }
    match domain.attribute("type") {
        Some(kind) if !TYPES.contains(&kind) => refused(format!("its type is `{}`", shortened(kind))),
        _ => Ok(()),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(WARNING_CHARACTERS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Each once, and no more than somebody would read.
fn told(warnings: Vec<String>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let mut told: Vec<_> =
        warnings.iter().map(|text| shortened(text)).filter(|text| known.insert(text.clone())).collect();
    if told.len() > WARNINGS_MAX {
        let more = told.len() - WARNINGS_MAX;
        told.truncate(WARNINGS_MAX);
        told.push(format!("{more} more things in the definition were changed or left out"));
    }
    told
}

fn identity(domain: Node<'_, '_>, wanted: &Another<'_>, changes: &mut Changes) {
    let Changes { edits, warnings, .. } = changes;
    let id = wanted.id.to_string();
    let old_id = child(domain, "uuid").map(text_of).unwrap_or_default().to_owned();
    // As a description of what runs has it.
    edits.unset(domain, &["id"]);
    let name = format!("<name>{}</name>", escaped(wanted.name.as_str()));
    let uuid = format!("<uuid>{id}</uuid>");
    match child(domain, "name") {
        Some(old) => edits.replace(old, name),
        None => edits.insert_into(domain, &name),
    }
    match child(domain, "uuid") {
        Some(old) => edits.replace(old, uuid),
        None => edits.insert_into(domain, &uuid),
    }
    // libvirt draws one: the guest is to notice that it was put back.
    children(domain, "genid").for_each(|genid| edits.replace(genid, "<genid/>"));
    let entries = children(domain, "sysinfo").flat_map(|sysinfo| sysinfo.descendants());
    for entry in entries.filter(|node| node.has_tag_name("entry")) {
        let name = entry.attribute("name").unwrap_or_default();
        let is_old = !old_id.is_empty() && text_of(entry).eq_ignore_ascii_case(&old_id);
        // libvirt refuses one that is not the domain's.
        let must_be = name == "uuid" && entry.parent().is_some_and(|parent| parent.has_tag_name("system"));
        if is_old || must_be {
            edits.replace(entry, format!("<entry name='{}'>{id}</entry>", escaped(name)));
        }
    }
    // Entries that are files of the host.
    for entry in children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "entry")) {
        if entry.has_attribute("file") {
            edits.remove(entry);
            warnings.push("a file of the host (`sysinfo`) was left out of the new instance".into());
        }
    }
    for seclabel in children(domain, "seclabel") {
        edits.remove(seclabel);
        let given = seclabel.attribute("type") != Some("dynamic") || child(seclabel, "baselabel").is_some();
        if given {
            warnings.push(
                "a security label (`seclabel`) was not taken over: the new instance has one that libvirt gives".into(),
            );
        }
    }
    for resource in children(domain, "resource") {
        // libvirt's own for whatever runs.
        if child(resource, "partition").is_some_and(|partition| text_of(partition) == "/machine") {
            edits.remove(resource);
        }
    }
    edits.remove_all(marks(domain));
    let Mark { by, backup } = &wanted.mark;
    let mark = format!("<longshore:restored xmlns:longshore='{MARK}' by='{}' backup='{backup}'/>", escaped(by));
    match child(domain, "metadata") {
        Some(metadata) => edits.insert_into(metadata, &mark),
        None => edits.insert_into(domain, &format!("<metadata>{mark}</metadata>")),
    }
}

fn marks<'a, 'input: 'a>(domain: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    children(domain, "metadata")
        .flat_map(|metadata| metadata.children())
        .filter(|node| node.has_tag_name((MARK, "restored")))
}
