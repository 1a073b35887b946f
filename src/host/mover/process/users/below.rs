//! Devices that are below a block device which is a part of another or has it encrypted: what is written to the one is written to the other, and the
//! kernel says so of no process that has the other open. Blocks.

use std::path::Path;

use super::CannotLook;
use super::on_top::{gone_is_empty, number_of, read};
use crate::mover::protocol::DeviceNumbers;

/// How far down is looked: the kernel itself allows no more than a few.
const DEPTH_MAX: usize = 16;
/// How the device mapper's uuid begins of an encrypted device (cryptsetup).
const ENCRYPTED: &str = "CRYPT-";
/// And of a partition, with its number before the hyphen (kpartx, parted).
const PARTITION: &str = "part";

/// Each device with those below it and itself. It ends at a device of several paths, each of which its daemon has open.
pub(super) fn with_below(
    sys: &Path,
    devices: &[DeviceNumbers],
) -> Result<Vec<(DeviceNumbers, DeviceNumbers)>, CannotLook> {
    let mut all = Vec::new();
    for device in devices {
        let mut layer = vec![device.device];
        all.push((*device, *device));
        for _ in 0..DEPTH_MAX {
            let mut lower = Vec::new();
            for number in layer {
                lower.extend(directly_below(sys, number)?);
            }
            all.extend(lower.iter().map(|number| (*device, DeviceNumbers::of(*number))));
            layer = lower;
        }
    }
    Ok(all)
}

/// What the device of that number is a part of, or has encrypted.
fn directly_below(sys: &Path, device: u64) -> Result<Vec<u64>, CannotLook> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let node = sys.join(format!("dev/block/{major}:{minor}"));
    if !read(&node.join("dm/uuid"))?.is_some_and(|uuid| is_same_data(&uuid)) {
        return Ok(Vec::new());
    }
    let slaves = node.join("slaves");
    let numbers = gone_is_empty(&slaves)?.into_iter().map(|name| number_of(&slaves.join(name)));
    Ok(numbers.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn is_same_data(uuid: &str) -> bool {
    let number = uuid.strip_prefix(PARTITION).and_then(|rest| rest.split_once('-')).map(|(number, _)| number);
    let is_partition =
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    is_partition || uuid.starts_with(ENCRYPTED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{create_dir_all, write};

    use nix::sys::stat::makedev;

    use super::*;

    /// Numbers that no device has.
    const MAJOR: u64 = 4000;

    /// LUKS on a partition of a disk of two paths, and a logical volume.
    fn sys() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for (minor, uuid, slaves) in [
            (0, "", &[][..]),
            (1, "", &[]),
            (2, "mpath-3600", &[0, 1]),
            (3, "part1-mpath-3600", &[2]),
            (4, "CRYPT-LUKS2-5f-home", &[3]),
            (5, "LVM-abc", &[4]),
            (6, "partition-of-none", &[0]),
        ] {
            let node = sys.path().join(format!("dev/block/{MAJOR}:{minor}"));
            create_dir_all(node.join("slaves")).unwrap();
            if !uuid.is_empty() {
                create_dir_all(node.join("dm")).unwrap();
                write(node.join("dm/uuid"), format!("{uuid}\n")).unwrap();
            }
            for slave in slaves {
                let link = node.join(format!("slaves/dm-{slave}"));
                create_dir_all(&link).unwrap();
                write(link.join("dev"), format!("{MAJOR}:{slave}\n")).unwrap();
            }
        }
        sys
    }

    #[test]
    fn partitions_and_encrypted_devices_are_followed_down_to_the_disk_and_not_to_its_paths() {
        let sys = sys();
        let numbers = |minor| DeviceNumbers::of(makedev(MAJOR, minor));
        for (minor, wanted) in
            [(0, &[0][..]), (2, &[2]), (3, &[3, 2]), (4, &[4, 3, 2]), (5, &[5]), (6, &[6]), (9, &[9])]
        {
            let wanted: Vec<_> = wanted.iter().map(|below| (numbers(minor), numbers(*below))).collect();
            assert_eq!(with_below(sys.path(), &[numbers(minor)]).unwrap(), wanted, "{minor}");
        }
        write(sys.path().join(format!("dev/block/{MAJOR}:3/slaves/dm-2/dev")), "x").unwrap();
        assert!(with_below(sys.path(), &[numbers(4)]).is_err(), "nobody can tell");
    }
}
