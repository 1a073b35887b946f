//! The firmware of another instance: the host's own, with variables of the new instance's own.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::edits::{attribute, child, children, escaped, text_of};
use super::{Another, Changes};
use crate::model::destination::path_fault;

/// Where a host has its firmware: everything there is root's.
const FIRMWARE: &str = "/usr/share/";

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

/// It has variables, wherever.
pub(super) fn has_variables(os: Node<'_, '_>) -> bool {
    let loader = child(os, "loader");
    let is_flash = loader.is_some_and(|loader| attribute(loader, "type") == Some("pflash"));
    let is_stateless = loader.is_some_and(|loader| attribute(loader, "stateless") == Some("yes"));
    child(os, "nvram").is_some() || (!is_stateless && (is_flash || attribute(os, "firmware") == Some("efi")))
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
    let mut kept = String::new();
    let nvram = child(os, "nvram");
    if let Some(template) = nvram.and_then(|nvram| attribute(nvram, "template")).filter(|path| is_the_hosts(path)) {
        granted.insert(template.to_owned());
        kept.push_str(&format!(" template='{}'", escaped(template)));
    }
    // Only where whoever wrote it knew the attribute: an older libvirt does not take it, and has no other format.
    if nvram.is_some_and(|nvram| attribute(nvram, "format").is_some()) {
        kept.push_str(" format='raw'");
    }
    let new = format!("<nvram{kept}>{}</nvram>", escaped(&path));
    match nvram {
        Some(nvram) => {
            edits.replace(nvram, new);
            edits.remove_all(children(os, "nvram").skip(1));
        }
        None => edits.insert_into(os, &new),
    }
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
