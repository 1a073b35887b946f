//! The one reader of the dead letters.

use std::sync::Arc;

use async_trait::async_trait;

use super::client::DOWN;
use super::session::MemorySettle;
use super::state::ConsumerId;
use super::{Shared, USER};
use crate::broker::letters::{HeldLetter, Holder, LetterReader, Occupation, ReadLettersError};
use crate::broker::topology::DEAD_QUEUE;
use crate::broker::{BrokerError, LETTER_BYTES_KEPT_MAX};

/// What its readers do: clients of this broker have no names.
const DOING: &str = "memory";

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
    let occupation = Occupation::of_this_process(DOING);
    shared.change(|state| state.letters_reader = Some((consumer, occupation)));
    Ok(Box::new(MemoryReader { shared: Arc::clone(shared), consumer }))
}

/// Who reads, if somebody does.
pub(super) fn holder(shared: &Shared) -> Result<Option<Holder>, BrokerError> {
    let state = shared.look();
    if !state.up {
        return Err(BrokerError {
            action: "ask who reads the dead letters".to_owned(),
            address: "memory".to_owned(),
            source: DOWN.into(),
        });
    }
    let reader = state.letters_reader.as_ref().filter(|(reader, _)| state.knows(*reader));
    Ok(reader.map(|(_, occupation)| Holder { user: USER.to_owned(), occupation: occupation.clone() }))
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
