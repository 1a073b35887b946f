//! A host taken out of the fleet: its user first, which closes its connections, then what brings it messages, then its queues. What
//! was done is told where the next fails as well.

use serde_json::Value;

use super::apply::{COUNTS_AGE_MAX, Ground, SetupError};
use super::plan::Member;
use super::step::segment;
use crate::broker::management::{ManagementError, Method, Request};
use crate::broker::topology::{Queue, QueueType, host_queues};
use crate::model::id::HostId;

/// The HTTP status of a queue that is not deleted because it holds messages or is read.
const PRECONDITION_FAILED: u16 = 400;

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The user is gone.
    User(String),
    /// Nothing brings messages into a queue any more.
    Binding(String),
    /// A queue is gone.
    Queue(String),
}

impl Ground<'_> {
    /// Removes a host, whose user has to be as a setup makes it. Queues that hold messages, or are read by whoever may hold some of them,
    /// all stay unless `discard` says otherwise; they are bound to nothing any more, so that new jobs for the host come back to their
    /// publisher.
    ///
    /// # Errors
    /// The server refused, the user is somebody else's, or a queue holds messages. What stands in `removed` is gone all the same.
    pub fn remove_host(&self, host: &HostId, discard: bool, removed: &mut Vec<Removed>) -> Result<(), SetupError> {
        self.has(&Member::host(host))?;
        if self.remove_user(host.as_str())? {
            removed.push(Removed::User(host.to_string()));
        }
        // The type is not looked at.
        let queues = host_queues(host, QueueType::Classic);
        for queue in &queues {
            if self.unbind(queue)? {
                removed.push(Removed::Binding(queue.name.clone()));
            }
        }
        let mut there = Vec::new();
        for queue in queues {
            if self.management.get(&self.queue(&queue))?.is_some() {
                there.push(queue);
            }
        }
        if !discard && !there.is_empty() {
            // Nothing comes in any more, so that after this wait what the API counts is what is there.
            std::thread::sleep(COUNTS_AGE_MAX);
            for queue in &there {
                if let Some(answer) = self.management.get(&self.queue(queue))?
                    && !is_idle(&answer).ok_or(SetupError::Silent("counts of messages and readers"))?
                {
                    return Err(SetupError::NotEmpty(queue.name.clone()));
                }
            }
        }
        for queue in there {
            if self.delete(&queue, discard)? {
                removed.push(Removed::Queue(queue.name));
            }
        }
        Ok(())
    }

    /// Deletes a queue. Gives whether it was there.
    fn delete(&self, queue: &Queue, discard: bool) -> Result<bool, SetupError> {
        let place = self.queue(queue);
        let Some(answer) = self.management.get(&place)? else { return Ok(false) };
        // The broker looks again while it deletes, where it can: a quorum queue knows neither condition.
        let is_looked_at = !discard && answer.get("type").and_then(Value::as_str) == Some(QueueType::Classic.as_str());
        let place = if is_looked_at { format!("{place}?if-unused=true&if-empty=true") } else { place };
        match self.management.ask(&Request { method: Method::Delete, place, body: None }) {
            Err(ManagementError::Refused { status: PRECONDITION_FAILED, .. }) if is_looked_at => {
                Err(SetupError::NotEmpty(queue.name.clone()))
            }
            answer => Ok(answer?.is_some()),
        }
    }

    fn queue(&self, queue: &Queue) -> String {
        format!("queues/{}/{}", segment(self.vhost), segment(&queue.name))
    }

    /// Takes a queue's bindings to its exchange away. Gives whether there was one.
    fn unbind(&self, queue: &Queue) -> Result<bool, SetupError> {
        let between =
            format!("bindings/{}/e/{}/q/{}", segment(self.vhost), segment(queue.exchange), segment(&queue.name));
        let bindings = self.management.get(&between)?.unwrap_or_default();
        let mut was_there = false;
        for key in bindings.as_array().into_iter().flatten().filter_map(|one| one.get("properties_key")?.as_str()) {
            let place = format!("{between}/{}", segment(key));
            was_there |= self.management.ask(&Request { method: Method::Delete, place, body: None })?.is_some();
        }
        Ok(was_there)
    }
}

/// Whether a queue has neither messages, on their way ones included, nor readers; none if the API does not say.
fn is_idle(answer: &Value) -> Option<bool> {
    let count = |key: &str| answer.get(key).and_then(Value::as_u64);
    Some(count("messages")? == 0 && count("consumers")? == 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_queue_is_idle_without_messages_and_readers_and_not_where_nobody_says() {
        let idle = |messages, consumers| is_idle(&json!({ "messages": messages, "consumers": consumers }));
        assert_eq!(idle(0, 0), Some(true));
        assert_eq!((idle(1, 0), idle(0, 1)), (Some(false), Some(false)));
        assert_eq!((is_idle(&json!({})), is_idle(&json!({ "messages": 0 }))), (None, None));
    }
}
