//! What is looked at before anything is decided. Gathering changes nothing and touches no share.

use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use crate::failure::{Code, Failure};
use crate::host::hypervisor::{Hypervisor, Versions};
use crate::job::settings::JobSettings;
use crate::model::id::InstanceRef;
use crate::model::instance::{Instance, PowerState};
use crate::model::job::Transfer;
use crate::model::owner::Owner;

/// Longest time for asking the scratch's file system how much room it has. It is meant to be local, but a configured path
/// can be anything.
const SCRATCH_ROOM_SECONDS_MAX: u64 = 10;

/// The world as a plan needs it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The instance with its disks.
    pub instance: Instance,
    /// libvirt's and QEMU's versions.
    pub versions: Versions,
    /// Who the instance's QEMU runs as; looked at only where QEMU will be asked for something.
    pub qemu_owner: Option<Owner>,
    /// Free bytes of the scratch's file system; looked at only where scratch will be needed.
    pub scratch_free_bytes: Option<u64>,
}

/// Gathers the facts for a backup of `instance` that travels so.
pub async fn gather(
    hypervisor: &dyn Hypervisor,
    settings: &JobSettings,
    instance: &InstanceRef,
    transfer: Transfer,
) -> Result<Facts, Failure> {
    let instance = hypervisor.find(instance).await?;
    let versions = hypervisor.versions().await?;
    let (qemu_owner, scratch_free_bytes) = match instance.state {
        PowerState::ShutOff => (None, None),
        _ => {
            let scratch = match settings.pushes(transfer) {
                true => None,
                false => Some(free_bytes(&settings.scratch_dir).await?),
            };
            (hypervisor.qemu_owner(Some(instance.id)).await?, scratch)
        }
    };
    Ok(Facts { instance, versions, qemu_owner, scratch_free_bytes })
}

async fn free_bytes(directory: &Path) -> Result<u64, Failure> {
    let refused =
        || Failure::new(Code::ScratchTooSmall, format!("cannot see how much room `{}` has", directory.display()));
    let path = directory.to_owned();
    let asked =
        tokio::task::spawn_blocking(move || statvfs(&path).map(|room| room.blocks_available() * room.fragment_size()));
    match tokio::time::timeout(Duration::from_secs(SCRATCH_ROOM_SECONDS_MAX), asked).await {
        Ok(Ok(Ok(bytes))) => Ok(bytes),
        Ok(Ok(Err(error))) => Err(refused().because(&error)),
        Ok(Err(error)) => Err(refused().because(&error)),
        Err(_) => Err(refused().caused_by(format!("no answer within {SCRATCH_ROOM_SECONDS_MAX} s"))),
    }
}
