//! Which process of the host has a block device open.
//!
//! The kernel's own claims (a mount, swap, LVM) are not among them, and are refused where a device is claimed. QEMU claims nothing, and may have
//! the device open under another name, in a `/dev` of its own: so the numbers are compared. Only what lies below `/dev` is looked at; a
//! look at a file elsewhere may wait for a share that is dead.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::failure::{Code, Failure};
use crate::mover::protocol::DeviceNumbers;

/// How often it is looked until somebody counts as a user: udev opens a device that was just closed, for a moment.
const LOOKS_MAX: u32 = 5;
/// Pause between two looks.
const PAUSE_MILLISECONDS: u64 = 300;
/// Longest time for one look.
const LOOK_SECONDS_MAX: u64 = 30;

/// The one that still has one open at the last look, if there is one at each.
pub(super) async fn of(devices: &[DeviceNumbers]) -> Result<Option<(DeviceNumbers, String)>, Failure> {
    let mut found = look(devices).await?;
    for _ in 1..LOOKS_MAX {
        if found.is_none() {
            break;
        }
        sleep(Duration::from_millis(PAUSE_MILLISECONDS)).await;
        found = look(devices).await?;
    }
    Ok(found)
}

async fn look(devices: &[DeviceNumbers]) -> Result<Option<(DeviceNumbers, String)>, Failure> {
    let failed = || Failure::new(Code::HostIo, "cannot look which processes have a block device open");
    let devices = devices.to_vec();
    let looking = tokio::task::spawn_blocking(move || user_of(&devices));
    match timeout(Duration::from_secs(LOOK_SECONDS_MAX), looking).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => Err(failed().because(&error)),
        Ok(Err(error)) => Err(failed().because(&error)),
        Err(passed) => Err(failed().because(&passed)),
    }
}

fn user_of(devices: &[DeviceNumbers]) -> io::Result<Option<(DeviceNumbers, String)>> {
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        let is_process =
            process.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        // One that has ended meanwhile has nothing open.
        for opened in std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Some(number) = opened_device(&opened.path()) else { continue };
            let opened = DeviceNumbers::of(number);
            if let Some(device) = devices.iter().find(|device| device.overlaps(&opened)) {
                return Ok(Some((*device, shown(&process))));
            }
        }
    }
    Ok(None)
}

/// The number of the block device that is open there.
fn opened_device(link: &Path) -> Option<u64> {
    let leads_to: PathBuf = std::fs::read_link(link).ok()?;
    if !leads_to.starts_with("/dev") {
        return None;
    }
    // Of what is open, whatever its name leads to in our own `/dev`.
    let metadata = std::fs::metadata(link).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

fn shown(process: &Path) -> String {
    let pid = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match std::fs::read_to_string(process.join("comm")) {
        Ok(name) => format!("process {pid} (`{}`)", name.trim().escape_debug()),
        Err(_) => format!("process {pid}"),
    }
}
