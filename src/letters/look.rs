//! One look through the queue, which leaves every letter where it is.

use std::ops::ControlFlow;

use super::letter::Letter;
use super::mark::MARKS_MAX;
use crate::broker::Broker;
use crate::broker::letters::{HeldLetter, ReadLettersError};

/// Letters that one look goes through. More are left for the next one, after these have been dealt with. Marks do not count: no
/// host may hide letters of others behind its own.
pub const LETTERS_MAX: usize = 200_000;

/// Marks that one look passes, however fast they come.
const MARKS_PASSED_MAX: usize = 10 * MARKS_MAX;

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At the end of the queue, or where it was to end.
    Whole,
    /// At [`LETTERS_MAX`], or behind more marks than one look passes.
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
    let (mut letters, mut marks) = (0, 0);
    let end = loop {
        if letters == LETTERS_MAX || marks == MARKS_PASSED_MAX {
            break Look::CutOff;
        }
        let Some(HeldLetter { message, .. }) = reader.next().await? else { break Look::Whole };
        let letter = Letter::read(message.routing_key, message.has_cc, message.properties, message.body);
        *(if letter.mark().is_some() { &mut marks } else { &mut letters }) += 1;
        if see(letter).is_break() {
            break Look::Whole;
        }
    };
    reader.close().await?;
    Ok(end)
}
