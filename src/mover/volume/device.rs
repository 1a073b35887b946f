//! Block devices that are written over: there is no second one, and no way back.
//!
//! A device is claimed from the kernel (`O_EXCL`), which refuses what is mounted, is swap, or belongs to LVM, a RAID or a device mapper, and a disk
//! of which a partition does. What another process has open without a claim, as QEMU does, is not seen here: a mover sees no
//! process but its own. Blocks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};

use crate::failure::{Code, Failure};
use crate::mover::protocol::DeviceNumbers;

/// What is done with a claimed device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum Use {
    /// Nothing: it is only looked whether it can be claimed.
    Look,
    /// It is written over.
    Write,
}

/// Opens that very device, of at least that size, for us alone for as long as it is open.
///
/// `in_use_elsewhere`: the host uses it itself. `source_changed`: the path leads to another one by now. `disk_unsupported`: it is too
/// small.
pub(in crate::mover) fn claim(path: &Path, numbers: &DeviceNumbers, bytes: u64, purpose: Use) -> Result<File, Failure> {
    let shown = path.display();
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::VolumeIo, format!("cannot open `{shown}`")).because(error)
    };
    let flags = (OFlag::O_EXCL | OFlag::O_NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).write(purpose == Use::Write).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            let text = format!(
                "this host uses `{shown}` itself: it is mounted, is swap, or belongs to LVM, a RAID or a device mapper"
            );
            return Err(Failure::new(Code::InUseElsewhere, text));
        }
        Err(error) => return Err(failed(&error)),
    };
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if !metadata.file_type().is_block_device() || !numbers.is(&DeviceNumbers::of(metadata.rdev())) {
        let text =
            format!("`{shown}` leads to another device than when the restore was planned, also if that has its number");
        return Err(Failure::new(Code::SourceChanged, text));
    }
    let found = lseek(&file, 0, Whence::SeekEnd).map_err(|error| failed(&error))?;
    if u64::try_from(found).unwrap_or(0) < bytes {
        let text = format!("`{shown}` has {found} bytes, and what is to be restored there {bytes}");
        return Err(Failure::new(Code::DiskUnsupported, text));
    }
    Ok(file)
}
