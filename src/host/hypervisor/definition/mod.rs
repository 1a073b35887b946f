//! Making of the definition that a backup holds that of another instance, which may run beside the first one: pure.
//!
//! Whatever two instances cannot both have is changed, and what cannot be given to a second one is dropped, each with a warning. What
//! is not understood stays as it is. The text is changed in place, so that nothing is lost by being read and written again.

mod disks;
mod edits;
mod lines;
mod network;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Node;

use self::edits::{Edits, child, children, document, escaped, text_of};
use crate::failure::Failure;
use crate::model::destination::MacAddresses;
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::ImageFormat;

/// The namespace of [`Mark`] in a definition's metadata.
const MARK: &str = "urn:longshore:restored:1";

/// Devices that only one instance can have, and how a warning names each.
const ONE_INSTANCES: &[(&str, &str)] = &[
    ("hostdev", "a device of the host that is passed through"),
    ("lease", "a lease on a resource"),
    ("pstore", "a store of crash records, which is not in the backup"),
];

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
    /// The file with its firmware's variables; none where the backup holds none.
    pub nvram: Option<&'c Path>,
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

/// What a definition has of its own.
pub fn own(definition: &str) -> Result<Own, Failure> {
    let document = document(definition)?;
    let domain = document.root_element();
    let devices = || children(domain, "devices");
    let mac = |interface: Node<'_, '_>| Some(child(interface, "mac")?.attribute("address")?.to_ascii_lowercase());
    let on_disks = devices().flat_map(|devices| children(devices, "disk")).flat_map(disks::files);
    let nvram = child(domain, "os").and_then(|os| child(os, "nvram")).and_then(nvram_file);
    Ok(Own {
        mac_addresses: devices().flat_map(|devices| children(devices, "interface")).filter_map(mac).collect(),
        files: on_disks.chain(nvram).collect(),
        restored_by: marks(domain).find_map(|mark| mark.attribute("by")).map(str::to_owned),
    })
}

/// Files and devices in the drives, of which a new instance shows what is there.
pub fn drive_files(definition: &str) -> Result<Vec<PathBuf>, Failure> {
    let document = document(definition)?;
    let disks = children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"));
    Ok(disks.filter(|disk| disk.attribute("device") == Some("cdrom")).flat_map(disks::files).collect())
}

/// Targets of the disks that hold something: those of which a backup may have one.
pub fn disk_targets(definition: &str) -> Result<BTreeSet<String>, Failure> {
    let document = document(definition)?;
    let disks = children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"));
    Ok(disks.filter_map(disks::target).map(str::to_owned).collect())
}

/// The firmware's variables are in a file.
pub fn has_nvram_file(definition: &str) -> Result<bool, Failure> {
    let document = document(definition)?;
    Ok(child(document.root_element(), "os").and_then(|os| child(os, "nvram")).and_then(nvram_file).is_some())
}

/// Makes the definition of another instance of one that a backup holds.
pub fn another(definition: &str, wanted: &Another<'_>) -> Result<Made, Failure> {
    let document = document(definition)?;
    let domain = document.root_element();
    let (mut edits, mut warnings) = (Edits::default(), Vec::new());
    identity(domain, wanted, &mut edits);
    firmware(domain, wanted, &mut edits, &mut warnings);
    for devices in children(domain, "devices") {
        for device in devices.children().filter(Node::is_element) {
            let ours = |alias: &Node<'_, '_>| !alias.attribute("name").is_some_and(|name| name.starts_with("ua-"));
            edits.remove_all(children(device, "alias").filter(ours));
        }
        disks::change(devices, wanted, &mut edits, &mut warnings);
        network::change(devices, wanted, &mut edits, &mut warnings);
        lines::change(devices, &mut edits, &mut warnings);
        others(devices, &mut edits, &mut warnings);
    }
    Ok(Made { definition: edits.apply(definition)?, warnings })
}

fn identity(domain: Node<'_, '_>, wanted: &Another<'_>, edits: &mut Edits) {
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
    for seclabel in children(domain, "seclabel").filter(|label| label.attribute("type") == Some("dynamic")) {
        match child(seclabel, "baselabel") {
            // What libvirt gave to the one that ran.
            Some(_) => edits.remove_all(children(seclabel, "label").chain(children(seclabel, "imagelabel"))),
            None => edits.remove(seclabel),
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

fn nvram_file(nvram: Node<'_, '_>) -> Option<PathBuf> {
    let source = child(nvram, "source").and_then(|source| source.attribute("file"));
    Some(text_of(nvram)).filter(|text| !text.is_empty()).or(source).map(PathBuf::from)
}

fn firmware(domain: Node<'_, '_>, wanted: &Another<'_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    let Some(os) = child(domain, "os") else { return };
    for nvram in children(os, "nvram") {
        let kept = ["template", "templateFormat", "format"];
        let kept = kept.iter().filter_map(|name| Some((name, nvram.attribute(*name)?)));
        let kept: String = kept.map(|(name, value)| format!(" {name}='{}'", escaped(value))).collect();
        match wanted.nvram {
            Some(path) => {
                edits.replace(nvram, format!("<nvram{kept}>{}</nvram>", escaped(&path.display().to_string())));
            }
            None => {
                warnings.push(
                    "the firmware's variables are not in the backup: new ones are made at the first start".into(),
                );
                if kept.is_empty() {
                    edits.remove(nvram);
                } else {
                    edits.replace(nvram, format!("<nvram{kept}/>"));
                }
            }
        }
    }
    for store in children(os, "varstore").filter(|store| store.has_attribute("path")) {
        edits.unset(store, &["path"]);
        warnings.push("the firmware's variables are not in the backup: new ones are made at the first start".into());
    }
}

fn others(devices: Node<'_, '_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    for (name, what) in ONE_INSTANCES {
        for device in children(devices, name) {
            edits.remove(device);
            warnings.push(format!("{what} (`{name}`) was left out of the new instance"));
        }
    }
    for memory in children(devices, "memory") {
        let model = memory.attribute("model").unwrap_or_default();
        if matches!(model, "nvdimm" | "virtio-pmem") {
            edits.remove(memory);
            warnings.push(format!("memory of the model `{model}` was left out: what it holds is not in the backup"));
        }
    }
    if child(devices, "tpm").is_some() {
        warnings
            .push("the new instance has an empty TPM: what the guest has sealed with the old one stays sealed".into());
    }
    for cid in children(devices, "vsock").filter_map(|vsock| child(vsock, "cid")) {
        if cid.attribute("auto") != Some("yes") {
            warnings.push("the new instance gets another address for its host's sockets (`vsock`)".into());
        }
        edits.replace(cid, "<cid auto='yes'/>");
    }
}
