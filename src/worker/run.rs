//! One open run as the worker holds it in memory; everything about it is in the journal as well.

use std::sync::Arc;

use jiff::Timestamp;

use super::admit::Candidate;
use super::report::RunVoice;
use super::settle::Past;
use crate::message::Properties;
use crate::model::id::InstanceRef;
use crate::model::job::Job;

/// A run that has not ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// The job.
    pub job: Arc<Job>,
    /// Says what becomes of it.
    pub voice: RunVoice,
    /// It came through the urgent queue.
    pub urgent: bool,
    /// Order in which it was taken.
    pub order: u64,
    /// The instance as jobs are kept apart by: the uuid, where the host could tell it.
    pub instance: InstanceRef,
    /// Attempts so far.
    pub attempts: u32,
    /// What it has been through.
    pub past: Past,
    /// Not before this moment.
    pub not_before: Option<Timestamp>,
}

impl Run {
    /// A run that was just taken.
    pub fn new(job: Job, properties: &Properties, urgent: bool, order: u64) -> Self {
        let job = Arc::new(job);
        let voice = RunVoice::new(job.clone(), properties);
        let instance = job.instance.clone();
        Self { job, voice, urgent, order, instance, attempts: 0, past: Past::default(), not_before: None }
    }

    /// What the admission has to know of it.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            key: self.job.key,
            urgent: self.urgent,
            order: self.order,
            not_before: self.not_before,
            instance: self.instance.clone(),
            repository: self.job.repository.id,
        }
    }
}
