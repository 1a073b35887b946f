//! What can be decided before the backup is looked at: that the instance is one that can be restored in place now, and under which
//! names. Journalled before the first step; what the backup adds to it is journalled by the step that looks.

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::job::Attempt;
use crate::job::common::Wants;
use crate::job::names::mover_name;
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{Disk, DiskDevice, DiskSource, ImageFormat, Instance, PoolVolume, PowerState};
use crate::model::job::{RestoreSpec, RunKey};

/// libvirt's word for an image of Ceph's.
const RBD: &str = "rbd";

/// What will be done, and under which names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The backup.
    pub backup_id: BackupId,
    /// Job and run.
    pub key: RunKey,
    /// Attempt within the run.
    pub attempt: u32,
    /// The instance.
    pub instance_id: InstanceId,
    /// Its name.
    pub instance_name: InstanceName,
    /// Its disks.
    pub disks: Vec<InstanceDisk>,
    /// The old volumes stay.
    pub keep_previous: bool,
    /// Nothing is restored.
    #[serde(default)]
    pub dry_run: bool,
    /// Of a dry run: why the restore would be refused as the instance is now, in a sentence, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_now: Option<String>,
    /// Block devices may be written over.
    #[serde(default)]
    pub overwrite: bool,
    /// Name of the mover.
    pub mover_name: String,
}

/// A disk of the instance, as far as a restore cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDisk {
    /// The disk's target in the domain.
    pub target: DiskTarget,
    /// Its serial number, if the definition sets one.
    pub serial: Option<String>,
    /// Where its content is; none for an empty drive.
    pub source: Option<DiskSource>,
    /// The volume of a storage pool that the definition names in place of that, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_volume: Option<PoolVolume>,
    /// Size that the guest sees, bytes, where the hypervisor could tell.
    pub virtual_bytes: Option<u64>,
    /// It holds something of the instance's own: no drive, and nothing that its guest cannot write to.
    pub is_own: bool,
    /// Why its volume can't be replaced, in a sentence, if it can't.
    pub fixed: Option<String>,
}

impl RestorePlan {
    /// What it wants of the mover and the repository, where nothing but the lease is written.
    pub(in crate::job) fn wants(&self) -> Wants {
        Wants { mover_name: self.mover_name.clone(), instance: Some(self.instance_id), need_bytes: 0, writer: None }
    }
}

/// Makes the plan. What an instance that runs stands in the way of can be told all the same.
pub fn plan(attempt: &Attempt, spec: &RestoreSpec, instance: &Instance) -> Result<RestorePlan, Failure> {
    let refused_now = match refuse_state(instance) {
        Err(failure) if spec.dry_run => Some(refused_now(&failure.text)),
        Err(failure) => return Err(failure),
        Ok(()) => None,
    };
    Ok(RestorePlan {
        backup_id: spec.backup_id,
        key: attempt.job.key,
        attempt: attempt.attempt,
        instance_id: instance.id,
        instance_name: instance.name.clone(),
        disks: instance.disks.iter().map(disk).collect(),
        keep_previous: spec.keep_previous,
        dry_run: spec.dry_run,
        refused_now,
        overwrite: spec.overwrite,
        mover_name: mover_name(attempt),
    })
}

/// What is said of a refusal that may pass, where nothing is restored yet.
pub(super) fn refused_now(why: &str) -> String {
    format!("as it is now, this is refused: {why}")
}

/// The plan still fits the instance, as far as its disks `targets` go. Hours may have passed since it was made.
pub fn refuse_if_changed(plan: &RestorePlan, targets: &[DiskTarget], instance: &Instance) -> Result<(), Failure> {
    if instance.state != PowerState::ShutOff {
        return Err(Failure::new(Code::InstanceStarted, "the stopped instance was started during its restore"));
    }
    refuse_state(instance)?;
    let same = |target: &DiskTarget| {
        let planned = plan.disks.iter().find(|disk| disk.target == *target);
        let found = instance.disks.iter().find(|disk| disk.target == *target).map(disk);
        // A size may not be told again: a volume that stands still has the one that it had.
        planned
            .zip(found)
            .is_some_and(|(planned, found)| *planned == InstanceDisk { virtual_bytes: planned.virtual_bytes, ..found })
    };
    match targets.iter().all(same) {
        true => Ok(()),
        false => {
            let text = format!("the disks of instance `{}` changed since its restore was planned", plan.instance_name);
            Err(Failure::new(Code::SourceChanged, text))
        }
    }
}

fn refuse_state(instance: &Instance) -> Result<(), Failure> {
    if instance.state != PowerState::ShutOff {
        let text = format!("cannot restore instance `{}` in place: it is not shut off", instance.name);
        return Err(Failure::new(Code::InstanceRunning, text));
    }
    if instance.saved_memory {
        // What the guest had in memory of its file systems would be written over those that were put back.
        let text = format!(
            "cannot restore instance `{}` in place: its memory was saved, and its next start would resume that on other disks; start \
             it and shut it down, or give its memory up with `virsh managedsave-remove`",
            instance.name
        );
        return Err(Failure::new(Code::InstanceStateUnsupported, text));
    }
    Ok(())
}

fn disk(disk: &Disk) -> InstanceDisk {
    InstanceDisk {
        target: disk.target.clone(),
        serial: disk.serial.clone(),
        source: disk.source.clone(),
        pool_volume: disk.pool_volume.clone(),
        virtual_bytes: disk.virtual_bytes,
        is_own: disk.source.is_some() && disk.device == DiskDevice::Disk && !disk.read_only,
        fixed: fixed(disk),
    }
}

pub(super) fn fixed(disk: &Disk) -> Option<String> {
    let why = match &disk.source {
        None => "nothing is in it",
        Some(_) if disk.encrypted => "it is encrypted, and what was backed up is plain text",
        Some(_) if disk.shareable => "it is shared, so that other instances may be using it",
        Some(_) if disk.read_only => "the guest cannot write to it, so that it is nothing of this instance's own",
        Some(_) if disk.pinned_chain => {
            "its definition names a backing chain, which QEMU would lay under the new volume"
        }
        Some(_) if disk.may_be_missing => {
            "its definition lets the instance start without it (`startupPolicy`), so that nothing would keep it from starting amid the \
             exchange"
        }
        Some(DiskSource::File { .. } | DiskSource::Block { format: ImageFormat::Raw, .. }) => return None,
        Some(DiskSource::Block { .. }) => "it is an image on a block device, and only raw ones are replaced",
        Some(DiskSource::Network { protocol, .. }) if protocol != RBD => {
            return Some(format!(
                "its source is `{protocol}`, and only files, block devices and RBD images are replaced"
            ));
        }
        Some(DiskSource::Other { .. }) if let Some(PoolVolume { pool, volume }) = &disk.pool_volume => {
            return Some(format!(
                "the hypervisor does not say which file volume `{volume}` of the storage pool `{pool}` is; a pool has to be active"
            ));
        }
        Some(DiskSource::Network { format: ImageFormat::Qcow2, .. }) => {
            "it is a qcow2 image on RBD, where only those that are raw are replaced"
        }
        Some(DiskSource::Network { access, .. }) if access.snapshot.is_some() => "it is a snapshot of an RBD image",
        Some(DiskSource::Network { .. }) => return None,
        Some(DiskSource::Other { kind }) => {
            return Some(format!("its source is of type `{kind}`, and only files and block devices are replaced"));
        }
    };
    Some(why.to_owned())
}
