//! The last look at a definition that was made of one from a share, before libvirt gets it. It knows nothing of how it was made: it reads what
//! was written, and holds against what was wanted whatever could reach into the host. By name alone, of whatever namespace, as libvirt does.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::edits::document;
use super::plain::{refused, shown};
use super::{Another, MARK, devices, firmware, lines, network};
use crate::failure::Failure;

/// What a serial line, a console or a channel may be, each of which leads nowhere that a definition names.
const LINES: &[&str] = &["null", "pty", "unix", "spicevmc", "spiceport", "qemu-vdagent"];

/// Elements whose text may hold whatever somebody wrote.
const WORDS: &[&str] = &["name", "title", "description", "entry"];

/// `definition_refused`: it is not what was wanted.
pub(super) fn must_be_wanted(definition: &str, wanted: &Another<'_>) -> Result<(), Failure> {
    let document = document(definition).map_err(|failure| refused(format!("{failure:#}")))?;
    let domain = document.root_element();
    nothing_foreign(domain)?;
    no_other_path(domain, wanted)?;
    identity(domain, wanted)?;
    if let Some(os) = one_or_none(domain, "os")? {
        variables(os, wanted)?;
    }
    let devices = one_or_none(domain, "devices")?;
    let mut given = BTreeSet::new();
    let mut devices = devices.iter().flat_map(|devices| devices.children().filter(Node::is_element));
    devices.try_for_each(|device| match device.tag_name().name() {
        "disk" => disk(device, wanted, &mut given),
        "interface" => interface(device),
        "tpm" => tpm(device),
        "rng" => rng(device),
        "graphics" => graphics(device),
        "serial" | "parallel" | "console" | "channel" => {
            must_be(value(device, "type").is_some_and(|kind| LINES.contains(&kind)), "a line")
        }
        "watchdog" => must_be(value(device, "action") != Some("dump"), "a watchdog"),
        "filesystem" | "hostdev" | "emulator" | "shmem" | "redirdev" | "smartcard" | "lease" | "pstore" | "crypto" => {
            must_be(false, device.tag_name().name())
        }
        _ => Ok(()),
    })?;
    must_be(wanted.volumes.keys().all(|target| given.contains(target.as_str())), "a disk that is not there")
}

/// Names what is wrong.
fn must_be(is_so: bool, what: &str) -> Result<(), Failure> {
    match is_so {
        true => Ok(()),
        false => Err(refused(format!("what became of it is not what was wanted: {}", shown(what)))),
    }
}

fn named<'a, 'input>(node: Node<'a, 'input>, name: &str) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

fn one_or_none<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Result<Option<Node<'a, 'input>>, Failure> {
    let mut found = named(node, name);
    let first = found.next();
    must_be(found.next().is_none(), name).map(|()| first)
}

fn one<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Result<Node<'a, 'input>, Failure> {
    one_or_none(node, name)?.ok_or_else(|| refused(format!("there is no `{name}` in what became of it")))
}

fn value<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

fn text<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default()
}

/// Everything but what is in the metadata.
fn outside_of_metadata<'a, 'input: 'a>(domain: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    let is_metadata = move |node: Node<'_, '_>| {
        node.tag_name().name() == "metadata"
            && node.tag_name().namespace().is_none()
            && node.parent_element() == Some(domain)
    };
    domain
        .descendants()
        .filter(move |node| node.is_element() && !node.ancestors().any(|above| above != *node && is_metadata(above)))
}

fn nothing_foreign(domain: Node<'_, '_>) -> Result<(), Failure> {
    for node in outside_of_metadata(domain) {
        let attributes = node.attributes().all(|attribute| attribute.namespace().is_none());
        must_be(node.tag_name().namespace().is_none() && attributes, node.tag_name().name())?;
    }
    Ok(())
}

/// Where a path could stand, none does but those that were wanted, and those of the host's own firmware.
fn no_other_path(domain: Node<'_, '_>, wanted: &Another<'_>) -> Result<(), Failure> {
    let mut known: BTreeSet<_> = wanted.volumes.values().map(|(path, _)| path.display().to_string()).collect();
    known.extend(wanted.nvram.map(|path| path.display().to_string()));
    let fits = |value: &str| {
        let value = value.trim();
        !value.contains('/') || known.contains(value) || firmware::is_the_hosts(value)
    };
    for node in outside_of_metadata(domain) {
        let name = node.tag_name().name();
        let is_random = name == "backend" && devices::RANDOM.contains(&text(node));
        if WORDS.contains(&name) || is_random {
            continue;
        }
        let texts = node.children().filter(Node::is_text).filter_map(|text| text.text());
        must_be(node.attributes().map(|attribute| attribute.value()).chain(texts).all(fits), name)?;
    }
    Ok(())
}

fn identity(domain: Node<'_, '_>, wanted: &Another<'_>) -> Result<(), Failure> {
    must_be(text(one(domain, "name")?) == wanted.name.as_str(), "its name")?;
    must_be(text(one(domain, "uuid")?) == wanted.id.to_string(), "its uuid")?;
    let metadata = one(domain, "metadata")?;
    let marks: Vec<_> = metadata.descendants().filter(|node| node.tag_name().namespace() == Some(MARK)).collect();
    let [mark] = marks[..] else { return must_be(false, "its mark") };
    let said = (value(mark, "by"), value(mark, "backup").map(str::to_owned));
    must_be(said == (Some(&wanted.mark.by), Some(wanted.mark.backup.to_string())), "its mark")
}

fn variables(os: Node<'_, '_>, wanted: &Another<'_>) -> Result<(), Failure> {
    one_or_none(os, "loader")?;
    match (one_or_none(os, "nvram")?, wanted.nvram) {
        (None, None) => Ok(()),
        (Some(nvram), Some(path)) => {
            // What came from the share is read as it is; what is made anew is of the host's own template.
            let is_made_in = |name| {
                value(nvram, name).is_none_or(|format| !wanted.nvram_is_restored && firmware::FORMATS.contains(&format))
            };
            let is_raw = matches!(value(nvram, "format"), None | Some("raw"));
            let is_plain = (is_raw || is_made_in("format")) && is_made_in("templateFormat");
            let is_plain = is_plain && value(nvram, "type").is_none();
            let is_alone = nvram.children().all(|child| !child.is_element());
            must_be(text(nvram) == path.display().to_string() && is_plain && is_alone, "its firmware's variables")
        }
        _ => must_be(false, "its firmware's variables"),
    }
}

/// Each target is given once.
fn disk(disk: Node<'_, '_>, wanted: &Another<'_>, given: &mut BTreeSet<String>) -> Result<(), Failure> {
    let target = value(one(disk, "target")?, "dev").unwrap_or_default().to_owned();
    let (driver, source) = (one_or_none(disk, "driver")?, one_or_none(disk, "source")?);
    let is_file = value(disk, "type") == Some("file");
    let bare = |name| value(disk, name).is_none();
    let only = is_file && bare("rawio") && bare("sgio") && given.insert(target.clone());
    let others = ["backingStore", "mirror", "auth", "encryption", "shareable"];
    must_be(only && others.iter().all(|name| named(disk, name).next().is_none()), "a disk")?;
    let volume = target.parse().ok().and_then(|target| wanted.volumes.get(&target));
    let Some((path, format)) = volume else {
        let is_empty = source.is_none() && matches!(value(disk, "device"), Some("cdrom" | "floppy"));
        let is_raw = driver.is_none_or(|driver| matches!(value(driver, "type"), None | Some("raw")));
        return must_be(is_empty && is_raw, "a drive");
    };
    let Some((driver, source)) = driver.zip(source) else { return must_be(false, "a disk without a volume") };
    let read_as = (value(driver, "name"), value(driver, "type"));
    must_be(read_as == (Some("qemu"), Some(format.as_str())), "the format of a disk")?;
    let is_it = value(source, "file") == Some(&path.display().to_string()) && source.attributes().len() == 1;
    let is_alone = source.children().all(|child| !child.is_element());
    must_be(is_it && is_alone && matches!(value(disk, "device"), None | Some("disk")), "the file of a disk")
}

fn interface(interface: Node<'_, '_>) -> Result<(), Failure> {
    let is_shared = value(interface, "type").is_some_and(|kind| network::SHARED.contains(&kind));
    let source = one_or_none(interface, "source")?;
    let alone = source.is_some_and(|source| value(source, "mode") == Some("passthrough"));
    let others = ["script", "downscript", "backend", "target"];
    let others = others.iter().any(|name| named(interface, name).next().is_some());
    must_be(is_shared && !alone && !others, "an interface")
}

fn graphics(graphics: Node<'_, '_>) -> Result<(), Failure> {
    let is_here = |node, name| value(node, name).is_none_or(lines::is_loopback);
    let mut listens = named(graphics, "listen");
    let are_here = listens.all(|listen| is_here(listen, "address") && value(listen, "type") != Some("network"));
    let is_known = matches!(value(graphics, "type"), Some("vnc" | "spice"));
    must_be(is_known && is_here(graphics, "listen") && are_here, "graphics")
}

fn tpm(tpm: Node<'_, '_>) -> Result<(), Failure> {
    let backend = one(tpm, "backend")?;
    must_be(value(backend, "type") == Some("emulator") && named(backend, "source").next().is_none(), "a TPM")
}

fn rng(rng: Node<'_, '_>) -> Result<(), Failure> {
    let backend = one(rng, "backend")?;
    let fits = match value(backend, "model") {
        Some("builtin") => true,
        Some("random") => text(backend).is_empty() || devices::RANDOM.contains(&text(backend)),
        _ => false,
    };
    must_be(fits, "a source of random numbers")
}
