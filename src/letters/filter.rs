//! Which letters are meant.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::name::{Ambiguous, named, stands_for};
use super::summary::Summary;
use crate::failure::Class;
use crate::model::id::HostId;

/// What a letter has to be; of each sort with several, one of them. What is empty is not asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Message ids of letters, or what stands for them.
    pub letters: BTreeSet<String>,
    /// Jobs, by their ids or what stands for them.
    pub jobs: BTreeSet<String>,
    /// Those ids are whole: none that is longer is meant.
    pub whole: bool,
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
    /// Superseded by a later success. Which those are is known once all that lies in the queue was seen: [`Filter::takes`] does not ask.
    pub superseded: bool,
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
            && !self.superseded
    }

    /// Whether a letter is meant by its id.
    pub fn names(&self, letter: &Summary) -> bool {
        self.is_one(&self.letters, &letter.letter_id)
    }

    fn is_one(&self, words: &BTreeSet<String>, id: &str) -> bool {
        if self.whole { words.contains(id) } else { words.iter().any(|word| stands_for(word, id)) }
    }

    /// The same with whole ids in place of those that were typed short. A word that stands for none of the letters stays.
    ///
    /// # Errors
    /// One stands for several.
    pub fn resolved(&self, letters: &[Summary]) -> Result<Self, Ambiguous> {
        let ids: Vec<_> = letters.iter().map(|letter| letter.letter_id.as_str()).collect();
        let jobs: Vec<_> = letters.iter().filter_map(|letter| Some(letter.job_id?.to_string())).collect();
        let jobs: Vec<_> = jobs.iter().map(String::as_str).collect();
        let whole = |words: &BTreeSet<String>, ids: &[&str]| -> Result<BTreeSet<String>, Ambiguous> {
            words.iter().map(|word| Ok(named(word, ids.iter().copied())?.unwrap_or(word).to_owned())).collect()
        };
        Ok(Self { letters: whole(&self.letters, &ids)?, jobs: whole(&self.jobs, &jobs)?, whole: true, ..self.clone() })
    }

    /// Whether a letter is meant.
    pub fn takes(&self, letter: &Summary) -> bool {
        let named = |set: &BTreeSet<String>, text: Option<&String>| one_of(set, text);
        (self.letters.is_empty() || self.names(letter))
            && (self.jobs.is_empty() || letter.job_id.is_some_and(|job| self.is_one(&self.jobs, &job.to_string())))
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
