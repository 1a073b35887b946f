//! The disks and drives of another instance.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::edits::{Edits, attribute, child, children, escaped, is};
use super::told::Warnings;
use super::{Another, Changes};
use crate::model::id::DiskTarget;
use crate::model::instance::{ImageFormat, PoolVolume};

/// What a disk says of where its content was, and how it was to be read there.
const OF_THE_OLD_SOURCE: &[&str] = &["source", "backingStore", "mirror", "auth", "encryption", "shareable"];

/// Its target.
pub(super) fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target").and_then(|target| attribute(target, "dev"))
}

/// Every file or device that it is on: its own, and those of what backs it or is made of it.
pub(super) fn all_files<'a, 'input: 'a>(disk: Node<'a, 'input>) -> impl Iterator<Item = PathBuf> {
    let file = |source| attribute(source, "file").or_else(|| attribute(source, "dev")).map(PathBuf::from);
    all_sources(disk).filter_map(file)
}

/// Every volume of a storage pool that it is on, in the same way.
pub(super) fn all_pool_volumes<'a, 'input: 'a>(disk: Node<'a, 'input>) -> impl Iterator<Item = PoolVolume> {
    all_sources(disk).filter_map(pool_volume)
}

fn all_sources<'a, 'input: 'a>(disk: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    disk.descendants().filter(|node| is(*node, "source") || is(*node, "dataStore"))
}

/// The volume of a storage pool that a source names, if it does. What QEMU is to reach past the host's devices (`mode='direct'`) is none.
pub(in crate::host::hypervisor) fn pool_volume(source: Node<'_, '_>) -> Option<PoolVolume> {
    let name = |what| attribute(source, what).filter(|name| !name.is_empty()).map(str::to_owned);
    let direct = attribute(source, "mode") == Some("direct");
    Some(PoolVolume { pool: name("pool")?, volume: name("volume")? }).filter(|_| !direct)
}

pub(super) fn change(devices: Node<'_, '_>, wanted: &Another<'_>, changes: &mut Changes) {
    for disk in children(devices, "disk") {
        let name = target(disk).unwrap_or_default();
        let target = name.parse::<DiskTarget>().ok();
        match target.as_ref().and_then(|target| wanted.volumes.get(target)) {
            Some((path, format)) => {
                changes.granted.insert(path.display().to_string());
                give(disk, name, path, *format, &mut changes.edits, &mut changes.warnings);
            }
            None if matches!(attribute(disk, "device"), Some("cdrom" | "floppy")) => eject(disk, name, changes),
            None => {
                let why = target.as_ref().and_then(|target| wanted.left_out.get(target));
                let why = why.map_or("it is not in the backup", String::as_str);
                changes.edits.remove(disk);
                changes.warnings.push(format!("disk `{name}` was left out of the new instance: {why}"));
            }
        }
    }
}

/// The disk gets that volume.
fn give(disk: Node<'_, '_>, name: &str, path: &Path, format: ImageFormat, edits: &mut Edits, warnings: &mut Warnings) {
    let format = format.as_str();
    edits.set(disk, "type", "file");
    edits.unset(disk, &["sgio", "rawio"]);
    match attribute(disk, "device") {
        None | Some("disk") => {}
        Some(kind) => {
            edits.set(disk, "device", "disk");
            let was = if kind == "lun" { "a SCSI device passed through" } else { "a drive" };
            warnings.push(format!("disk `{name}` was {was}, and is a file now"));
        }
    }
    let source = child(disk, "source");
    if std::iter::once(disk).chain(source).any(|of| child(of, "encryption").is_some()) {
        warnings.push(format!("disk `{name}` was encrypted, and its new volume is not"));
    }
    for old in OF_THE_OLD_SOURCE {
        edits.remove_all(children(disk, old));
    }
    let mut new = format!("<source file='{}'/>", escaped(&path.display().to_string()));
    match child(disk, "driver") {
        Some(driver) => {
            edits.set(driver, "name", "qemu");
            edits.set(driver, "type", format);
            if format == "raw" {
                edits.remove_all(children(driver, "metadata_cache"));
            }
        }
        None => new.insert_str(0, &format!("<driver name='qemu' type='{format}'/>")),
    }
    edits.insert_into(disk, &new);
}

/// The drive stays, with nothing in it: what was there may be another tenant's by now, or the first instance may write to it. What is put in
/// would be read as it is.
fn eject(disk: Node<'_, '_>, name: &str, changes: &mut Changes) {
    let Changes { edits, warnings, .. } = changes;
    if child(disk, "source").is_some() {
        warnings.push(format!("what was in drive `{name}` was taken out: a new instance begins with empty drives"));
    }
    edits.set(disk, "type", "file");
    for old in OF_THE_OLD_SOURCE {
        edits.remove_all(children(disk, old));
    }
    if let Some(driver) = child(disk, "driver") {
        edits.set(driver, "name", "qemu");
        edits.set(driver, "type", "raw");
        edits.remove_all(children(driver, "metadata_cache"));
    }
}
