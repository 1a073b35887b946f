//! One open run as the worker holds it in memory; everything about it is in the journal as well.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::admit::Candidate;
use super::report::RunVoice;
use super::settle::Past;
use crate::message::Properties;
use crate::model::job::{Job, JobKind};

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
    /// Attempts so far.
    pub attempts: u32,
    /// What it has been through.
    pub past: Past,
    /// Not before this moment.
    pub not_before: Option<Timestamp>,
    /// It waits for that moment because its repository fails.
    pub held: bool,
    /// A cancellation was asked for, for this reason.
    pub cancelled: Option<Value>,
}

impl Run {
    /// A run that was just taken.
    pub fn new(job: Job, properties: &Properties, urgent: bool, order: u64) -> Self {
        let job = Arc::new(job);
        let voice = RunVoice::new(job.clone(), properties);
        let past = Past::default();
        Self { job, voice, urgent, order, attempts: 0, past, not_before: None, held: false, cancelled: None }
    }

    /// Whether it waits while its repository fails: not where somebody waits for it, nor where how the repository is was the question.
    pub fn may_be_held(&self) -> bool {
        !self.urgent && self.job.kind() != JobKind::RepoValidate
    }

    /// What the admission has to know of it.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            key: self.job.key,
            urgent: self.urgent,
            may_be_held: self.may_be_held(),
            order: self.order,
            not_before: self.not_before,
            // Only the first attempt counts as the job's start.
            start_before: self.job.start_before.filter(|_| self.attempts == 0),
            instance: self.job.instance.clone(),
            repository: self.job.repository.id,
        }
    }
}
