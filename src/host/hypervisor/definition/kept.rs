//! What of a definition is given to libvirt at all: a list of what may be, since whoever can write to the share can write definitions,
//! and libvirt does as root what one says.
//!
//! The whole definition is written anew from what was read, so that no other reader can find in it what this one did not see. It promises: no
//! element but those in the list, nothing of a namespace of somebody else outside of the metadata, and no value with a `/` in it, which
//! could be a path, but those that were granted.

use std::collections::{BTreeMap, BTreeSet};

use roxmltree::Node;

use super::edits::{document, escaped};
use crate::failure::{Code, Failure};

/// Deepest nesting of elements; libvirt's own definitions have 8.
const DEPTH_MAX: usize = 32;

/// What of an element is kept.
enum Kept {
    /// Whatever is in it, as long as no value in it could be a path.
    Plain,
    /// Its name and its text, whatever that is.
    Words,
    /// Whatever is in it, of whatever namespace: nobody but its owner reads it.
    Others,
    /// These attributes, and these elements.
    Only(&'static [&'static str], &'static [(&'static str, Kept)]),
}

use Kept::{Only, Others, Plain, Words};

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
        ("memoryBacking", Plain),
        ("memtune", Plain),
        ("blkiotune", Only(&[], &[("weight", Plain)])),
        ("vcpu", Plain),
        ("vcpus", Plain),
        ("iothreads", Plain),
        ("iothreadids", Plain),
        ("defaultiothread", Plain),
        ("cputune", Plain),
        ("numatune", Plain),
        ("throttlegroups", Plain),
        ("keywrap", Plain),
        ("sysinfo", SYSINFO),
        ("os", OS),
        ("features", Plain),
        ("cpu", Plain),
        ("clock", Plain),
        ("on_poweroff", Plain),
        ("on_reboot", Plain),
        ("on_crash", Plain),
        ("on_lockfailure", Plain),
        ("pm", Plain),
        ("perf", Plain),
        ("devices", Only(&[], DEVICES)),
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
    ("video", Plain),
    ("sound", Plain),
    ("audio", Only(&["id", "type"], &[])),
    ("hub", Plain),
    ("watchdog", Plain),
    ("memballoon", Plain),
    ("memory", Plain),
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
        ("source", Only(&["file", "startupPolicy"], &[])),
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
    &["type", "trustGuestRxFilters"],
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
            Words => name == "name",
            Only(attributes, _) => attributes.contains(&name),
        }
    }

    fn child(&self, name: &str) -> Option<&Kept> {
        match self {
            Plain => Some(&Plain),
            Words | Others => None,
            Only(_, children) => children.iter().find(|(known, _)| *known == name).map(|(_, kept)| kept),
        }
    }
}

/// Writes a definition anew with nothing but what is kept of it. `granted` are paths that may stand in it.
///
/// `definition_refused`: it is nested too deep.
pub(super) fn only_kept(
    definition: &str,
    granted: &BTreeSet<String>,
    warnings: &mut Vec<String>,
) -> Result<String, Failure> {
    let document = document(definition)?;
    let mut copy = Copy { granted, warnings, out: String::with_capacity(definition.len()) };
    copy.element(document.root_element(), &DOMAIN, "", 0)?;
    Ok(copy.out)
}

struct Copy<'c> {
    granted: &'c BTreeSet<String>,
    warnings: &'c mut Vec<String>,
    out: String,
}

impl Copy<'_> {
    fn element(&mut self, node: Node<'_, '_>, kept: &Kept, path: &str, depth: usize) -> Result<(), Failure> {
        if matches!(kept, Others) {
            return self.others(node, depth);
        }
        must_be_flat(depth)?;
        let text = text(node);
        if !matches!(kept, Words) && self.may_be_path(&text) {
            self.leave_out(path);
            return Ok(());
        }
        let name = node.tag_name().name();
        self.out.push('<');
        self.out.push_str(name);
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            // Of an attribute of another namespace libvirt reads the name alone.
            let fits = attribute.namespace().is_none() && kept.has_attribute(name);
            match fits && (matches!(kept, Words) || !self.may_be_path(value)) {
                true => self.out.push_str(&format!(" {name}='{}'", escaped(value))),
                false => self.leave_out(&format!("{path}/@{name}")),
            }
        }
        self.out.push('>');
        self.out.push_str(&escaped(&text));
        for child in node.children().filter(Node::is_element) {
            let name = child.tag_name().name();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            match kept.child(name).filter(|_| child.tag_name().namespace().is_none()) {
                Some(kept) => self.element(child, kept, &path, depth + 1)?,
                None => self.leave_out(&path),
            }
        }
        self.close(name);
        Ok(())
    }

    fn may_be_path(&self, value: &str) -> bool {
        value.contains('/') && !self.granted.contains(value.trim())
    }

    fn leave_out(&mut self, path: &str) {
        self.warnings
            .push(format!("`{path}` was left out of the new instance: it is not known to be harmless to the host"));
    }

    /// Somebody else's, with the prefixes that it has.
    fn others(&mut self, node: Node<'_, '_>, depth: usize) -> Result<(), Failure> {
        must_be_flat(depth)?;
        let mut prefixes = BTreeMap::new();
        let mut named = |name: &str, namespace: Option<&str>| {
            let Some(uri) = namespace else { return name.to_owned() };
            match node.lookup_prefix(uri).filter(|prefix| !prefix.is_empty()) {
                Some("xml") => format!("xml:{name}"),
                prefix => {
                    let prefix = prefix.unwrap_or("own");
                    prefixes.insert(prefix.to_owned(), uri.to_owned());
                    format!("{prefix}:{name}")
                }
            }
        };
        let name = named(node.tag_name().name(), node.tag_name().namespace());
        let attributes = node.attributes();
        let attributes: String = attributes
            .map(|attribute| {
                format!(" {}='{}'", named(attribute.name(), attribute.namespace()), escaped(attribute.value()))
            })
            .collect();
        self.out.push_str(&format!("<{name}"));
        for (prefix, uri) in prefixes {
            self.out.push_str(&format!(" xmlns:{prefix}='{}'", escaped(&uri)));
        }
        self.out.push_str(&attributes);
        self.out.push('>');
        for child in node.children() {
            match child.is_element() {
                true => self.others(child, depth + 1)?,
                false if child.is_text() => self.out.push_str(&escaped(child.text().unwrap_or_default())),
                false => {}
            }
        }
        self.close(&name);
        Ok(())
    }

    /// Closes the element that was opened last, in short where nothing is in it.
    fn close(&mut self, name: &str) {
        let nothing_in_it = self.out.ends_with('>') && {
            let opened = self.out.rfind('<').and_then(|at| self.out.get(at + 1..));
            opened.is_some_and(|opened| opened.starts_with(name) && !opened.starts_with('/') && !opened.ends_with("/>"))
        };
        if nothing_in_it {
            self.out.pop();
            self.out.push_str("/>");
        } else {
            self.out.push_str(&format!("</{name}>"));
        }
    }
}

/// All of an element's own text, whatever stands between; of one with elements in it, none.
fn text(node: Node<'_, '_>) -> String {
    if node.children().any(|child| child.is_element()) {
        return String::new();
    }
    node.children().filter(Node::is_text).filter_map(|child| child.text()).collect()
}

fn must_be_flat(depth: usize) -> Result<(), Failure> {
    match depth < DEPTH_MAX {
        true => Ok(()),
        false => {
            let text = format!("the definition in the backup is nested deeper than {DEPTH_MAX} elements");
            Err(Failure::new(Code::DefinitionRefused, text))
        }
    }
}
