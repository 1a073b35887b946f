//! One look through the queue, which leaves every letter where it is.

use std::ops::ControlFlow;

use super::letter::Letter;
use crate::broker::Broker;
use crate::broker::letters::{HeldLetter, ReadLettersError};

/// Letters that one look goes through. More are left for the next one, after these have been dealt with.
pub const LETTERS_MAX: usize = 200_000;

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At the end of the queue, or where it was to end.
    Whole,
    /// At [`LETTERS_MAX`].
    CutOff,
}

/// Shows each letter, in the order of the queue, until `see` has seen enough.
///
/// # Errors
/// Somebody else reads them, or the broker cannot be read.
pub async fn look(
    broker: &dyn Broker,
    mut see: impl FnMut(Letter) -> ControlFlow<()>,
) -> Result<Look, ReadLettersError> {
    let mut reader = broker.read_letters().await?;
    let mut end = Look::CutOff;
    for _ in 0..LETTERS_MAX {
        let Some(HeldLetter { message, .. }) = reader.next().await? else {
            end = Look::Whole;
            break;
        };
        let letter = Letter::read(message.routing_key, message.has_cc, message.properties, message.body);
        if see(letter).is_break() {
            end = Look::Whole;
            break;
        }
    }
    reader.close().await?;
    Ok(end)
}
