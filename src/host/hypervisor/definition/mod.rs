//! Making of the definition that a backup holds that of another instance, which may run beside the first one: pure.
//!
//! Whatever two instances cannot both have is changed, and what cannot be given to a second one is dropped, each with a warning. Whoever can
//! write to a share can write a definition, and libvirt does as root what one says: so what is not known to be harmless is left out, with
//! a warning, and no path stands in what is made but those of the new files and of the host's own firmware.
//!
//! ```text
//!   from the share ──► plain ──► changed ──► only what is kept ──► looked at once more ──► libvirt
//! ```

mod checked;
mod copy;
mod devices;
mod disks;
mod edits;
mod firmware;
mod kept;
mod lines;
mod network;
mod plain;
mod size;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Node;

pub(super) use self::disks::pool_volume;
use self::edits::{Edits, attribute, child, children, document, escaped, is, text_of};
use self::plain::{refused, shown};
use self::told::Warnings;
use crate::failure::Failure;
use crate::model::destination::MacAddresses;
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{ImageFormat, PoolVolume};

/// The namespace of [`Mark`] in a definition's metadata.
const MARK: &str = "urn:longshore:restored:1";

/// The types of domain that QEMU is.
const TYPES: [&str; 2] = ["kvm", "qemu"];

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
}

/// A definition that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// It.
    pub definition: String,
    /// What is others than it was, in a sentence each.
    pub warnings: Vec<String>,
    /// The memory that it asks for, bytes; 0 where it leaves that to libvirt.
    pub memory_bytes: u64,
}

/// What a definition has that no other on the host may have as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// MAC addresses, in lower case.
    pub mac_addresses: BTreeSet<String>,
    /// Files and devices that its disks are on, and that of its firmware's variables.
    pub files: BTreeSet<PathBuf>,
    /// Volumes of storage pools that its disks are on.
    pub pool_volumes: BTreeSet<PoolVolume>,
    /// Who restored it, as [`Mark::by`].
    pub restored_by: Option<String>,
}

/// What is to be changed in a definition.
#[derive(Debug, Default)]
struct Changes {
    edits: Edits,
    warnings: Warnings,
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
    let disks = || devices().flat_map(|devices| children(devices, "disk"));
    let on_disks = disks().flat_map(disks::all_files);
    let nvram = child(domain, "os").and_then(|os| child(os, "nvram")).and_then(firmware::nvram_file);
    Ok(Own {
        mac_addresses: mac_addresses(domain),
        files: on_disks.chain(nvram).collect(),
        pool_volumes: disks().flat_map(disks::all_pool_volumes).collect(),
        restored_by: marks(domain).find_map(|mark| attribute(mark, "by")).map(str::to_owned),
    })
}

fn mac_addresses(domain: Node<'_, '_>) -> BTreeSet<String> {
    let interfaces = children(domain, "devices").flat_map(|devices| children(devices, "interface"));
    let macs = interfaces.filter_map(|interface| child(interface, "mac"));
    macs.filter_map(|mac| attribute(mac, "address")).map(str::to_ascii_lowercase).collect()
}

/// The targets of all disks of a definition, drives and those without content as well.
pub fn disk_targets(definition: &str) -> Result<BTreeSet<String>, Failure> {
    document(definition).map(|document| targets(document.root_element()))
}

fn targets(domain: Node<'_, '_>) -> BTreeSet<String> {
    let disks = children(domain, "devices").flat_map(|devices| children(devices, "disk"));
    disks.filter_map(disks::target).map(str::to_owned).collect()
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

/// A definition that a backup holds, in which nothing is that somebody else's reader would see otherwise.
#[derive(Debug)]
pub struct Saved {
    text: String,
    warnings: Warnings,
    /// The targets of its disks.
    pub disk_targets: BTreeSet<String>,
    /// Its MAC addresses, in lower case.
    pub mac_addresses: BTreeSet<String>,
    /// Where its firmware's variables are.
    pub variables: Variables,
}

impl Saved {
    /// Reads one from a share, which takes seconds where somebody has made it for that: not for a thread that others wait for.
    ///
    /// `definition_refused`: it is of no instance that QEMU could run, or too long, or says something twice. `backup_damaged`: it is none.
    pub fn read(definition: &str) -> Result<Self, Failure> {
        let mut warnings = Warnings::default();
        let text = plain::plain(definition, &mut warnings)?;
        let document = document(&text)?;
        let domain = document.root_element();
        must_be_of_qemu(domain)?;
        let variables = child(domain, "os").map_or(Variables::None, |os| {
            match (firmware::has_variables(os), firmware::has_plain_variables(os)) {
                (false, _) => Variables::None,
                (true, true) => Variables::InFile,
                (true, false) => Variables::Elsewhere,
            }
        });
        let (disk_targets, mac_addresses) = (targets(domain), mac_addresses(domain));
        drop(document);
        Ok(Self { text, warnings, disk_targets, mac_addresses, variables })
    }

    /// Makes the definition of another instance of it.
    ///
    /// `definition_refused`: what would come of it is not what was wanted.
    pub fn another(&self, wanted: &Another<'_>) -> Result<Made, Failure> {
        let document = document(&self.text)?;
        let domain = document.root_element();
        size::threads_must_be_few(domain)?;
        let memory_bytes = size::memory_bytes(domain)?;
        let mut changes = Changes { warnings: self.warnings.clone(), ..Changes::default() };
        identity(domain, wanted, &mut changes);
        children(domain, "os").for_each(|os| firmware::change(os, wanted, &mut changes));
        for devices in children(domain, "devices") {
            for device in devices.children().filter(Node::is_element) {
                let ours =
                    |alias: &Node<'_, '_>| !attribute(*alias, "name").is_some_and(|name| name.starts_with("ua-"));
                changes.edits.remove_all(children(device, "alias").filter(ours));
            }
            disks::change(devices, wanted, &mut changes);
            network::change(devices, wanted, &mut changes);
            lines::change(devices, &mut changes);
            devices::change(devices, &mut changes);
        }
        let Changes { edits, mut warnings, granted } = changes;
        let definition = kept::only_kept(&edits.apply(&self.text)?, &granted, &mut warnings)?;
        checked::must_be_wanted(&definition, wanted)?;
        Ok(Made { definition, warnings: warnings.into_told(), memory_bytes })
    }
}

fn must_be_of_qemu(domain: Node<'_, '_>) -> Result<(), Failure> {
    match attribute(domain, "type") {
        Some(kind) if !TYPES.contains(&kind) => Err(refused(format!("its type is `{}`", shown(kind)))),
        _ => Ok(()),
    }
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
    for entry in entries.filter(|node| is(*node, "entry")) {
        let name = attribute(entry, "name").unwrap_or_default();
        let is_old = !old_id.is_empty() && text_of(entry).eq_ignore_ascii_case(&old_id);
        // libvirt refuses one that is not the domain's.
        let must_be = name == "uuid" && entry.parent().is_some_and(|parent| is(parent, "system"));
        if is_old || must_be {
            edits.replace(entry, format!("<entry name='{}'>{id}</entry>", escaped(name)));
        }
    }
    // Entries that are files of the host.
    for entry in children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "entry")) {
        if attribute(entry, "file").is_some() {
            edits.remove(entry);
            warnings.push("a file of the host (`sysinfo`) was left out of the new instance");
        }
    }
    for seclabel in children(domain, "seclabel") {
        edits.remove(seclabel);
        let given = attribute(seclabel, "type") != Some("dynamic") || child(seclabel, "baselabel").is_some();
        if given {
            warnings
                .push("a security label (`seclabel`) was not taken over: the new instance has one that libvirt gives");
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
