//! Marks that lie among the letters: which letters they are on, and which letters are there no more.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::letter::Letter;
use super::summary::Summary;
use crate::message::Superseded;
use crate::model::id::{EventId, HostId, JobId};
use crate::model::job::{JobKind, RunKey};

/// How old a mark without its letter is before it counts as one whose letter is gone: both leave a host's outbox one after the other,
/// and the letter may have been held up for a while, when the queue was not there. A mark that lies there longer harms nobody.
pub const STRAY_AFTER: SignedDuration = SignedDuration::from_hours(6);
/// Marks that are remembered of one look, and held at a time.
pub const MARKS_MAX: usize = 200_000;

/// The letter that a mark is on: itself by its id, and whose it has to be, so that no host speaks of another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subject {
    pub(super) host: HostId,
    pub(super) letter_id: EventId,
    pub(super) kind: JobKind,
    pub(super) key: RunKey,
}

/// What superseded a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SupersededBy {
    /// The later job that ended well.
    pub job_id: JobId,
    /// Its run.
    pub run: u32,
    /// When it did.
    pub time: Timestamp,
}

/// The letter that a mark is on.
pub(super) fn subject_of(mark: &Superseded) -> Subject {
    let key = RunKey { job_id: mark.job_id, run: mark.run };
    Subject { host: mark.host.clone(), letter_id: mark.letter_id, kind: mark.kind, key }
}

/// What one look through the queue has shown of marks.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    by: HashMap<Subject, SupersededBy>,
}

impl Marks {
    /// Takes a message of the queue if it is a mark to be believed; gives back any other. Of several on one letter the last success
    /// counts. What comes after [`MARKS_MAX`] is as if it were not there.
    pub fn take(&mut self, letter: Letter) -> Option<Letter> {
        let Some(mark) = letter.mark() else { return Some(letter) };
        let by = SupersededBy { job_id: mark.by_job_id, run: mark.by_run, time: mark.time };
        let subject = subject_of(mark);
        let is_later = self.by.get(&subject).is_none_or(|known| known.time < by.time);
        if is_later && (self.by.len() < MARKS_MAX || self.by.contains_key(&subject)) {
            self.by.insert(subject, by);
        }
        None
    }

    /// What superseded a letter, if something did: no success does so that was before it.
    pub fn of(&self, letter: &Summary) -> Option<&SupersededBy> {
        let by = self.by.get(letter.subject.as_ref()?)?;
        letter.time.is_some_and(|written| by.time >= written).then_some(by)
    }

    /// Marks the letters, all that are there. Answers how many marks are on none of them.
    pub fn put(&self, letters: &mut [Summary]) -> usize {
        let mut there = HashSet::new();
        for letter in letters {
            letter.made_good_by = self.of(letter).cloned();
            there.extend(letter.subject.clone().filter(|subject| self.by.contains_key(subject)));
        }
        self.by.len() - there.len()
    }
}
