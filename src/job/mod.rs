//! The work: for each kind of job facts, a plan and the steps that carry it out.
//!
//! It promises that an attempt ends in one outcome with everything that it held on the host given back or named as a
//! left-over, whatever happens in between; and that an attempt that a crash cut short can be unwound from its plan and
//! its records alone. It deliberately knows no queue and no journal: who records the steps, hears the progress and decides
//! about another attempt is the caller. This file has the only match on a job's kind.

pub mod backup;

use std::sync::Arc;

use crate::host::guard::Guards;
use crate::host::hypervisor::Hypervisor;
use crate::model::id::BackupId;
use crate::model::job::Job;

/// The doors to the host that jobs use.
#[derive(Clone)]
pub struct Doors {
    /// libvirt.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Starts guards.
    pub guards: Arc<dyn Guards>,
}

/// One execution of a job.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The job and run.
    pub job: Job,
    /// Attempt within the run, from 1.
    pub attempt: u32,
    /// Drawn once per run and journalled by the caller, so that two attempts of a run can never both be published.
    pub backup_id: BackupId,
}
