//! Telling anew how the host stands, for a reader that was away or has lost what it knew: the same events, so that who knows them drops
//! them by their ids, and signs of life at once. However often it is asked for, the outbox does not grow with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::report::host_draft;
use super::shared::Shared;
use crate::failure::Failure;
use crate::message::event::{HostDetail, Online};
use crate::message::{Control, Encoding, JobMessage};
use crate::model::job::JobKind;

/// One tells at a time. Whoever asks meanwhile is served by one more round.
#[derive(Debug, Default)]
pub struct Announcing(Mutex<Round>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Round {
    #[default]
    None,
    /// Somebody tells.
    One,
    /// And will once more.
    AndOneMore,
}

impl Announcing {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers whether the caller is to tell.
    fn begin(&self) -> bool {
        let mut round = self.round();
        let free = *round == Round::None;
        *round = if free { Round::One } else { Round::AndOneMore };
        free
    }

    /// A round is over. Answers whether there is one more.
    fn goes_on(&self) -> bool {
        let mut round = self.round();
        let more = *round == Round::AndOneMore;
        *round = if more { Round::One } else { Round::None };
        more
    }
}

/// Gives the turn back, also where the journal fails or the task ends: who tries again tells all.
struct Turn<'a>(&'a Announcing);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.round() = Round::None;
    }
}

/// Tells all of it, or leaves it to whoever is at it.
///
/// # Errors
/// The journal cannot be read or written.
pub async fn announce(shared: &Shared) -> Result<(), Failure> {
    tracing::info!("asked to tell how the host stands");
    if !shared.announcing.begin() {
        return Ok(());
    }
    let turn = Turn(&shared.announcing);
    tell(shared).await?;
    while shared.announcing.goes_on() {
        tell(shared).await?;
    }
    // It is given back already, and may be somebody else's by now.
    std::mem::forget(turn);
    Ok(())
}

async fn tell(shared: &Shared) -> Result<(), Failure> {
    say_online(shared).await?;
    shared.journal.announce_open().await?;
    shared.announcements.send_modify(|count| *count += 1);
    Ok(())
}

/// Says `worker.online`.
///
/// # Errors
/// The journal cannot be written.
pub async fn say_online(shared: &Shared) -> Result<(), Failure> {
    let event = shared.voice.event(HostDetail::Online(online(shared)));
    shared.journal.post(None, vec![host_draft(move || event)]).await
}

fn online(shared: &Shared) -> Online {
    Online {
        installation: shared.journal.installation(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        content_types: Encoding::READ.map(str::to_owned).to_vec(),
        message_types: [JobMessage::MESSAGE_TYPE]
            .iter()
            .chain(&Control::MESSAGE_TYPES)
            .map(ToString::to_string)
            .collect(),
        kinds: JobKind::ALL.to_vec(),
        slots: shared.settings.slots.host as u32,
        host_key: shared.settings.host_key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_while_one_tells_is_served_by_one_more_round() {
        let announcing = Announcing::default();
        assert!(announcing.begin());
        assert!(!announcing.begin() && !announcing.begin());
        assert!(announcing.goes_on(), "for both of them");
        assert!(!announcing.goes_on());
        assert!(announcing.begin());
        assert!(!announcing.begin());
        drop(Turn(&announcing));
        assert!(announcing.begin(), "it tries again");
    }
}
