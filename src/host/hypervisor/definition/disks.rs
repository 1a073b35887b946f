//! The disks and drives of another instance.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::edits::{Edits, child, children, escaped};
use super::{Another, Changes};
use crate::model::destination::{below, path_fault};
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;

/// What a disk says of where its content was, and how it was to be read there.
const OF_THE_OLD_SOURCE: &[&str] = &["source", "backingStore", "mirror", "auth", "encryption", "shareable"];

/// Its target.
pub(super) fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target")?.attribute("dev")
}

/// Every file or device that it is on: its own, and those of what backs it or is made of it.
pub(super) fn all_files<'a, 'input: 'a>(disk: Node<'a, 'input>) -> impl Iterator<Item = PathBuf> {
    let sources = disk.descendants().filter(|node| node.has_tag_name("source") || node.has_tag_name("dataStore"));
    sources.filter_map(file)
}

fn file(source: Node<'_, '_>) -> Option<PathBuf> {
    source.attribute("file").or_else(|| source.attribute("dev")).map(PathBuf::from)
}

/// The file in a drive that another instance may have as well. An error says why it may not, none of which where nothing is in it: what
/// is an image of a medium, by its name, and below one of the directories. Whatever else is there may be somebody's disk.
pub(super) fn medium(disk: Node<'_, '_>, roots: &[PathBuf]) -> Result<PathBuf, String> {
    let path = child(disk, "source").and_then(file).unwrap_or_default();
    let is_medium = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("iso"));
    let is_file = matches!(disk.attribute("type"), None | Some("file"));
    let fits = disk.attribute("device") == Some("cdrom") && is_file && is_medium;
    match fits && path_fault(&path).is_none() && below(roots, &path).is_some() {
        true => Ok(path),
        false => {
            Err(format!("`{}` is no image of a medium below the directories that this host allows", path.display()))
        }
    }
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
            None => match disk.attribute("device") {
                Some("cdrom") => keep_if_there(disk, name, wanted, changes),
                // It can be written to, and by one instance only.
                Some("floppy") => eject(disk, name, "the first instance may write to it", changes),
                _ => {
                    let why = target.as_ref().and_then(|target| wanted.left_out.get(target));
                    let why = why.map_or("it is not in the backup", String::as_str);
                    changes.edits.remove(disk);
                    changes.warnings.push(format!("disk `{name}` was left out of the new instance: {why}"));
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
    edits.unset(disk, &["sgio", "rawio"]);
    if disk.attribute("device") == Some("lun") {
        edits.set(disk, "device", "disk");
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

/// What can only be read, several instances may have; where it is gone, QEMU would not start. It is read as what it is by its name, since
/// an image of another format could name any file of the host.
fn keep_if_there(disk: Node<'_, '_>, name: &str, wanted: &Another<'_>, changes: &mut Changes) {
    let path = match medium(disk, wanted.roots) {
        Ok(path) if wanted.missing.contains(&path) => {
            return eject(disk, name, &format!("`{}` is not there", path.display()), changes);
        }
        Ok(path) => path.display().to_string(),
        Err(why) => return eject(disk, name, &why, changes),
    };
    let policy = child(disk, "source").and_then(|source| source.attribute("startupPolicy"));
    let policy = policy.map_or_else(String::new, |policy| format!(" startupPolicy='{}'", escaped(policy)));
    empty(disk, &mut changes.edits);
    changes.edits.insert_into(disk, &format!("<source file='{}'{policy}/>", escaped(&path)));
    changes.granted.insert(path);
}

fn eject(disk: Node<'_, '_>, name: &str, why: &str, changes: &mut Changes) {
    if child(disk, "source").is_some() {
        changes.warnings.push(format!("what was in drive `{name}` was taken out of the new instance: {why}"));
    }
    empty(disk, &mut changes.edits);
}

/// A drive with nothing in it, which would read as it is what is put in.
fn empty(disk: Node<'_, '_>, edits: &mut Edits) {
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
