//! From libvirt's XML to our nouns. Pure; whatever a definition holds, the answer is an instance or a failure.
//!
//! Other people's tools write these definitions, so nothing is assumed but what libvirt's own schema enforces, and texts
//! that become names or paths of ours are checked by the types they become.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use roxmltree::{Document, Node, ParsingOptions};

use super::super::DomainJob;
use super::super::definition::pool_volume;
use super::access;
use super::pools::{Place, Pools};
use crate::failure::{Code, Failure};
use crate::model::id::{DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{Disk, DiskDevice, DiskSource, ImageFormat, Instance, PowerState};

/// Longest description that is looked at, bytes; libvirt's own limit for one string over its wire is 4 MiB.
const XML_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most elements and texts in a description; a domain with 64 disks has about 3,000.
const XML_NODES_MAX: u32 = 200_000;

/// Name by which libvirt itself finds the guest agent's channel.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// An instance from the description it runs with (`live`, the same as `definition` when it is shut off), its inactive
/// definition, and what no description says of it. Whether it is transient none says either.
pub(super) fn instance(
    live: &str,
    definition: String,
    state: PowerState,
    saved_memory: bool,
    pools: &dyn Pools,
) -> Result<Instance, Failure> {
    let document = document(live, "domain")?;
    let domain = document.root_element();
    let id = child_text(domain, "uuid").parse::<InstanceId>();
    let id = id.map_err(|error| odd("the domain's uuid").because(&error))?;
    let name = child_text(domain, "name").parse::<InstanceName>();
    let name = name.map_err(|error| odd("the domain's name").because(&error))?;
    let devices = child(domain, "devices");
    let pinned = pinned_chains(&definition)?;
    let all = devices.iter().flat_map(|devices| children(*devices, "disk"));
    let mut disks = all.map(|found| disk(found, pools)).collect::<Result<Vec<_>, _>>()?;
    disks.iter_mut().for_each(|disk| disk.pinned_chain = pinned.contains(disk.target.as_str()));
    let channels = || devices.iter().flat_map(|devices| children(*devices, "channel")).filter_map(agent_target);
    let agent_configured = channels().next().is_some();
    let agent_connected = channels().any(|target| attribute(target, "state") == Some("connected"));
    let nvram = child(domain, "os").and_then(|os| child(os, "nvram"));
    let unrecorded = unrecorded(nvram, devices, saved_memory);
    let nvram = nvram.and_then(nvram_path);
    let runs_with_others = state != PowerState::ShutOff && disks_of(&definition, pools)? != sources(&disks);
    let live_definition = runs_with_others.then(|| live.to_owned());
    Ok(Instance {
        id,
        name,
        state,
        saved_memory,
        transient: false,
        disks,
        agent_configured,
        agent_connected,
        definition,
        live_definition,
        nvram,
        unrecorded,
    })
}

/// Each target that a restore has to find in the definition, with its source. What is in a drive says nothing about that.
fn sources(disks: &[Disk]) -> BTreeMap<DiskTarget, Option<DiskSource>> {
    let kept = disks.iter().filter(|disk| matches!(disk.device, DiskDevice::Disk | DiskDevice::Lun));
    kept.map(|disk| (disk.target.clone(), disk.source.clone())).collect()
}

fn disks_of(definition: &str, pools: &dyn Pools) -> Result<BTreeMap<DiskTarget, Option<DiskSource>>, Failure> {
    Ok(sources(&disks(definition, pools)?))
}

/// The disks of a definition.
pub(super) fn disks(definition: &str, pools: &dyn Pools) -> Result<Vec<Disk>, Failure> {
    let document = document(definition, "domain")?;
    let devices = child(document.root_element(), "devices");
    devices.iter().flat_map(|devices| children(*devices, "disk")).map(|found| disk(found, pools)).collect()
}

/// State that the guest may count on and that no backup holds.
fn unrecorded(nvram: Option<Node<'_, '_>>, devices: Option<Node<'_, '_>>, saved_memory: bool) -> Vec<String> {
    let elsewhere = nvram.and_then(|nvram| attribute(nvram, "type")).filter(|kind| *kind != "file");
    let nvram = elsewhere
        .map(|kind| format!("the firmware's variables are on a source of type `{kind}`, and not in the backup"));
    let tpm = devices.and_then(|devices| child(devices, "tpm")).map(|_| {
        "the state of the TPM is not in the backup: what the guest has sealed with it, such as the key of a disk, stays sealed \
         after a restore"
            .to_owned()
    });
    let memory = saved_memory.then(|| {
        "its saved memory is not in the backup: the disks are those of a guest that was cut off, without what it had yet to write"
            .to_owned()
    });
    nvram.into_iter().chain(tpm).chain(memory).collect()
}

/// Targets of the disks of which the definition itself says what backs them or where their data is: libvirt writes so after
/// an external snapshot. What it found out by opening the files is in the description of a running domain only.
fn pinned_chains(definition: &str) -> Result<BTreeSet<String>, Failure> {
    let document = document(definition, "domain")?;
    let devices = child(document.root_element(), "devices");
    let disks = devices.iter().flat_map(|devices| children(*devices, "disk"));
    let pinned = disks.filter(|disk| {
        let data = child(*disk, "source").and_then(|source| child(source, "dataStore"));
        // The end of a chain is an element without a type.
        child(*disk, "backingStore").into_iter().chain(data).any(|store| attribute(store, "type").is_some())
    });
    Ok(pinned.filter_map(|disk| attribute(child(disk, "target")?, "dev")).map(str::to_owned).collect())
}

/// Targets of the disks that consist of files alone, backing files included.
pub(super) fn file_chains(live: &str, pools: &dyn Pools) -> Result<BTreeSet<String>, Failure> {
    let document = document(live, "domain")?;
    let devices = child(document.root_element(), "devices");
    let disks = devices.iter().flat_map(|devices| children(*devices, "disk"));
    let mut of_files = BTreeSet::new();
    for disk in disks {
        if let (true, Some(target)) = (is_of_files(disk, pools)?, child(disk, "target")) {
            of_files.extend(attribute(target, "dev").map(str::to_owned));
        }
    }
    Ok(of_files)
}

fn is_of_files(disk: Node<'_, '_>, pools: &dyn Pools) -> Result<bool, Failure> {
    let mut image = Some(disk);
    while let Some(node) = image {
        // The end of a chain is an element without a type.
        let is_end = node.has_tag_name("backingStore") && attribute(node, "type").is_none();
        let is_file = match attribute(node, "type") {
            Some("volume") => matches!(place(child(node, "source"), pools)?, Some(Place::File(_))),
            kind => kind == Some("file"),
        };
        if !is_end && !is_file {
            return Ok(false);
        }
        image = child(node, "backingStore");
    }
    Ok(true)
}

/// Where the volume is that a source names, if it names one.
fn place(source: Option<Node<'_, '_>>, pools: &dyn Pools) -> Result<Option<Place>, Failure> {
    source.and_then(pool_volume).map_or(Ok(None), |volume| pools.place(&volume))
}

/// Disk targets of a domain in the order of its description, whatever they are.
pub(super) fn targets(live: &str) -> Result<Vec<String>, Failure> {
    let document = document(live, "domain")?;
    let devices = child(document.root_element(), "devices");
    let disks = devices.iter().flat_map(|devices| children(*devices, "disk"));
    Ok(disks.filter_map(|disk| attribute(child(disk, "target")?, "dev")).map(str::to_owned).collect())
}

/// What kind of backup job a description tells of.
pub(super) fn backup_job(xml: &str) -> Result<DomainJob, Failure> {
    let document = document(xml, "domainbackup")?;
    let backup = document.root_element();
    if attribute(backup, "mode") == Some("pull") {
        // A server on TCP has no socket: nobody's job, as far as we are concerned.
        let socket = child(backup, "server").and_then(|server| attribute(server, "socket"));
        return Ok(socket.map_or(DomainJob::Other, |socket| DomainJob::Pull { socket: PathBuf::from(socket) }));
    }
    let disks = child(backup, "disks");
    let images = disks.iter().flat_map(|disks| children(*disks, "disk")).filter_map(|disk| {
        let target = child(disk, "target")?;
        attribute(target, "file").or_else(|| attribute(target, "dev")).map(PathBuf::from)
    });
    Ok(DomainJob::Push { images: images.collect() })
}

pub(super) fn document<'a>(xml: &'a str, root: &str) -> Result<Document<'a>, Failure> {
    if xml.len() > XML_BYTES_MAX {
        return Err(odd(format!("a description of {} bytes", xml.len())));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: XML_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options)
        .map_err(|error| odd(format!("the `{root}` description")).because(&error))?;
    if document.root_element().has_tag_name(root) {
        Ok(document)
    } else {
        Err(odd(format!("a description that is not of a `{root}`")))
    }
}

pub(super) fn odd(what: impl std::fmt::Display) -> Failure {
    Failure::new(Code::HypervisorFailed, format!("cannot read {what} from libvirt"))
}

fn disk(node: Node<'_, '_>, pools: &dyn Pools) -> Result<Disk, Failure> {
    let target = child(node, "target");
    let name = target.and_then(|target| attribute(target, "dev")).unwrap_or_default();
    let target_name = name.parse::<DiskTarget>().map_err(|error| {
        Failure::new(Code::DiskUnsupported, "the domain has a disk whose target cannot become a file name")
            .because(&error)
    })?;
    let device = match attribute(node, "device") {
        Some("cdrom") => DiskDevice::Cdrom,
        Some("floppy") => DiskDevice::Floppy,
        Some("lun") => DiskDevice::Lun,
        _ => DiskDevice::Disk,
    };
    let serial = child_text(node, "serial");
    Ok(Disk {
        target: target_name,
        serial: (!serial.is_empty()).then_some(serial),
        device,
        bus: target.and_then(|target| attribute(target, "bus")).map(str::to_owned),
        read_only: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        pinned_chain: false,
        data_elsewhere: child(node, "source")
            .and_then(|source| child(source, "dataStore"))
            .is_some_and(|store| attribute(store, "type").is_some()),
        may_be_missing: child(node, "source")
            .and_then(|source| attribute(source, "startupPolicy"))
            .is_some_and(|policy| policy != "mandatory"),
        encrypted: std::iter::once(node).chain(child(node, "source")).any(|of| child(of, "encryption").is_some()),
        source: match child(node, "source") {
            Some(source) => disk_source(node, source, pools)?,
            None => None,
        },
        pool_volume: child(node, "source").and_then(pool_volume),
        virtual_bytes: None,
        allocated_bytes: None,
    })
}

fn disk_source(disk: Node<'_, '_>, source: Node<'_, '_>, pools: &dyn Pools) -> Result<Option<DiskSource>, Failure> {
    let kind = attribute(disk, "type").unwrap_or("file");
    let format = child(disk, "driver").and_then(|driver| attribute(driver, "type")).unwrap_or("raw");
    let stored = match format {
        "qcow2" => Some(ImageFormat::Qcow2),
        "raw" => Some(ImageFormat::Raw),
        _ => None,
    };
    let path = |name| attribute(source, name).map(PathBuf::from);
    Ok(match (kind, stored) {
        ("file", Some(format)) => path("file").map(|path| DiskSource::File { path, format }),
        ("block", Some(format)) => path("dev").map(|path| DiskSource::Block { path, format }),
        ("volume", Some(format)) => Some(match place(Some(source), pools)? {
            Some(Place::File(path)) => DiskSource::File { path, format },
            Some(Place::Device(path)) => DiskSource::Block { path, format },
            None => DiskSource::Other { kind: kind.to_owned() },
        }),
        ("network", Some(format)) => Some(DiskSource::Network {
            protocol: attribute(source, "protocol").unwrap_or_default().to_owned(),
            name: attribute(source, "name").unwrap_or_default().to_owned(),
            format,
            access: Box::new(access::of(disk, source)),
        }),
        ("file" | "block" | "volume" | "network", None) => {
            Some(DiskSource::Other { kind: format!("{kind} in format {format}") })
        }
        _ => Some(DiskSource::Other { kind: kind.to_owned() }),
    })
}

fn agent_target<'a, 'input>(channel: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    let is_agents = |target: &Node<'_, '_>| {
        attribute(*target, "type") == Some("virtio") && attribute(*target, "name") == Some(AGENT_CHANNEL)
    };
    child(channel, "target").filter(is_agents)
}

fn nvram_path(nvram: Node<'_, '_>) -> Option<PathBuf> {
    let text = nvram.text().map(str::trim).filter(|text| !text.is_empty());
    text.or_else(|| attribute(child(nvram, "source")?, "file")).map(PathBuf::from)
}

pub(super) fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

pub(super) fn child_text(node: Node<'_, '_>, name: &'static str) -> String {
    child(node, name).and_then(|child| child.text()).unwrap_or_default().trim().to_owned()
}

pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attribute(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
