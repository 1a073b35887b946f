//! The first thing that is done with a definition from a share: it is written anew without anything of a namespace of somebody else outside
//! of the metadata. Whatever is looked up or changed after that, by its name, is what libvirt finds by that name.
//!
//! It promises as well that whatever is looked up as one stands there once: of two, one would be looked at and the other obeyed.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::copy::Copy;
use super::edits::document;
use super::told::{Warnings, path_in, shortened};
use crate::failure::{Code, Failure};

/// Longest definition that is taken from a share, bytes. Those of instances with dozens of disks have 30 KiB.
pub(super) const DEFINITION_BYTES_MAX: usize = 256 * 1024;

/// Most declarations of a namespace in one, wherever they stand: whoever reads them compares each with all the others, for each element.
pub(super) const NAMESPACES_MAX: usize = 64;

/// Longest name or value that a refusal shows, characters.
const SHOWN_CHARACTERS_MAX: usize = 64;

/// What a disk says of images that no new instance has. It is not written.
const OF_OLD_IMAGES: &[&str] = &["backingStore", "mirror"];

const OF_A_LINE: &[&str] = &["target", "log"];

/// What stands once in an element of that name.
const ONCE: &[(&str, &[&str])] = &[
    (
        "domain",
        &[
            "name",
            "uuid",
            "genid",
            "metadata",
            "memory",
            "currentMemory",
            "maxMemory",
            "memoryBacking",
            "memtune",
            "vcpu",
            "iothreads",
            "iothreadids",
            "cputune",
            "resource",
            "os",
            "cpu",
            "on_poweroff",
            "on_reboot",
            "on_crash",
            "on_lockfailure",
            "devices",
        ],
    ),
    ("os", &["type", "loader", "nvram", "varstore"]),
    ("nvram", &["source"]),
    ("devices", &["emulator"]),
    ("disk", &["driver", "source", "target", "serial"]),
    ("driver", &["metadata_cache"]),
    ("interface", &["mac", "source", "target", "virtualport"]),
    ("virtualport", &["parameters"]),
    ("serial", OF_A_LINE),
    ("parallel", OF_A_LINE),
    ("console", OF_A_LINE),
    ("channel", OF_A_LINE),
    ("tpm", &["backend"]),
    ("rng", &["backend"]),
    ("vsock", &["cid"]),
    ("memory", &["source", "target"]),
    ("target", &["size", "requested"]),
    ("cpu", &["numa"]),
];

/// Writes a definition anew. `definition_refused`: it is too long, nested too deep, of another namespace, or says something twice or
/// too much. `backup_damaged`: it is none.
pub(super) fn plain(definition: &str, warnings: &mut Warnings) -> Result<String, Failure> {
    if definition.len() > DEFINITION_BYTES_MAX {
        return Err(refused(format!("it has {} bytes, and more than {DEFINITION_BYTES_MAX}", definition.len())));
    }
    let declared = definition.matches("xmlns").count();
    if declared > NAMESPACES_MAX {
        return Err(refused(format!("it says `xmlns` {declared} times, and more than {NAMESPACES_MAX}")));
    }
    let document = document(definition)?;
    let domain = document.root_element();
    if let Some(namespace) = domain.tag_name().namespace() {
        return Err(refused(format!("it is of the namespace `{}`", shown(namespace))));
    }
    let mut plain = Plain { warnings, out: Copy::of(definition) };
    plain.element(domain, "", 0)?;
    plain.out.done()
}

/// A definition of which no new instance is made.
pub(super) fn refused(why: String) -> Failure {
    let text = format!("no new instance can be made of the definition in the backup: {why}");
    Failure::new(Code::DefinitionRefused, text)
}

/// A name or value of it, in a refusal.
pub(super) fn shown(text: &str) -> String {
    shortened(text, SHOWN_CHARACTERS_MAX)
}

struct Plain<'w> {
    warnings: &'w mut Warnings,
    out: Copy,
}

impl Plain<'_> {
    fn element(&mut self, node: Node<'_, '_>, path: &str, depth: usize) -> Result<(), Failure> {
        self.out.may_go_on(node, depth)?;
        must_be_once(node)?;
        let element = node.tag_name().name();
        self.out.open(element);
        for attribute in node.attributes() {
            match attribute.namespace() {
                None => self.out.attribute(attribute.name(), attribute.value()),
                Some(_) => self.warnings.left_out(&path_in(path, &format!("@{}", attribute.name()))),
            }
        }
        self.out.content();
        for child in node.children() {
            let name = child.tag_name().name();
            if child.is_text() {
                self.out.text(child.text().unwrap_or_default());
            } else if !child.is_element() {
                // Comments and instructions say nothing to libvirt.
            } else if child.tag_name().namespace().is_some() {
                self.warnings.left_out(&path_in(path, name));
            } else if element == "disk" && OF_OLD_IMAGES.contains(&name) {
                // Nested as deep as a chain is long.
            } else if depth == 0 && name == "metadata" {
                self.out.others(child, depth + 1)?;
            } else {
                self.element(child, &path_in(path, name), depth + 1)?;
            }
        }
        self.out.close(element);
        Ok(())
    }
}

fn must_be_once(node: Node<'_, '_>) -> Result<(), Failure> {
    let parent = node.tag_name().name();
    let once = ONCE.iter().filter(|(name, _)| *name == parent).flat_map(|(_, once)| once.iter());
    let once: BTreeSet<_> = once.copied().collect();
    let mut seen = BTreeSet::new();
    let named = node.children().filter(|child| child.is_element() && child.tag_name().namespace().is_none());
    for name in named.map(|child| child.tag_name().name()).filter(|name| once.contains(name)) {
        if !seen.insert(name) {
            return Err(refused(format!("`{parent}` has several `{name}`")));
        }
    }
    Ok(())
}
