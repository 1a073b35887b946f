//! The disks and drives of another instance.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::Another;
use super::edits::{Edits, child, children, escaped};
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;

/// What a disk says of where its content was, and how it was to be read there.
const OF_THE_OLD_SOURCE: &[&str] = &["source", "backingStore", "mirror", "auth", "encryption", "shareable"];

/// Its target.
pub(super) fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target")?.attribute("dev")
}

/// The file or device that it is on.
pub(super) fn files(disk: Node<'_, '_>) -> Option<PathBuf> {
    let source = child(disk, "source")?;
    source.attribute("file").or_else(|| source.attribute("dev")).map(PathBuf::from)
}

pub(super) fn change(devices: Node<'_, '_>, wanted: &Another<'_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    for disk in children(devices, "disk") {
        let name = target(disk).unwrap_or_default();
        let target = name.parse::<DiskTarget>().ok();
        match target.as_ref().and_then(|target| wanted.volumes.get(target)) {
            Some((path, format)) => give(disk, name, path, *format, edits, warnings),
            None => match disk.attribute("device") {
                Some("cdrom") => keep_if_there(disk, name, wanted, edits, warnings),
                // It can be written to, and by one instance only.
                Some("floppy") => eject(disk, name, "the first instance may write to it", edits, warnings),
                _ => {
                    let why = target.as_ref().and_then(|target| wanted.left_out.get(target));
                    let why = why.map_or("it is not in the backup", String::as_str);
                    edits.remove(disk);
                    warnings.push(format!("disk `{name}` was left out of the new instance: {why}"));
                }
            },
        }
    }
}

/// The disk gets that volume.
fn give(
    disk: Node<'_, '_>,
    name: &str,
    path: &Path,
    format: ImageFormat,
    edits: &mut Edits,
    warnings: &mut Vec<String>,
) {
    let format = format.as_str();
    edits.set(disk, "type", "file");
    if disk.attribute("device") == Some("lun") {
        edits.set(disk, "device", "disk");
        edits.unset(disk, &["sgio", "rawio"]);
        warnings.push(format!("disk `{name}` was a SCSI device passed through, and is a file now"));
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

/// What can only be read, several instances may have; where it is gone, QEMU would not start.
fn keep_if_there(disk: Node<'_, '_>, name: &str, wanted: &Another<'_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    edits.remove_all(children(disk, "backingStore"));
    if let Some(file) = files(disk).filter(|file| wanted.missing.contains(file)) {
        eject(disk, name, &format!("`{}` is not there", file.display()), edits, warnings);
    }
}

fn eject(disk: Node<'_, '_>, name: &str, why: &str, edits: &mut Edits, warnings: &mut Vec<String>) {
    if child(disk, "source").is_some() {
        warnings.push(format!("what was in drive `{name}` was taken out of the new instance: {why}"));
    }
    edits.remove_all(children(disk, "source"));
    edits.remove_all(children(disk, "backingStore"));
}
