//! Which block device is which, on both sides of the wall.

use std::path::PathBuf;

use nix::sys::stat::{major, makedev, minor};
use serde::{Deserialize, Serialize};

/// Longest name of a logical volume as the device mapper has it, with that of its group, bytes (`DM_NAME_LEN` less its end).
pub const MAPPER_NAME_BYTES_MAX: usize = 127;

/// Which block device one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumbers {
    /// Its own number.
    pub device: u64,
    /// That of the disk whose partition it is, or its own.
    pub whole: u64,
    /// Which of all disks since the host's start that disk is, which no later one is that gets its number; none where the kernel doesn't say
    /// (before 5.15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

impl DeviceNumbers {
    /// Of the device that has that number now. Reads what the kernel says of it, which waits for no device.
    pub fn of(device: u64) -> Self {
        let node = sys(device);
        let whole = (|| {
            // Only a partition has that file; it is in the directory of its disk.
            std::fs::symlink_metadata(node.join("partition")).ok()?;
            let disk = std::fs::read_to_string(node.canonicalize().ok()?.parent()?.join("dev")).ok()?;
            let (major, minor) = disk.trim().split_once(':')?;
            Some(makedev(major.parse().ok()?, minor.parse().ok()?))
        })();
        let whole = whole.unwrap_or(device);
        let sequence = std::fs::read_to_string(sys(whole).join("diskseq")).ok();
        Self { device, whole, sequence: sequence.and_then(|text| text.trim().parse().ok()) }
    }

    /// `found` is the very same device, and no other that was given its number since.
    pub fn is(&self, found: &DeviceNumbers) -> bool {
        let same = |ours: u64| found.sequence.is_none_or(|theirs| ours == theirs);
        self.device == found.device && self.sequence.is_none_or(same)
    }

    /// What is written to one of them may be seen in the other: they are one device, or one is a partition of the other.
    pub fn overlaps(&self, other: &DeviceNumbers) -> bool {
        self.device == other.device || self.device == other.whole || self.whole == other.device
    }
}

/// What a block device is to a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockDevice {
    /// A logical volume, whose place another one can take.
    Logical {
        /// Its volume group.
        group: String,
        /// Its name there.
        name: String,
        /// By which it is known under any name; none from a mover that does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
        /// Its size, bytes.
        bytes: u64,
    },
    /// One that can only be written over.
    Bare {
        /// Which.
        numbers: DeviceNumbers,
        /// Its size, bytes.
        bytes: u64,
    },
}

/// Where the kernel tells of the device of that number.
pub fn sys(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// The name of a logical volume below `/dev/mapper`.
pub fn mapper_name(group: &str, name: &str) -> String {
    let escaped = |text: &str| text.replace('-', "--");
    format!("{}-{}", escaped(group), escaped(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_overlaps_its_disk_and_not_its_sister() {
        let numbers = |device, whole| DeviceNumbers { device, whole, sequence: None };
        let (disk, one, two) = (numbers(8, 8), numbers(9, 8), numbers(10, 8));
        for (a, b, overlaps) in [(disk, one, true), (one, two, false), (one, one, true), (disk, numbers(16, 16), false)]
        {
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (overlaps, overlaps), "{a:?} {b:?}");
        }
    }

    #[test]
    fn another_disk_that_got_the_number_is_not_the_same() {
        let numbers = |device, sequence| DeviceNumbers { device, whole: device, sequence };
        for (a, b, same) in [
            (numbers(8, Some(3)), numbers(8, Some(3)), true),
            (numbers(8, Some(3)), numbers(8, Some(4)), false),
            (numbers(8, Some(3)), numbers(9, Some(3)), false),
            (numbers(8, None), numbers(8, Some(4)), true),
        ] {
            assert_eq!((a.is(&b), b.is(&a)), (same, same), "{a:?} {b:?}");
        }
    }

    #[test]
    fn hyphens_are_doubled_by_the_device_mapper() {
        assert_eq!(mapper_name("vg-0", "web-1.new"), "vg--0-web--1.new");
    }
}
