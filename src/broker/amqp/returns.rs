//! Finds out which message a returned one was.
//!
//! With several messages in flight lapin attaches a returned message to the next confirm that it settles. The broker may
//! well confirm another message first (it confirms an unroutable one at its leisure), so a job that nobody took would count
//! as published and one that was kept as unroutable. Hence the returned message is compared with those in flight.

use std::collections::BTreeMap;

use lapin::message::BasicReturnMessage;

use super::publisher::Slot;

/// Marks the message in flight that `returned` is. The oldest, where several are alike: they take the same way.
pub(super) fn mark(in_flight: &mut BTreeMap<u64, Slot>, returned: &BasicReturnMessage) {
    let message_id = returned.properties.message_id().as_ref().map_or("", |id| id.as_str());
    let found = in_flight.values_mut().find(|slot| {
        let message = &slot.outgoing;
        !slot.returned
            && message.exchange == returned.exchange.as_str()
            && message.routing_key == returned.routing_key.as_str()
            && message.properties.message_id == message_id
    });
    match found {
        Some(slot) => slot.returned = true,
        None => tracing::warn!(message_id, "the broker returned a message that is not in flight"),
    }
}
