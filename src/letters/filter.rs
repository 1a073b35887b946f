//! Which letters are meant.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::summary::Summary;
use crate::failure::Class;
use crate::model::id::{HostId, JobId};

/// What a letter has to be; of each sort with several, one of them. What is empty is not asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Message ids of letters.
    pub letters: BTreeSet<String>,
    /// Jobs.
    pub jobs: BTreeSet<JobId>,
    /// Runs of jobs.
    pub runs: BTreeSet<u32>,
    /// Kinds of job.
    pub kinds: BTreeSet<String>,
    /// Hosts that gave up.
    pub hosts: BTreeSet<HostId>,
    /// Instances, by uuid or by name, as the job has them.
    pub instances: BTreeSet<String>,
    /// Repositories.
    pub repositories: BTreeSet<String>,
    /// Codes of failures.
    pub codes: BTreeSet<String>,
    /// Whether trying again can help.
    pub class: Option<Class>,
    /// Labels, all of them.
    pub labels: BTreeMap<String, String>,
    /// Given up at this moment or later.
    pub since: Option<Timestamp>,
    /// Given up before this moment.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether it asks for nothing.
    pub fn is_open(&self) -> bool {
        let sets = [&self.letters, &self.kinds, &self.instances, &self.repositories, &self.codes];
        sets.iter().all(|set| set.is_empty())
            && self.jobs.is_empty()
            && self.runs.is_empty()
            && self.hosts.is_empty()
            && self.labels.is_empty()
            && (self.class, self.since, self.until) == (None, None, None)
    }

    /// Whether a letter is meant.
    pub fn takes(&self, letter: &Summary) -> bool {
        let named = |set: &BTreeSet<String>, text: Option<&String>| one_of(set, text);
        named(&self.letters, Some(&letter.letter_id))
            && one_of(&self.jobs, letter.job_id.as_ref())
            && one_of(&self.runs, letter.run.as_ref())
            && named(&self.kinds, letter.kind.as_ref())
            && one_of(&self.hosts, letter.host.as_ref())
            && named(&self.instances, letter.instance.as_ref())
            && named(&self.repositories, letter.repository.as_ref())
            && named(&self.codes, Some(&letter.code))
            && self.class.is_none_or(|class| class == letter.class)
            && self.labels.iter().all(|(key, value)| letter.labels.get(key) == Some(value))
            && self.since.is_none_or(|since| letter.time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| letter.time.is_some_and(|time| time < until))
    }
}

fn one_of<T: Ord>(set: &BTreeSet<T>, value: Option<&T>) -> bool {
    set.is_empty() || value.is_some_and(|value| set.contains(value))
}
