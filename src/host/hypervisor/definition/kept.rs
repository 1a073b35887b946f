//! What of a definition is given to libvirt at all: a list of what may be, since whoever can write to the share can write definitions,
//! and libvirt does as root what one says.
//!
//! The whole definition is written anew from what was read, so that no other reader can find in it what this one did not see. It promises: no
//! element but those in the list, nothing of a namespace of somebody else outside of the metadata, and no value with a `/` in it, which
//! could be a path, but those that were granted.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::copy::Copy;
use super::edits::document;
use super::told::{Warnings, path_in};
use crate::failure::Failure;

/// What of an element is kept.
enum Kept {
    /// Whatever is in it, as long as no value in it could be a path.
    Plain,
    /// Its name and its text, whatever that is.
    Words,
    /// Whatever is in it, of whatever namespace: nobody but its owner reads it.
    Others,
    /// Its text, if it is one of these.
    OneOf(&'static [&'static str]),
    /// These attributes, and these elements.
    Only(&'static [&'static str], &'static [(&'static str, Kept)]),
}

use Kept::{OneOf, Only, Others, Plain, Words};

const DOMAIN: Kept = Only(
    &["type"],
    &[
        ("name", Words),
        ("uuid", Plain),
        ("genid", Plain),
        ("title", Words),
        ("description", Words),
        ("metadata", Others),
        ("memory", Plain),
        ("maxMemory", Plain),
        ("currentMemory", Plain),
        ("memoryBacking", MEMORY_BACKING),
        ("memtune", Only(&[], &[("hard_limit", Plain), ("soft_limit", Plain), ("swap_hard_limit", Plain)])),
        ("blkiotune", Only(&[], &[("weight", Plain)])),
        ("vcpu", Plain),
        ("vcpus", Plain),
        ("iothreads", Plain),
        ("iothreadids", Plain),
        ("defaultiothread", Plain),
        ("cputune", CPU_TUNE),
        ("numatune", Plain),
        ("throttlegroups", Plain),
        ("keywrap", Plain),
        ("sysinfo", SYSINFO),
        ("os", OS),
        ("features", Plain),
        ("cpu", CPU),
        ("clock", Plain),
        ("on_poweroff", ENDS),
        ("on_reboot", ENDS),
        ("on_crash", ENDS),
        ("pm", Plain),
        ("perf", Plain),
        ("devices", Only(&[], DEVICES)),
    ],
);

/// No dumps, which a guest that crashes again and again could fill the host's disk with.
const ENDS: Kept = OneOf(&["destroy", "restart", "preserve"]);

/// Not locked, and in no file of the host, as which libvirt makes what is shared.
const MEMORY_BACKING: Kept = Only(
    &[],
    &[
        ("hugepages", Only(&[], &[("page", Only(&["size", "unit", "nodeset"], &[]))])),
        ("nosharepages", Plain),
        ("discard", Plain),
    ],
);

/// What others get less of where there is too little. No scheduler: one of real time takes a processor from the host itself.
const CPU_TUNE: Kept = Only(
    &[],
    &[
        ("shares", Plain),
        ("period", Plain),
        ("quota", Plain),
        ("global_period", Plain),
        ("global_quota", Plain),
        ("emulator_period", Plain),
        ("emulator_quota", Plain),
        ("iothread_period", Plain),
        ("iothread_quota", Plain),
        ("vcpupin", Plain),
        ("emulatorpin", Plain),
        ("iothreadpin", Plain),
    ],
);

const CPU: Kept = Only(
    &["mode", "match", "check", "migratable", "deprecated_features"],
    &[
        ("model", Plain),
        ("vendor", Plain),
        ("topology", Plain),
        ("cache", Plain),
        ("maxphysaddr", Plain),
        ("feature", Plain),
        (
            "numa",
            Only(
                &[],
                &[
                    (
                        "cell",
                        Only(&["id", "cpus", "memory", "unit", "discard"], &[("distances", Plain), ("cache", Plain)]),
                    ),
                    ("interconnects", Plain),
                ],
            ),
        ),
    ],
);

const ENTRIES: Kept = Only(&[], &[("entry", Words)]);

const SYSINFO: Kept = Only(
    &["type"],
    &[
        ("bios", ENTRIES),
        ("system", ENTRIES),
        ("baseBoard", ENTRIES),
        ("chassis", ENTRIES),
        ("oemStrings", ENTRIES),
        ("entry", Words),
    ],
);

/// No kernel, no initial file system and no tables: they are files of the host.
const OS: Kept = Only(
    &["firmware"],
    &[
        ("type", Plain),
        ("firmware", Plain),
        ("loader", Plain),
        ("nvram", Plain),
        ("varstore", Plain),
        ("boot", Plain),
        ("bootmenu", Plain),
        ("bios", Plain),
        ("smbios", Plain),
    ],
);

const DEVICES: &[(&str, Kept)] = &[
    ("disk", DISK),
    ("controller", Plain),
    ("interface", INTERFACE),
    ("serial", LINE),
    ("parallel", LINE),
    ("console", LINE),
    ("channel", LINE),
    ("input", Only(&["type", "bus", "model"], &[("driver", Plain), ("alias", Plain), ("address", Plain)])),
    ("graphics", Plain),
    // Without a process of the host that draws.
    (
        "video",
        Only(
            &[],
            &[
                ("driver", Only(&["iommu", "ats", "packed", "page_per_vq"], &[])),
                ("model", Plain),
                ("alias", Plain),
                ("address", Plain),
            ],
        ),
    ),
    ("sound", Plain),
    ("audio", Only(&["id", "type"], &[])),
    ("hub", Plain),
    ("watchdog", Plain),
    ("memballoon", Plain),
    (
        "memory",
        Only(
            &["model", "discard"],
            &[
                ("source", Only(&[], &[("pagesize", Plain), ("nodemask", Plain)])),
                ("target", Plain),
                ("alias", Plain),
                ("address", Plain),
            ],
        ),
    ),
    ("panic", Plain),
    ("iommu", Plain),
    ("vsock", Plain),
    ("nvram", Plain),
    ("tpm", Only(&["model"], &[("backend", TPM_BACKEND), ("alias", Plain), ("address", Plain)])),
    (
        "rng",
        Only(
            &["model"],
            &[
                ("rate", Plain),
                ("backend", Only(&["model"], &[])),
                ("driver", Plain),
                ("alias", Plain),
                ("address", Plain),
            ],
        ),
    ),
];

const TPM_BACKEND: Kept = Only(&["type", "version"], &[("active_pcr_banks", Plain)]);

const DISK: Kept = Only(
    &["type", "device", "model", "snapshot"],
    &[
        ("driver", Plain),
        ("source", Only(&["file"], &[])),
        ("target", Plain),
        ("iotune", Plain),
        ("throttlefilters", Plain),
        ("serial", Plain),
        ("wwn", Plain),
        ("vendor", Plain),
        ("product", Plain),
        ("boot", Plain),
        ("alias", Plain),
        ("address", Plain),
        ("geometry", Plain),
        ("blockio", Plain),
        ("readonly", Plain),
        ("transient", Plain),
    ],
);

const INTERFACE: Kept = Only(
    &["type"],
    &[
        ("mac", Plain),
        ("source", Only(&["bridge", "network", "portgroup", "dev", "mode"], &[])),
        ("model", Plain),
        ("driver", Plain),
        ("boot", Plain),
        ("rom", Plain),
        ("virtualport", Plain),
        ("bandwidth", Plain),
        ("vlan", Plain),
        ("mtu", Plain),
        ("link", Plain),
        ("coalesce", Plain),
        ("filterref", Plain),
        ("tune", Plain),
        ("port", Plain),
        ("ip", Plain),
        ("alias", Plain),
        ("address", Plain),
        ("acpi", Plain),
    ],
);

const LINE: Kept = Only(
    &["type"],
    &[
        ("target", Plain),
        ("source", Only(&["channel"], &[("clipboard", Plain), ("mouse", Plain)])),
        ("alias", Plain),
        ("address", Plain),
    ],
);

impl Kept {
    fn has_attribute(&self, name: &str) -> bool {
        match self {
            Plain | Others => true,
            OneOf(_) => false,
            Words => name == "name",
            Only(attributes, _) => attributes.contains(&name),
        }
    }

    fn child(&self, name: &str) -> Option<&Kept> {
        match self {
            Plain => Some(&Plain),
            Words | Others | OneOf(_) => None,
            Only(_, children) => children.iter().find(|(known, _)| *known == name).map(|(_, kept)| kept),
        }
    }
}

/// Writes a definition anew with nothing but what is kept of it. `granted` are paths that may stand in it.
///
/// `definition_refused`: it is nested too deep, or too long.
pub(super) fn only_kept(
    definition: &str,
    granted: &BTreeSet<String>,
    warnings: &mut Warnings,
) -> Result<String, Failure> {
    let document = document(definition)?;
    let mut filter = Filter { granted, warnings, out: Copy::of(definition) };
    filter.element(document.root_element(), &DOMAIN, "", 0)?;
    filter.out.done()
}

struct Filter<'c> {
    granted: &'c BTreeSet<String>,
    warnings: &'c mut Warnings,
    out: Copy,
}

impl Filter<'_> {
    fn element(&mut self, node: Node<'_, '_>, kept: &Kept, path: &str, depth: usize) -> Result<(), Failure> {
        if matches!(kept, Others) {
            return self.out.others(node, depth);
        }
        self.out.may_go_on(node, depth)?;
        let text = text(node);
        let fits = match kept {
            Words => true,
            OneOf(words) => words.contains(&text.trim()),
            _ => !self.may_be_path(&text),
        };
        if !fits {
            self.warnings.left_out(path);
            return Ok(());
        }
        let name = node.tag_name().name();
        self.out.open(name);
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            // Of an attribute of another namespace libvirt reads the name alone.
            let fits = attribute.namespace().is_none() && kept.has_attribute(name);
            match fits && (matches!(kept, Words) || !self.may_be_path(value)) {
                true => self.out.attribute(name, value),
                false => self.warnings.left_out(&path_in(path, &format!("@{name}"))),
            }
        }
        self.out.content();
        self.out.text(&text);
        for child in node.children().filter(Node::is_element) {
            let name = child.tag_name().name();
            let path = path_in(path, name);
            match kept.child(name).filter(|_| child.tag_name().namespace().is_none()) {
                Some(kept) => self.element(child, kept, &path, depth + 1)?,
                None => self.warnings.left_out(&path),
            }
        }
        self.out.close(name);
        Ok(())
    }

    fn may_be_path(&self, value: &str) -> bool {
        value.contains('/') && !self.granted.contains(value.trim())
    }
}

/// All of an element's own text, whatever stands between; of one with elements in it, none.
fn text(node: Node<'_, '_>) -> String {
    if node.children().any(|child| child.is_element()) {
        return String::new();
    }
    node.children().filter(Node::is_text).filter_map(|child| child.text()).collect()
}
