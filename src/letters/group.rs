//! How many letters there are of each sort.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::summary::Summary;

/// By what letters are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// The failure's code.
    Code,
    /// The host.
    Host,
    /// The kind of job.
    Kind,
    /// The instance.
    Instance,
    /// The repository.
    Repository,
}

impl GroupBy {
    fn key(self, letter: &Summary) -> Option<String> {
        match self {
            GroupBy::Code => Some(letter.code.clone()),
            GroupBy::Host => letter.host.as_ref().map(ToString::to_string),
            GroupBy::Kind => letter.kind.clone(),
            GroupBy::Instance => letter.instance.clone(),
            GroupBy::Repository => letter.repository.clone(),
        }
    }
}

/// Letters that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What; none for those that do not say.
    pub key: Option<String>,
    /// How many.
    pub count: u64,
    /// How many of them a later success has superseded.
    pub made_good: u64,
    /// When the first was given up.
    pub oldest: Option<Timestamp>,
    /// When the last was.
    pub newest: Option<Timestamp>,
}

/// Counts letters, the most frequent first.
pub fn groups<'a>(letters: impl IntoIterator<Item = &'a Summary>, by: GroupBy) -> Vec<Group> {
    let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
    for letter in letters {
        let key = by.key(letter);
        let group =
            groups.entry(key.clone()).or_insert(Group { key, count: 0, made_good: 0, oldest: None, newest: None });
        group.count += 1;
        group.made_good += u64::from(letter.made_good_by.is_some());
        group.oldest = group.oldest.into_iter().chain(letter.time).min();
        group.newest = group.newest.max(letter.time);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}
