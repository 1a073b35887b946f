//! Which block device is what: a logical volume, whose place another one can take, or one that can only be written over.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::lvm::{self, LogicalVolume};
use super::protocol::{BlockDevice, DeviceNumbers, sys};
use crate::failure::{Code, Failure};

/// Bytes of a sector, in which the kernel tells sizes whatever the disk's own are.
const SECTOR_BYTES: u64 = 512;
/// What the device mapper's name for a device begins with where it is a logical volume.
const LVM_PREFIX: &str = "LVM-";

/// Looks at what a path leads to, and does not open it. `disk_unsupported`: it is no block device, or nobody may write to it.
pub async fn look(path: &Path) -> Result<BlockDevice, Failure> {
    let owned = path.to_owned();
    let seen = super::blocking(move || see(&owned)).await?;
    if !seen.mapped.is_some_and(|uuid| uuid.starts_with(LVM_PREFIX)) {
        return Ok(BlockDevice::Bare { numbers: seen.numbers, bytes: seen.bytes });
    }
    let (major, minor) = (major(seen.numbers.device), minor(seen.numbers.device));
    let select = format!("lv_kernel_major={major} && lv_kernel_minor={minor}");
    let found = lvm::volumes(&["--select", &select], &format!("the logical volume `{}`", path.display())).await?;
    match found.into_iter().next() {
        Some(LogicalVolume { group, name, uuid, bytes, .. }) => {
            Ok(BlockDevice::Logical { group, name, uuid: Some(uuid), bytes })
        }
        None => {
            let text = format!("`{}` is a logical volume that no volume group is found to have", path.display());
            Err(Failure::new(Code::VolumeIo, text))
        }
    }
}

struct Seen {
    numbers: DeviceNumbers,
    bytes: u64,
    /// The device mapper's uuid.
    mapped: Option<String>,
}

/// Blocks.
fn see(path: &Path) -> Result<Seen, Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::VolumeIo, format!("cannot look at `{}`", path.display())).because(&error);
    let unsupported = |what: &str| Failure::new(Code::DiskUnsupported, format!("`{}` {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_block_device() {
        return Err(unsupported("is no block device"));
    }
    let node = sys(metadata.rdev());
    let read = |file: &str| std::fs::read_to_string(node.join(file)).map(|text| text.trim().to_owned());
    if read("ro").map_err(failed)? == "1" {
        return Err(unsupported("cannot be written to on this host"));
    }
    let sectors: u64 = read("size").map_err(failed)?.parse().map_err(io::Error::other).map_err(failed)?;
    Ok(Seen {
        numbers: DeviceNumbers::of(metadata.rdev()),
        bytes: sectors.saturating_mul(SECTOR_BYTES),
        mapped: read("dm/uuid").ok(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_is_no_block_device_is_refused() {
        for path in ["/", "/dev/null"] {
            assert_eq!(look(Path::new(path)).await.unwrap_err().code, Code::DiskUnsupported);
        }
        assert_eq!(look(Path::new("/dev/there-is-no-such")).await.unwrap_err().code, Code::VolumeIo);
    }
}
