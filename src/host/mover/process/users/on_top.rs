//! Devices that are on top of a block device, or of a disk or partition that it is a part of: what the device mapper, a RAID or the like has
//! made of it, which the kernel calls its holders, and loop devices whose file it is, of which the kernel says no more than a path.
//! Blocks.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::makedev;

use super::below::with_below;
use super::{CannotLook, Verdict, verdict};
use crate::mover::protocol::DeviceNumbers;

/// What the kernel writes after the path of a file that has no name any more.
const NAMELESS: &str = " (deleted)";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// One of the devices, and what is on top of it, in words.
    pub found: Option<(DeviceNumbers, String)>,
    /// Loop devices of which nobody can tell what they are on, in words.
    pub unseen: Vec<String>,
}

/// Looks at all disks that `sys` shows.
pub(super) fn of(sys: &Path, devices: &[DeviceNumbers]) -> Result<Found, CannotLook> {
    let with_below = with_below(sys, devices)?;
    let mut all = Found::default();
    let disks = sys.join("block");
    for disk in names(&disks).map_err(|error| CannotLook::at(&disks, error))? {
        let node = disks.join(&disk);
        match backing_device(&node)? {
            Backing::None => {}
            Backing::Unknown => all.unseen.push(format!("the loop device `{disk}`")),
            Backing::Device(number) => {
                let below = DeviceNumbers::of(number);
                if let Some((device, _)) = with_below.iter().find(|(_, looked_at)| looked_at.overlaps(&below)) {
                    return Ok(Found { found: Some((*device, format!("the loop device `{disk}`"))), ..all });
                }
            }
        }
        if let Some((device, holder)) = held(&node, devices)? {
            return Ok(Found { found: Some((device, shown(&disks, &holder))), ..all });
        }
    }
    Ok(all)
}

/// The first of the devices that is this disk, or a part of it, and has a holder. Partitions are folders in that of their disk.
fn held(disk: &Path, devices: &[DeviceNumbers]) -> Result<Option<(DeviceNumbers, String)>, CannotLook> {
    let parts =
        gone_is_empty(disk)?.into_iter().map(|name| disk.join(name)).filter(|part| part.join("partition").exists());
    for part in std::iter::once(disk.to_owned()).chain(parts) {
        let Some(holder) = gone_is_empty(&part.join("holders"))?.into_iter().next() else { continue };
        let Some(own) = number_of(&part)?.map(DeviceNumbers::of) else { continue };
        if let Some(device) = devices.iter().find(|device| device.overlaps(&own)) {
            return Ok(Some((*device, holder)));
        }
    }
    Ok(None)
}

/// What is in a folder, in alphabetical order.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The same of a device, which may have gone.
pub(super) fn gone_is_empty(folder: &Path) -> Result<Vec<String>, CannotLook> {
    match names(folder) {
        Err(error) if verdict(&error) == Verdict::Gone => Ok(Vec::new()),
        listed => listed.map_err(|error| CannotLook::at(folder, error)),
    }
}

/// A file of a device's, which may have gone.
pub(super) fn read(file: &Path) -> Result<Option<String>, CannotLook> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(error) if verdict(&error) == Verdict::Gone => Ok(None),
        Err(error) => Err(CannotLook::at(file, error)),
    }
}

pub(super) fn number_of(node: &Path) -> Result<Option<u64>, CannotLook> {
    let file = node.join("dev");
    let Some(text) = read(&file)? else { return Ok(None) };
    let numbers = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let wrong = || CannotLook::at(&file, io::Error::other(format!("`{text}` is no number of a device")));
    numbers.map(|(major, minor)| Some(makedev(major, minor))).ok_or_else(wrong)
}

/// What a loop device is on.
enum Backing {
    /// It is none, has no file, or one that is no device.
    None,
    /// A device that is not found by its name.
    Unknown,
    /// The device of that number.
    Device(u64),
}

fn backing_device(disk: &Path) -> Result<Backing, CannotLook> {
    let Some(path) = read(&disk.join("loop/backing_file"))? else { return Ok(Backing::None) };
    let path = Path::new(path.strip_suffix(NAMELESS).unwrap_or(&path));
    // A look at a file elsewhere may wait for a share that is dead.
    if !path.starts_with("/dev") {
        return Ok(Backing::None);
    }
    Ok(match path.metadata() {
        Ok(found) if found.file_type().is_block_device() => Backing::Device(found.rdev()),
        Ok(found) if found.file_type().is_file() => Backing::None,
        _ => Backing::Unknown,
    })
}

/// With the device mapper's own name for it.
fn shown(disks: &Path, holder: &str) -> String {
    match std::fs::read_to_string(disks.join(holder).join("dm/name")) {
        Ok(name) => format!("`{holder}` (`{}`)", name.trim().escape_debug()),
        Err(_) => format!("`{holder}`"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{create_dir_all, write};

    use super::*;

    /// Numbers that no device has.
    const MAJOR: u64 = 4000;

    fn numbers(minor: u64) -> DeviceNumbers {
        DeviceNumbers::of(makedev(MAJOR, minor))
    }

    /// A disk with a partition, each below something, and one with nothing on it.
    fn sys() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = sys.path().join("block").join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, text).unwrap();
        };
        file("sda/dev", "4000:0\n");
        file("sda/holders/md0/link", "");
        file("sda/sda1/dev", "4000:1\n");
        file("sda/sda1/partition", "1\n");
        file("sda/sda1/holders/dm-3/link", "");
        file("sda/queue/dev", "no partition\n");
        file("sdb/dev", "4000:16\n");
        create_dir_all(sys.path().join("block/sdb/holders")).unwrap();
        file("dm-3/dev", "4001:3\n");
        file("dm-3/dm/name", "vg-web\n");
        file("loop0/dev", "7:0\n");
        sys
    }

    #[test]
    fn a_holder_is_named_as_the_device_mapper_does() {
        let sys = sys();
        let on = |minor| of(sys.path(), &[numbers(minor)]).unwrap().found.map(|(_, name)| name);
        assert_eq!(on(1).as_deref(), Some("`dm-3` (`vg-web`)"));
        assert_eq!(on(0).as_deref(), Some("`md0`"));
        assert_eq!((on(16), on(17)), (None, None));
    }

    #[test]
    fn a_loop_device_on_a_device_that_is_not_found_is_named_and_one_on_a_file_is_not() {
        let sys = sys();
        for (file, unseen) in
            [("/dev/there-is-no-such", 1), ("/dev/null (deleted)", 1), ("/images/web.raw", 0), ("", 0)]
        {
            create_dir_all(sys.path().join("block/loop0/loop")).unwrap();
            write(sys.path().join("block/loop0/loop/backing_file"), format!("{file}\n")).unwrap();
            let found = of(sys.path(), &[numbers(16)]).unwrap();
            assert_eq!((found.found, found.unseen.len()), (None, unseen), "{file}");
        }
    }

    #[test]
    fn where_nothing_is_mounted_nobody_can_tell() {
        let empty = tempfile::tempdir().unwrap();
        assert!(of(empty.path(), &[numbers(0)]).is_err());
        let broken = sys();
        write(broken.path().join("block/sda/dev"), "x").unwrap();
        assert!(of(broken.path(), &[numbers(16)]).is_err());
    }
}
