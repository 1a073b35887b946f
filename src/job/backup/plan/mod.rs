//! From facts to a plan, without looking at the world again: which disks, how their bytes travel, whether to freeze, under
//! which names and limits. The plan is journalled before the first step and is all that unwinding needs after a crash.

mod disks;
mod names;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

pub use disks::{PlannedDisk, refuse_if_changed};
pub use names::is_abandoned;
pub(super) use names::{attempt_of, is_scratch};

use super::facts::Facts;
use super::tracking::{self, Tracking};
use crate::failure::{Code, Failure};
use crate::host::guard::SCRATCH_RESERVE_BYTES;
use crate::host::hypervisor::{DomainJob, PullDisk, PushDisk};
use crate::job::Attempt;
use crate::job::common::Wants;
use crate::job::names::mover_name;
use crate::job::settings::{JobSettings, REPOSITORY_MARGIN_BYTES, SCRATCH_BYTES_MIN, SCRATCH_RESERVE_DIVISOR};
use crate::model::id::{BackupId, InstanceId, InstanceName};
use crate::model::instance::{DiskSource, Instance, PowerState};
use crate::model::job::{BackupMode, BackupSpec, FullEvery, Quiesce, RunKey, Verification};
use crate::model::manifest::{Proof, SkippedDisk, TransferUsed};
use crate::model::owner::Owner;

/// What will be done, and under which names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPlan {
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
    /// What it was doing when the facts were gathered.
    pub instance_state: PowerState,
    /// How much is stored.
    #[serde(default)]
    pub mode: BackupMode,
    /// In the mode `auto`, most images in a chain.
    #[serde(default)]
    pub full_every: FullEvery,
    /// How the bytes travel.
    pub source: SourcePlan,
    /// The checkpoint that may be made in its moment; none where there is nobody who could.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Whether the guest is frozen for the moment of the backup.
    pub freeze: FreezePlan,
    /// How far the backup is proven.
    pub verification: Proof,
    /// The disks in the backup.
    pub disks: Vec<PlannedDisk>,
    /// The disks left out.
    pub skipped_disks: Vec<SkippedDisk>,
    /// Name of the mover.
    pub mover_name: String,
    /// Last part of the staging directory's name.
    pub staging_suffix: String,
}

/// How the bytes leave the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePlan {
    /// Through the pull export of the running instance.
    Pull(PullPlan),
    /// QEMU writes the running instance's disks into the staging directory.
    Push(PushPlan),
    /// From the volumes of the stopped instance.
    Stopped,
}

/// The host-local things of a pull backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullPlan {
    /// Directory of the export's socket; QEMU's own.
    pub socket_dir: PathBuf,
    /// The export's socket.
    pub socket: PathBuf,
    /// Directory of this attempt's scratch files.
    pub scratch_dir: PathBuf,
    /// One scratch file a disk, in the order of the plan's disks.
    pub scratch: Vec<PathBuf>,
    /// Bytes that the scratch may take together.
    pub scratch_limit_bytes: u64,
    /// Who QEMU runs as, where libvirt says; else it runs as we do.
    pub qemu_owner: Option<Owner>,
}

/// The host-local things of a push backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushPlan {
    /// Where the host sees the staging directory.
    pub place: PathBuf,
    /// One image a disk as the host sees it, in the order of the plan's disks.
    pub images: Vec<PathBuf>,
    /// Who QEMU runs as, where libvirt says; else it runs as we do.
    pub qemu_owner: Option<Owner>,
}

/// The freeze policy, with what the facts say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezePlan {
    /// The job's policy.
    pub requested: Quiesce,
    /// The guest will be asked to freeze.
    pub attempted: bool,
    /// Why it won't although the policy would have it, in a sentence.
    pub reason: Option<String>,
}

/// Room in a repository, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Without which copying has no sense.
    pub least: u64,
    /// With which it surely fits: more than that where nobody can tell what a disk holds.
    pub most: u64,
}

impl BackupPlan {
    /// What it wants of the mover and the repository.
    pub(in crate::job) fn wants(&self) -> Wants {
        // Where libvirt changes no users QEMU runs as we do.
        let as_us = || Owner { user: geteuid().as_raw(), group: getegid().as_raw() };
        let writer = self.push().map(|push| push.qemu_owner.unwrap_or_else(as_us));
        Wants {
            mover_name: self.mover_name.clone(),
            instance: Some(self.instance_id),
            // How much is to be stored is only known when it is seen what is there already.
            need_bytes: REPOSITORY_MARGIN_BYTES,
            writer,
        }
    }

    /// What the images will take in the repository: what those disks hold that are to be stored whole, and never more than what the
    /// guest can see. Of the others nobody can tell what has changed.
    pub fn room(&self, whole: impl Fn(&PlannedDisk) -> bool) -> Room {
        let of = |unknown: fn(&PlannedDisk) -> u64| need_bytes(self.disks.iter().filter(|disk| whole(disk)), unknown);
        Room { least: of(|_| 0), most: of(|disk| disk.virtual_bytes.unwrap_or(0)) }
    }

    /// The pull backup to begin, for a plan that pulls.
    pub fn pull(&self) -> Option<&PullPlan> {
        match &self.source {
            SourcePlan::Pull(pull) => Some(pull),
            SourcePlan::Push(_) | SourcePlan::Stopped => None,
        }
    }

    /// The push backup to begin, for a plan that pushes.
    pub fn push(&self) -> Option<&PushPlan> {
        match &self.source {
            SourcePlan::Push(push) => Some(push),
            SourcePlan::Pull(_) | SourcePlan::Stopped => None,
        }
    }

    /// libvirt's job, as it is known to be ours; none where there will be none.
    pub fn domain_job(&self) -> Option<DomainJob> {
        match &self.source {
            SourcePlan::Pull(pull) => Some(DomainJob::Pull { socket: pull.socket.clone() }),
            SourcePlan::Push(push) => Some(DomainJob::Push { images: push.images.clone() }),
            SourcePlan::Stopped => None,
        }
    }

    /// How the bytes travel, in a word.
    pub fn transfer(&self) -> TransferUsed {
        match &self.source {
            SourcePlan::Pull(_) => TransferUsed::Pull,
            SourcePlan::Push(_) => TransferUsed::Push,
            SourcePlan::Stopped => TransferUsed::Stopped,
        }
    }

    /// The disks of the push backup with their images.
    pub fn push_disks(&self, push: &PushPlan, tracking: &Tracking) -> Vec<PushDisk> {
        let pairs = self.disks.iter().zip(&push.images);
        let disk = |(disk, image): (&PlannedDisk, &PathBuf)| PushDisk {
            target: disk.target.clone(),
            image: image.clone(),
            since: tracking.since.get(&disk.target).cloned(),
        };
        pairs.map(disk).collect()
    }

    /// The disks of the pull backup with their scratch files.
    pub fn pull_disks(&self, pull: &PullPlan, tracking: &Tracking) -> Vec<PullDisk> {
        let pairs = self.disks.iter().zip(&pull.scratch);
        let since = |disk: &PlannedDisk| tracking.since.get(&disk.target).cloned();
        let disk = |(disk, scratch): (&PlannedDisk, &PathBuf)| PullDisk {
            target: disk.target.clone(),
            scratch: scratch.clone(),
            since: since(disk),
        };
        pairs.map(disk).collect()
    }
}

/// Makes the plan.
pub fn plan(
    attempt: &Attempt,
    spec: &BackupSpec,
    settings: &JobSettings,
    facts: &Facts,
) -> Result<BackupPlan, Failure> {
    let instance = &facts.instance;
    let transfer = choose_transfer(spec, settings, facts)?;
    let (disks, skipped_disks) = disks::select(instance, &spec.exclude_disks, transfer)?;
    let freeze = plan_freeze(spec.quiesce, instance)?;
    let name = names::attempt_name(settings, attempt);
    let source = match transfer {
        TransferUsed::Stopped => SourcePlan::Stopped,
        TransferUsed::Push => {
            let place = settings.run_dir.join(&name);
            let images = disks.iter().map(|disk| names::image(&place, &disk.target)).collect();
            SourcePlan::Push(PushPlan { place, images, qemu_owner: facts.qemu_owner })
        }
        TransferUsed::Pull => {
            let socket_dir = settings.run_dir.join(&name);
            let scratch_dir = settings.scratch_dir.join(&name);
            SourcePlan::Pull(PullPlan {
                socket: names::socket(&socket_dir)?,
                socket_dir,
                scratch: disks.iter().map(|disk| names::scratch_file(&scratch_dir, &disk.target)).collect(),
                scratch_dir,
                scratch_limit_bytes: scratch_limit(settings, facts, &disks)?,
                qemu_owner: facts.qemu_owner,
            })
        }
    };
    let tracked = transfer != TransferUsed::Stopped && facts.versions.allow_incremental().is_ok();
    let checkpoint = || tracking::name(attempt.job.repository.id, attempt.backup_id, attempt.attempt);
    Ok(BackupPlan {
        checkpoint: tracked.then(checkpoint),
        backup_id: attempt.backup_id,
        key: attempt.job.key,
        attempt: attempt.attempt,
        instance_id: instance.id,
        instance_name: instance.name.clone(),
        instance_state: instance.state,
        mode: spec.mode,
        full_every: spec.full_every,
        verification: choose_proof(spec.verification, transfer, &disks),
        staging_suffix: names::staging_suffix(settings, attempt),
        source,
        freeze,
        disks,
        skipped_disks,
        mover_name: mover_name(attempt),
    })
}

/// A paused instance is backed up like a running one: QEMU does the work, and its disks stand still anyway. One that QEMU paused
/// for an I/O error is refused, since its disks lack writes that its guest believes to be under way. A stopped one has nobody
/// who could push.
fn choose_transfer(spec: &BackupSpec, settings: &JobSettings, facts: &Facts) -> Result<TransferUsed, Failure> {
    let instance = &facts.instance;
    match instance.state {
        PowerState::ShutOff => Ok(TransferUsed::Stopped),
        PowerState::Running | PowerState::Paused => {
            facts.versions.allow_full()?;
            Ok(if settings.pushes(spec.transfer) { TransferUsed::Push } else { TransferUsed::Pull })
        }
        PowerState::PausedByIoError => {
            Err(unsupported_state(instance, "QEMU paused it because of an I/O error on a disk"))
        }
        PowerState::ShuttingDown => {
            let text = format!("cannot back up instance `{}` while it is being shut down", instance.name);
            Err(Failure::new(Code::InstanceStopped, text))
        }
        PowerState::Other => Err(unsupported_state(instance, "it is neither running nor shut off")),
    }
}

fn unsupported_state(instance: &Instance, why: &str) -> Failure {
    Failure::new(Code::InstanceStateUnsupported, format!("cannot back up instance `{}`: {why}", instance.name))
}

fn plan_freeze(requested: Quiesce, instance: &Instance) -> Result<FreezePlan, Failure> {
    let without = |reason: Option<&str>| FreezePlan { requested, attempted: false, reason: reason.map(str::to_owned) };
    match (requested, instance.state) {
        (Quiesce::Off, _) => Ok(without(None)),
        (_, PowerState::ShutOff) => Ok(without(Some(
            "the instance was shut off: there was nothing to freeze, and nobody can say how its guest ended",
        ))),
        (Quiesce::Prefer, PowerState::Paused) => {
            Ok(without(Some("the instance was paused, so that its guest could not freeze")))
        }
        (Quiesce::Require, PowerState::Paused) => {
            Err(unsupported_state(instance, "it is paused, and the job requires that its guest is frozen"))
        }
        (Quiesce::Prefer, _) if !instance.agent_configured => {
            Ok(without(Some("the instance has no guest agent configured")))
        }
        (Quiesce::Require, _) if !instance.agent_configured => {
            let text =
                format!("instance `{}` has no guest agent configured, and the job requires a freeze", instance.name);
            Err(Failure::new(Code::AgentMissing, text))
        }
        (Quiesce::Prefer | Quiesce::Require, _) => Ok(FreezePlan { requested, attempted: true, reason: None }),
    }
}

/// A block device has no modification time worth looking at, nor has what is on the network: only comparing shows that it stood still. A push has nothing to be
/// compared with, and without its proof is no backup: libvirt calls an empty one a success.
fn choose_proof(asked: Verification, transfer: TransferUsed, disks: &[PlannedDisk]) -> Proof {
    let is_timeless = |disk: &PlannedDisk| matches!(disk.source, DiskSource::Block { .. } | DiskSource::Network { .. });
    let on_devices = disks.iter().any(is_timeless);
    match (transfer, asked) {
        (TransferUsed::Push, _) => Proof::Structure,
        (TransferUsed::Stopped, _) if on_devices => Proof::Compared,
        (_, Verification::Compared) => Proof::Compared,
        (_, Verification::Unverified) => Proof::Unverified,
    }
}

/// `unknown` says what to take for a disk of which nobody can tell, such as a block device.
fn need_bytes<'d>(disks: impl Iterator<Item = &'d PlannedDisk>, unknown: fn(&PlannedDisk) -> u64) -> u64 {
    let data = disks.map(|disk| match (disk.allocated_bytes, disk.virtual_bytes) {
        (Some(allocated), Some(seen)) => allocated.min(seen),
        (Some(allocated), None) => allocated,
        (None, _) => unknown(disk),
    });
    data.fold(REPOSITORY_MARGIN_BYTES, u64::saturating_add)
}

/// What the scratch may take: the configured limit, or what the host can spare.
fn scratch_limit(settings: &JobSettings, facts: &Facts, disks: &[PlannedDisk]) -> Result<u64, Failure> {
    let free = facts.scratch_free_bytes.unwrap_or(0);
    let spare = free - (free / SCRATCH_RESERVE_DIVISOR).max(SCRATCH_RESERVE_BYTES).min(free);
    let allowed = settings.scratch_limit_bytes.map_or(spare, |limit| limit.min(spare));
    let whole = disks.iter().try_fold(0_u64, |sum, disk| Some(sum.saturating_add(disk.virtual_bytes?)));
    let least = whole.map_or(SCRATCH_BYTES_MIN, |whole| whole.min(SCRATCH_BYTES_MIN));
    if allowed < least {
        let text = format!(
            "`{}` has {allowed} bytes to spare for scratch, {least} are needed",
            settings.scratch_dir.display()
        );
        return Err(Failure::new(Code::ScratchTooSmall, text).caused_by(format!("{free} bytes are free there")));
    }
    Ok(allowed)
}
