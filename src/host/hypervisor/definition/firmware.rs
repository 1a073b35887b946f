//! The firmware of another instance: the host's own, with variables of the new instance's own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::edits::{attribute, child, children, escaped, text_of};
use super::{Another, Changes};
use crate::model::destination::path_fault;

/// Where a host has its firmware: everything there is root's.
const FIRMWARE: &str = "/usr/share/";

/// What variables that are made anew may be in, and where a definition says so.
pub(super) const FORMATS: [&str; 2] = ["raw", "qcow2"];
const FORMAT_ATTRIBUTES: [&str; 2] = ["templateFormat", "format"];

/// The file with its variables, as the definition has it.
pub(super) fn nvram_file(nvram: Node<'_, '_>) -> Option<PathBuf> {
    let source = child(nvram, "source").and_then(|source| attribute(source, "file"));
    Some(text_of(nvram)).filter(|text| !text.is_empty()).or(source).map(PathBuf::from)
}

/// Its variables are in a file, and that is no image: nobody could say what else is in that.
pub(super) fn has_plain_variables(os: Node<'_, '_>) -> bool {
    let nvram =
        child(os, "nvram").filter(|nvram| !matches!(attribute(*nvram, "format"), Some(format) if format != "raw"));
    nvram.and_then(nvram_file).is_some()
}

/// It has variables, wherever, but for a store of which libvirt says itself where it is: that takes the place of `nvram`.
pub(super) fn has_variables(os: Node<'_, '_>) -> bool {
    let loader = child(os, "loader");
    let is_flash = loader.is_some_and(|loader| attribute(loader, "type") == Some("pflash"));
    let is_stateless = loader.is_some_and(|loader| attribute(loader, "stateless") == Some("yes"));
    let has_flash = !is_stateless && (is_flash || attribute(os, "firmware") == Some("efi"));
    child(os, "varstore").is_none() && (child(os, "nvram").is_some() || has_flash)
}

pub(super) fn is_the_hosts(path: &str) -> bool {
    path.starts_with(FIRMWARE) && path_fault(Path::new(path)).is_none()
}

pub(super) fn change(os: Node<'_, '_>, wanted: &Another<'_>, changes: &mut Changes) {
    children(os, "loader").for_each(|loader| change_loader(os, loader, changes));
    let Changes { edits, warnings, granted } = changes;
    for store in children(os, "varstore") {
        edits.unset(store, &["path"]);
        match attribute(store, "template").filter(|template| is_the_hosts(template)) {
            Some(template) => drop(granted.insert(template.to_owned())),
            None => edits.unset(store, &["template"]),
        }
        warnings.push("the firmware's variables are not in the backup: new ones are made at the first start");
    }
    let Some(path) = wanted.nvram else { return edits.remove_all(children(os, "nvram")) };
    let path = path.display().to_string();
    granted.insert(path.clone());
    if !wanted.nvram_is_restored {
        warnings.push("the firmware's variables are not in the backup: new ones are made at the first start");
    }
    let nvram = child(os, "nvram");
    let kept = nvram.map_or(String::new(), |nvram| kept_of_nvram(nvram, wanted.nvram_is_restored, granted));
    let new = format!("<nvram{kept}>{}</nvram>", escaped(&path));
    match nvram {
        Some(nvram) => {
            edits.replace(nvram, new);
            edits.remove_all(children(os, "nvram").skip(1));
        }
        None => edits.insert_into(os, &new),
    }
}

/// The attributes that it keeps.
fn kept_of_nvram(nvram: Node<'_, '_>, is_restored: bool, granted: &mut BTreeSet<String>) -> String {
    let mut kept = String::new();
    let template = attribute(nvram, "template");
    let is_the_hosts = template.is_none_or(is_the_hosts);
    if let Some(template) = template.filter(|_| is_the_hosts) {
        granted.insert(template.to_owned());
        kept.push_str(&format!(" template='{}'", escaped(template)));
    }
    // Only where whoever wrote it knew the attributes: an older libvirt does not take them, and has no other format.
    let format = |name| attribute(nvram, name).filter(|format| FORMATS.contains(format));
    if is_the_hosts && !is_restored {
        // What libvirt makes of its template is in the format that goes with it, and nothing of the share is read in that.
        for (name, format) in FORMAT_ATTRIBUTES.iter().filter_map(|name| format(name).map(|format| (name, format))) {
            kept.push_str(&format!(" {name}='{format}'"));
        }
    } else if attribute(nvram, "format").is_some() {
        kept.push_str(" format='raw'");
    }
    kept
}

fn change_loader(os: Node<'_, '_>, loader: Node<'_, '_>, changes: &mut Changes) {
    let Changes { edits, warnings, granted } = changes;
    let path = text_of(loader);
    if path.is_empty() {
        return;
    }
    if is_the_hosts(path) {
        // QEMU could else write to what all instances begin with.
        edits.set(loader, "readonly", "yes");
        granted.insert(path.to_owned());
        return;
    }
    edits.remove(loader);
    warnings.push(format!("the firmware `{path}` is none below `{FIRMWARE}`: the new instance has the host's own"));
    if attribute(loader, "type") == Some("pflash") && attribute(os, "firmware").is_none() {
        edits.set(os, "firmware", "efi");
    }
}
