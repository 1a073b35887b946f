//! Keeping in mind what the guest writes, so that the next backup need not read everything. Pure.
//!
//! A checkpoint is made in the moment of a backup, and its name stands in that backup's manifest. It counts for the next one only as
//! what belongs to the very backup that this one is based on. It belongs to its repository: those of others are left alone.
//!
//! Tracking is never a reason for a backup to fail. A checkpoint whose bitmap was lost, with a killed QEMU or an image that was put
//! back, makes libvirt refuse the backup that asks for it, and nothing has begun then; so it is asked for less.

use std::collections::BTreeMap;

use super::basis::Basis;
use super::plan::{BackupPlan, PlannedDisk};
use crate::host::hypervisor::NewCheckpoint;
use crate::model::id::{BackupId, DiskTarget, RepositoryId};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::model::job::BackupMode;

/// What all names of checkpoints that belong to backups in a repository begin with.
pub fn prefix(repository: RepositoryId) -> String {
    format!("{OURS}{repository}-")
}

/// What the names of all checkpoints that Longshore makes begin with.
pub const OURS: &str = "longshore-";

/// The checkpoint that an attempt makes.
pub fn name(repository: RepositoryId, backup: BackupId, attempt: u32) -> String {
    format!("{}{backup}-{attempt}", prefix(repository))
}

/// Whether that is the name of a checkpoint which an attempt at that backup made. Who writes to the share writes what manifests say.
pub fn is_of(name: &str, repository: RepositoryId, backup: BackupId) -> bool {
    let attempt = name.strip_prefix(&format!("{}{backup}-", prefix(repository)));
    attempt.is_some_and(|attempt| attempt.parse::<u32>().is_ok())
}

/// What is asked of the hypervisor in the moment of the backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// For disks that need not be read whole, the checkpoint since which.
    pub since: BTreeMap<DiskTarget, String>,
    /// The checkpoint to make.
    pub checkpoint: Option<NewCheckpoint>,
}

impl Tracking {
    /// Less and less to ask for, from this to nothing.
    pub fn and_less(self) -> Vec<Tracking> {
        let without_since = Tracking { since: BTreeMap::new(), checkpoint: self.checkpoint.clone() };
        let mut all = vec![self, without_since, Tracking::default()];
        all.dedup();
        all
    }
}

/// The checkpoints of the latest backup that the instance does not know, which a definition made anew or another host has lost.
pub fn unknown<'b>(basis: &'b Basis, known: &'b [String]) -> impl Iterator<Item = NewCheckpoint> + 'b {
    let lost = basis.checkpoints.iter().filter(|(name, _)| !known.contains(name));
    lost.map(|(name, disks)| NewCheckpoint { name: name.clone(), disks: disks.clone() })
}

/// What failed once is not trusted: a later attempt reads everything. A bitmap that missed a part of a block makes the comparison fail,
/// and would make it fail again.
pub fn trusts_bitmaps(plan: &BackupPlan) -> bool {
    plan.attempt == 1
}

/// Decides. `known` are the checkpoints of the instance that belong to the repository.
pub fn choose(plan: &BackupPlan, basis: &Basis, known: &[String]) -> Tracking {
    let Some(name) = &plan.checkpoint else { return Tracking::default() };
    // A publisher who only ever wants full backups gets no bitmaps, which stand in the way of reverting to internal snapshots.
    if plan.mode == BackupMode::Full && known.is_empty() {
        return Tracking::default();
    }
    let since = plan.disks.iter().filter_map(|disk| {
        let checkpoint = &basis.since.get(&disk.target)?.checkpoint;
        let trusted = trusts_bitmaps(plan) && known.contains(checkpoint);
        trusted.then(|| (disk.target.clone(), checkpoint.clone()))
    });
    let disks: Vec<_> = plan.disks.iter().filter(|disk| keeps(disk)).map(|disk| disk.target.clone()).collect();
    let checkpoint = (!disks.is_empty()).then(|| NewCheckpoint { name: name.clone(), disks });
    Tracking { since: since.collect(), checkpoint }
}

/// Only qcow2 can keep a bitmap, and what its data file is given past it no bitmap sees.
fn keeps(disk: &PlannedDisk) -> bool {
    let is_qcow2 = matches!(
        disk.source,
        DiskSource::File { format: ImageFormat::Qcow2, .. } | DiskSource::Block { format: ImageFormat::Qcow2, .. }
    );
    is_qcow2 && !disk.data_elsewhere
}
