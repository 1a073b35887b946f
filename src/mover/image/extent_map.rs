//! What a server says of the extents of its export, asked piece by piece while one walks through it.

use std::collections::VecDeque;
use std::ops::Range;

use crate::mover::nbd::{Connection, Extent, NbdError};

/// Bytes that one question is about. A server may say less.
const QUESTION_BYTES: u64 = 1024 * 1024 * 1024;

/// Answers for ranges in rising order.
#[derive(Debug)]
pub(super) struct ExtentMap<'c> {
    connection: &'c Connection,
    /// Which of the contexts that the server has; none where it has not the one that was asked for.
    context: Option<usize>,
    says_so: fn(&Extent) -> bool,
    /// End of each known extent and whether the server says so of it, in order.
    known: VecDeque<(u64, bool)>,
    known_until: u64,
}

impl<'c> ExtentMap<'c> {
    /// What reads as zeros, by the first context that was asked for.
    pub(super) fn of_zeros(connection: &'c Connection) -> Self {
        Self::new(connection, 0, Extent::reads_as_zeros)
    }

    /// What has been written to since, by the second one; none where the server has none.
    pub(super) fn of_changes(connection: &'c Connection) -> Option<Self> {
        let map = Self::new(connection, 1, Extent::is_dirty);
        map.context.is_some().then_some(map)
    }

    /// What a chain's topmost image has itself, by the second one; none where the server has none.
    pub(super) fn of_its_own(connection: &'c Connection) -> Option<Self> {
        let map = Self::new(connection, 1, Extent::is_its_own);
        map.context.is_some().then_some(map)
    }

    fn new(connection: &'c Connection, asked_for: usize, says_so: fn(&Extent) -> bool) -> Self {
        let contexts = &connection.export().contexts;
        let there = |context: &Option<u32>| context.is_some();
        let context = contexts.get(asked_for).is_some_and(there);
        let before = contexts.iter().take(asked_for).filter(|context| there(context)).count();
        Self { connection, context: context.then_some(before), says_so, known: VecDeque::new(), known_until: 0 }
    }

    /// Whether the server says so of all of `start..end`. One that cannot say makes it no.
    pub(super) async fn all(&mut self, start: u64, end: u64) -> Result<bool, NbdError> {
        let runs = self.runs(start, end).await?;
        Ok(runs.first() == Some(&(start..end)))
    }

    /// Of which parts of `start..end` it does.
    pub(super) async fn runs(&mut self, start: u64, end: u64) -> Result<Vec<Range<u64>>, NbdError> {
        let Some(context) = self.context else { return Ok(Vec::new()) };
        while self.known.front().is_some_and(|(until, _)| *until <= start) {
            self.known.pop_front();
        }
        while self.known_until < end {
            let length = QUESTION_BYTES.min(self.connection.export().size.saturating_sub(self.known_until));
            let answer = self.connection.block_status(self.known_until, length).await?;
            for extent in answer.get(context).into_iter().flatten() {
                self.known_until += extent.length;
                let said = (self.says_so)(extent);
                match self.known.back_mut() {
                    Some((until, before)) if *before == said => *until = self.known_until,
                    _ => self.known.push_back((self.known_until, said)),
                }
            }
        }
        let (mut from, mut runs) = (start, Vec::new());
        for (until, said) in &self.known {
            let until = (*until).min(end);
            if *said && from < until {
                runs.push(from..until);
            }
            from = from.max(until);
            if from >= end {
                break;
            }
        }
        Ok(runs)
    }
}
