//! Which disks are in a backup, which are left out, and which make it impossible.
//!
//! A disk is left out without failing the job only if it cannot hold what the instance's owner would miss after a
//! restore of this instance (drives, read-only and shared disks, disks whose changes are thrown away), or on request.
//! A disk that should be in the backup but can't be read is `disk_unsupported`: a backup that lacks a data disk and
//! says "completed" helps nobody. The remedy is to exclude it by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::instance::{Disk, DiskDevice, DiskSource, Instance, PoolVolume, PowerState};
use crate::model::manifest::{SkippedDisk, TransferUsed};

/// libvirt's word for an image of Ceph's, which is read as well while the instance is stopped.
const RBD: &str = "rbd";

/// A disk that will be in the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDisk {
    /// The disk's target in the domain.
    pub target: DiskTarget,
    /// Its serial number, if the definition sets one.
    pub serial: Option<String>,
    /// Where its content is.
    pub source: DiskSource,
    /// The volume of a storage pool that the definition names in place of that, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_volume: Option<PoolVolume>,
    /// Its image keeps the guest's data in another file.
    #[serde(default)]
    pub data_elsewhere: bool,
    /// Size that the guest sees, bytes, where the hypervisor could tell.
    pub virtual_bytes: Option<u64>,
    /// Bytes allocated in its storage, backing files included, where the hypervisor could tell.
    pub allocated_bytes: Option<u64>,
}

/// Sorts the instance's disks, in the order of its definition.
pub fn select(
    instance: &Instance,
    excluded: &[DiskTarget],
    transfer: TransferUsed,
) -> Result<(Vec<PlannedDisk>, Vec<SkippedDisk>), Failure> {
    if let Some(missing) = excluded.iter().find(|target| !instance.disks.iter().any(|disk| disk.target == **target)) {
        let text = format!("instance `{}` has no disk `{missing}` that could be excluded", instance.name);
        return Err(Failure::new(Code::DiskNotFound, text));
    }
    let mut planned = Vec::new();
    let mut skipped = Vec::new();
    for disk in &instance.disks {
        match (&disk.source, reason_to_skip(disk, excluded)) {
            (_, Some(reason)) => skipped.push(SkippedDisk { target: disk.target.clone(), reason: reason.to_owned() }),
            (None, None) => {
                skipped.push(SkippedDisk { target: disk.target.clone(), reason: "nothing is in it".to_owned() })
            }
            (Some(source), None) => planned.push(plan_disk(instance, disk, source, transfer)?),
        }
    }
    refuse_equal_serials(instance, &planned)?;
    if planned.is_empty() {
        let text = format!("instance `{}` has no disk that can be backed up", instance.name);
        let causes = skipped.iter().map(|disk| format!("disk `{}`: {}", disk.target, disk.reason));
        return Err(causes.fold(Failure::new(Code::NothingToBackUp, text), Failure::caused_by));
    }
    Ok((planned, skipped))
}

fn reason_to_skip(disk: &Disk, excluded: &[DiskTarget]) -> Option<&'static str> {
    let device = match disk.device {
        DiskDevice::Cdrom => Some("it is a CD-ROM drive"),
        DiskDevice::Floppy => Some("it is a floppy drive"),
        DiskDevice::Lun => Some("it is a SCSI device that is passed through past QEMU's block layer"),
        DiskDevice::Disk => None,
    };
    if excluded.contains(&disk.target) {
        Some("the job excludes it")
    } else if device.is_some() {
        device
    } else if disk.read_only {
        Some("the guest cannot write to it")
    } else if disk.shareable {
        Some("it is shared, so that no single instance can say when it is consistent")
    } else if disk.transient {
        Some("its changes are thrown away when the instance stops")
    } else {
        None
    }
}

fn plan_disk(
    instance: &Instance,
    disk: &Disk,
    source: &DiskSource,
    transfer: TransferUsed,
) -> Result<PlannedDisk, Failure> {
    let unsupported = |why: String| {
        let text = format!("disk `{}` of instance `{}` cannot be backed up: {why}", disk.target, instance.name);
        Failure::new(Code::DiskUnsupported, text)
            .caused_by("a disk that need not be in the backup can be excluded by the job")
    };
    if disk.encrypted {
        return Err(unsupported("it is encrypted, and its backup would be plain text".to_owned()));
    }
    match (source, transfer) {
        // Served by another process past QEMU's block layer, so that there is nothing to export.
        (DiskSource::Other { kind }, TransferUsed::Pull | TransferUsed::Push) if kind.starts_with("vhost") => {
            return Err(unsupported(format!("QEMU does not see the content of a source of type `{kind}`")));
        }
        (DiskSource::Other { .. }, TransferUsed::Stopped)
            if let Some(PoolVolume { pool, volume }) = &disk.pool_volume =>
        {
            let why = format!(
                "the hypervisor does not say which file or device volume `{volume}` of the storage pool `{pool}` is; a pool has to be active"
            );
            return Err(unsupported(why));
        }
        (DiskSource::Other { kind }, TransferUsed::Stopped) => {
            return Err(unsupported(format!("its source of type `{kind}` is only read while the instance runs")));
        }
        (DiskSource::Network { protocol, .. }, TransferUsed::Stopped) if protocol != RBD => {
            return Err(unsupported(format!("its `{protocol}` source is only read while the instance runs")));
        }
        (DiskSource::Network { access, .. }, TransferUsed::Stopped) if access.snapshot.is_some() => {
            return Err(unsupported(
                "it is a snapshot of an RBD image, which is only read while the instance runs".to_owned(),
            ));
        }
        // libvirt refuses block jobs on the old `sd` bus of emulated SD cards.
        (_, TransferUsed::Pull | TransferUsed::Push) if disk.bus.as_deref() == Some("sd") => {
            return Err(unsupported("QEMU has no block jobs for the `sd` bus".to_owned()));
        }
        // An image has to be made before QEMU can write it.
        (_, TransferUsed::Push) if disk.virtual_bytes.is_none() => {
            return Err(unsupported("nobody can tell its size, without which it cannot be pushed".to_owned()));
        }
        _ => {}
    }
    Ok(PlannedDisk {
        target: disk.target.clone(),
        serial: disk.serial.clone(),
        source: source.clone(),
        pool_volume: disk.pool_volume.clone(),
        data_elsewhere: disk.data_elsewhere,
        virtual_bytes: disk.virtual_bytes,
        allocated_bytes: disk.allocated_bytes,
    })
}

/// The plan still fits the instance: the same disks would be backed up, each with the same identity, source and size. Drives
/// and the like, which are left out, may come and go.
pub fn refuse_if_changed(
    plan: &super::BackupPlan,
    instance: &Instance,
    excluded: &[DiskTarget],
) -> Result<(), Failure> {
    let changed = |what: &str| {
        Failure::new(
            Code::SourceChanged,
            format!("instance `{}` changed since its backup was planned: {what}", plan.instance_name),
        )
    };
    if matches!(instance.state, PowerState::PausedByIoError | PowerState::Other) {
        let text = format!("instance `{}` is no longer in a state in which its disks are whole", plan.instance_name);
        return Err(Failure::new(Code::InstanceStateUnsupported, text));
    }
    if instance.state == PowerState::ShuttingDown {
        let text = format!("instance `{}` is being shut down", plan.instance_name);
        return Err(Failure::new(Code::InstanceStopped, text));
    }
    // One that was excluded may have been taken away meanwhile.
    let excluded: Vec<DiskTarget> =
        excluded.iter().filter(|target| instance.disks.iter().any(|disk| disk.target == **target)).cloned().collect();
    let (found, _) = select(instance, &excluded, TransferUsed::Pull)
        .map_err(|failure| changed("its disks no longer fit").because_of(&failure))?;
    if found.len() != plan.disks.len() {
        return Err(changed("a disk was attached or detached"));
    }
    for (planned, found) in plan.disks.iter().zip(&found) {
        // How much is allocated changes with every write.
        let found = PlannedDisk { allocated_bytes: planned.allocated_bytes, ..found.clone() };
        if found != *planned {
            return Err(changed(&format!("disk `{}` is another or has another source or size", planned.target)));
        }
    }
    Ok(())
}

/// A restore maps disks by serial first: two equal ones would make it guess.
fn refuse_equal_serials(instance: &Instance, planned: &[PlannedDisk]) -> Result<(), Failure> {
    let mut seen: BTreeMap<&str, &DiskTarget> = BTreeMap::new();
    for disk in planned {
        let Some(serial) = disk.serial.as_deref() else { continue };
        if let Some(other) = seen.insert(serial, &disk.target) {
            let text =
                format!("disks `{other}` and `{}` of instance `{}` have the same serial", disk.target, instance.name);
            return Err(
                Failure::new(Code::DiskAmbiguous, text).caused_by(format!("serial `{}`", serial.escape_default()))
            );
        }
    }
    Ok(())
}
