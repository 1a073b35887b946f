//! The one reader of the dead letters.

use std::sync::Arc;

use async_trait::async_trait;

use super::Shared;
use super::client::DOWN;
use super::session::MemorySettle;
use super::state::ConsumerId;
use crate::broker::letters::{HeldLetter, LetterReader, ReadLettersError};
use crate::broker::topology::DEAD_QUEUE;
use crate::broker::{BrokerError, LETTER_BYTES_KEPT_MAX};

struct MemoryReader {
    shared: Arc<Shared>,
    consumer: ConsumerId,
}

fn lost() -> ReadLettersError {
    ReadLettersError::Broker(BrokerError {
        action: "read the dead letters".to_owned(),
        address: "memory".to_owned(),
        source: DOWN.into(),
    })
}

/// Begins to read, if nobody does.
pub(super) fn open(shared: &Arc<Shared>) -> Result<Box<dyn LetterReader>, ReadLettersError> {
    if !shared.look().up {
        return Err(lost());
    }
    if shared.look().depth(DEAD_QUEUE).is_none() {
        return Err(ReadLettersError::NoQueue { queue: DEAD_QUEUE });
    }
    let consumer = shared.change(|state| state.consume_exclusively(DEAD_QUEUE));
    let consumer = consumer.ok_or(ReadLettersError::InUse { queue: DEAD_QUEUE })?;
    Ok(Box::new(MemoryReader { shared: Arc::clone(shared), consumer }))
}

#[async_trait]
impl LetterReader for MemoryReader {
    async fn next(&mut self) -> Result<Option<HeldLetter>, ReadLettersError> {
        if !self.shared.look().knows(self.consumer) {
            return Err(lost());
        }
        // All that wait may be held: they are in this process's memory as it is.
        let taken = self.shared.change(|state| state.take(DEAD_QUEUE, self.consumer, usize::MAX));
        Ok(taken.map(|(address, stored)| {
            let mut message = stored.message;
            message.body.truncate(LETTER_BYTES_KEPT_MAX);
            HeldLetter { message, settle: Box::new(MemorySettle { shared: Arc::clone(&self.shared), address }) }
        }))
    }

    async fn close(self: Box<Self>) -> Result<(), ReadLettersError> {
        if self.shared.look().knows(self.consumer) { Ok(()) } else { Err(lost()) }
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.shared.change(|state| state.release(self.consumer));
    }
}
