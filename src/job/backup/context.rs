//! What the steps of one backup hand to each other. After a crash it is built from the plan and the records alone, so
//! whatever undo and release need must come from there or be found out from the world.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::basis::Basis;
use super::facts::Facts;
use super::late::LateCall;
use super::plan::BackupPlan;
use super::result::BackupResult;
use super::stall::Sampler;
use super::steps::Begun;
use super::tracking::Tracking;
use crate::failure::{Code, Failure};
use crate::host::guard::Guard;
use crate::host::hypervisor::GuestFileSystem;
use crate::job::common::{Common, JobContext};
use crate::job::settings::JobSettings;
use crate::job::{Attempt, Doors, JobProgress};
use crate::model::manifest::{Manifest, QuiesceRecord};
use crate::mover::protocol::CopiedDisk;
use crate::saga::{End, Outcome};

/// The guard of this attempt, shared with the task that watches over the source.
pub(super) type GuardSlot = Arc<Mutex<Option<Box<dyn Guard>>>>;

/// The steps' common state.
pub(super) struct Context {
    /// What it has in common with every other job.
    pub common: Common,
    /// The plan.
    pub plan: Arc<BackupPlan>,
    /// What the plan was made from; none while unwinding after a crash.
    pub facts: Option<Facts>,
    /// The guard, from the source's acquiring to its release.
    pub guard: GuardSlot,
    /// The moment of the backup has been reached: from now on the source may not go away.
    pub reached: Arc<AtomicBool>,
    /// The guest's file systems as the agent lists them, or why it didn't.
    pub file_systems: Option<Result<Vec<GuestFileSystem>, Failure>>,
    /// The begin call, which goes on by itself when nobody waits for it any more.
    pub begin: Option<JoinHandle<Result<Begun, Failure>>>,
    /// The freeze call, likewise.
    pub freeze: Option<JoinHandle<Result<u32, Failure>>>,
    /// A freeze that failed and may still come about.
    pub late_freeze: Option<LateCall>,
    /// A begin that failed and may still come about.
    pub late_begin: Option<LateCall>,
    /// libvirt was asked to begin the backup; after a crash, may have been.
    pub begin_asked: bool,
    /// How long the begin call took, milliseconds.
    pub begin_ms: Option<u64>,
    /// Looks at what the guest's writes take.
    pub sampler: Option<Sampler>,
    /// The worst of that, milliseconds, once it has been stopped.
    pub worst_write_ms: Option<u64>,
    /// The guard has been told of a freeze and not yet of the thaw.
    pub guard_freezing: bool,
    /// Process id of the guard that was left to its work: every later try of what it goes on with names it.
    pub left_guard: Option<u32>,
    /// What the guard said to the thaw, if that was bad.
    pub guard_verdict: Option<Failure>,
    /// The task that watches over the source.
    pub watch: Option<AbortOnDropHandle<()>>,
    /// Until when a thaw is repeated; set by the first thaw.
    pub thaw_until: Option<Instant>,
    /// The guest may have been asked to freeze and has not confirmed that it is thawed.
    pub maybe_frozen: bool,
    /// The moment of the backup.
    pub taken_at: Option<Timestamp>,
    /// What the freeze reached.
    pub quiesce: Option<QuiesceRecord>,
    /// What the disks are based on.
    pub basis: Basis,
    /// What is asked of the hypervisor besides, and in the moment of the backup what of it was had.
    pub tracking: Tracking,
    /// Checkpoints of the instance that earlier backups in this repository have made.
    pub old_checkpoints: Vec<String>,
    /// The number of the connection to libvirt before a push was begun.
    pub connection: Option<u64>,
    /// Bytes that QEMU had to write in a push; none where libvirt can't tell.
    pub written_bytes: Option<u64>,
    /// The copied disks.
    pub copied: Vec<CopiedDisk>,
    /// The manifest, from sealing on; after a crash from the records.
    pub manifest: Option<Manifest>,
    /// The backup, where an earlier attempt of this run is found to have published it.
    pub published: Option<Manifest>,
}

impl Context {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        plan: BackupPlan,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        Self {
            common: Common::new(doors, settings, attempt, plan.wants(), progress),
            plan: Arc::new(plan),
            facts: None,
            guard: Default::default(),
            reached: Default::default(),
            file_systems: None,
            begin: None,
            freeze: None,
            late_freeze: None,
            late_begin: None,
            begin_asked: false,
            begin_ms: None,
            sampler: None,
            worst_write_ms: None,
            guard_freezing: false,
            left_guard: None,
            guard_verdict: None,
            watch: None,
            thaw_until: None,
            maybe_frozen: false,
            taken_at: None,
            quiesce: None,
            basis: Basis::default(),
            tracking: Tracking::default(),
            old_checkpoints: Vec::new(),
            connection: None,
            written_bytes: None,
            copied: Vec::new(),
            manifest: None,
            published: None,
        }
    }

    /// Adds what the steps could only warn of. An attempt that only found out that an earlier one of its run had published the
    /// backup has taken back what was its own, and the run is completed by the backup that is there.
    pub fn finish(self, mut outcome: Outcome) -> Outcome {
        if let (End::Failed { failure }, Some(manifest)) = (&outcome.end, self.published)
            && failure.code == Code::BackupExists
        {
            let number = manifest.number;
            match BackupResult::new(manifest, number, Vec::new()).to_value() {
                Ok(value) => outcome.end = End::Completed { value },
                Err(failure) => outcome.warnings.push(failure),
            }
        }
        outcome.warnings.extend(self.common.late_warnings);
        outcome
    }

    /// The facts, in a step that is only done going forward.
    pub fn facts(&self) -> Result<&Facts, Failure> {
        self.facts
            .as_ref()
            .ok_or_else(|| Failure::new(Code::Internal, "a step of the way forward was taken without facts"))
    }
}

impl JobContext for Context {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}
