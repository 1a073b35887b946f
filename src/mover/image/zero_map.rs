//! What of an export reads as zeros, asked piece by piece while one walks through it.

use std::collections::VecDeque;

use crate::mover::nbd::{Connection, NbdError};

/// Bytes that one question is about. A server may say less.
const QUESTION_BYTES: u64 = 1024 * 1024 * 1024;

/// Answers for ranges in rising order.
#[derive(Debug)]
pub(super) struct ZeroMap<'c> {
    connection: &'c Connection,
    /// End of each known extent and whether it reads as zeros, in order.
    known: VecDeque<(u64, bool)>,
    known_until: u64,
}

impl<'c> ZeroMap<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self { connection, known: VecDeque::new(), known_until: 0 }
    }

    /// Whether all of `start..end` is known to read as zeros. A server that cannot say makes it no.
    pub(super) async fn reads_as_zeros(&mut self, start: u64, end: u64) -> Result<bool, NbdError> {
        if self.connection.export().contexts.first().copied().flatten().is_none() {
            return Ok(false);
        }
        while self.known.front().is_some_and(|(until, _)| *until <= start) {
            self.known.pop_front();
        }
        while self.known_until < end {
            let length = QUESTION_BYTES.min(self.connection.export().size.saturating_sub(self.known_until));
            let answer = self.connection.block_status(self.known_until, length).await?;
            for extent in answer.first().into_iter().flatten() {
                self.known_until += extent.length;
                match self.known.back_mut() {
                    Some((until, zero)) if *zero == extent.reads_as_zeros() => *until = self.known_until,
                    _ => self.known.push_back((self.known_until, extent.reads_as_zeros())),
                }
            }
        }
        let mut from = start;
        for (until, zero) in &self.known {
            if !zero && *until > from {
                return Ok(false);
            }
            from = from.max(*until);
            if from >= end {
                break;
            }
        }
        Ok(true)
    }
}
