//! The marks that lie among the letters that are dealt with: each leaves the queue after its letter, and never before.
//!
//! A mark that went first would leave its letter as one that nothing has superseded, to be replayed with the others. One that is left
//! behind says something of a letter that is there no more, which is nothing to anybody, and it goes when that is sure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::letter::Letter;
use super::mark::{MARKS_MAX, STRAY_AFTER, Subject, subject_of};
use crate::broker::Settle;

/// The letters that have gone while they were dealt with, however often the reading began anew.
pub(super) type Gone = BTreeSet<Subject>;

/// When a mark without its letter goes, where all that lay there was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strays {
    /// When its letter would have come by now.
    Old,
    /// At once: who throws all away means what is said of letters that are not there, too.
    All,
}

/// The marks of one reading.
pub(super) struct HeldMarks<'g> {
    gone: &'g mut Gone,
    /// Letters that are there, and how many copies of each.
    there: BTreeMap<Subject, usize>,
    held: Vec<(Subject, Timestamp, Box<dyn Settle>)>,
}

impl<'g> HeldMarks<'g> {
    pub(super) fn new(gone: &'g mut Gone) -> Self {
        Self { gone, there: BTreeMap::new(), held: Vec::new() }
    }

    /// Keeps a mark, and gives any other message back. Marks that are too many for one reading stay in their place.
    pub(super) fn take(&mut self, letter: Letter, settle: Box<dyn Settle>) -> Option<(Letter, Box<dyn Settle>)> {
        if let Some(mark) = letter.mark() {
            if self.held.len() < MARKS_MAX {
                self.held.push((subject_of(mark), mark.time, settle));
            }
            return None;
        }
        if let Some(subject) = letter.subject() {
            *self.there.entry(subject).or_default() += 1;
        }
        Some((letter, settle))
    }

    /// A letter has left the queue.
    pub(super) fn goes(&mut self, letter: &Letter) {
        let Some(subject) = letter.subject() else { return };
        if let Some(copies) = self.there.get_mut(&subject) {
            *copies = copies.saturating_sub(1);
        }
        self.gone.insert(subject);
    }

    /// Takes those off the queue whose letter has gone; and of those whose letter was not there these, if all that lay there was seen. What
    /// the broker does not hear of stays, and goes another time. Answers how many of the second sort went.
    pub(super) async fn settle(self, strays: Option<Strays>, now: Timestamp) -> u64 {
        let mut taken = 0;
        for (subject, time, settle) in self.held {
            let is_there = self.there.get(&subject).is_some_and(|copies| *copies > 0);
            let is_stray = match strays {
                None => false,
                Some(Strays::Old) => now.duration_since(time) >= STRAY_AFTER,
                Some(Strays::All) => true,
            };
            let has_gone = self.gone.contains(&subject);
            if !is_there && (is_stray || has_gone) && settle.ack().await {
                taken += u64::from(!has_gone);
            }
        }
        taken
    }
}
