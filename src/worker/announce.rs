//! Telling anew how the host stands, for a reader that was away or has lost what it knew: the same events, so that who knows them drops
//! them by their ids, and signs of life at once. However often it is asked for, the outbox does not grow with it.

use super::report::host_draft;
use super::shared::Shared;
use crate::failure::Failure;
use crate::message::event::{HostDetail, Online};
use crate::message::{Control, Encoding, JobMessage};
use crate::model::job::JobKind;

/// Tells all of it.
///
/// # Errors
/// The journal cannot be read or written.
pub async fn announce(shared: &Shared) -> Result<(), Failure> {
    tracing::info!("asked to tell how the host stands");
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
