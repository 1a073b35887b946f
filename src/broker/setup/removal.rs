//! A host taken out of the fleet: its user first, which closes its connections, then what brings it messages, then its queues.

use serde_json::{Value, json};

use super::apply::{Ground, SetupError};
use super::plan::Member;
use super::step::segment;
use crate::broker::management::{Method, Request};
use crate::broker::topology::{Queue, QueueType, host_queues};
use crate::model::id::HostId;

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The user is gone.
    User(String),
    /// A queue is gone.
    Queue(String),
}

impl Ground<'_> {
    /// Removes a host, whose user has to be as a setup makes it. Gives what was there. Queues that hold messages stay unless `discard` says otherwise; they are bound to
    /// nothing any more, so that new jobs for the host come back to their publisher.
    ///
    /// # Errors
    /// The server refused, the user is somebody else's, or a queue holds messages.
    pub fn remove_host(&self, host: &HostId, discard: bool) -> Result<Vec<Removed>, SetupError> {
        let mut removed = Vec::new();
        self.has(&Member::host(host))?;
        if self.remove_user(host.as_str())? {
            removed.push(Removed::User(host.to_string()));
        }
        // The type is not looked at.
        let queues = host_queues(host, QueueType::Classic);
        for queue in &queues {
            self.unbind(queue)?;
        }
        if !discard {
            for queue in &queues {
                if self.holds_messages(queue)? {
                    return Err(SetupError::NotEmpty(queue.name.clone()));
                }
            }
        }
        for queue in queues {
            let request = Request { method: Method::Delete, place: self.queue(&queue), body: None };
            if self.management.ask(&request)?.is_some() {
                removed.push(Removed::Queue(queue.name));
            }
        }
        Ok(removed)
    }

    fn queue(&self, queue: &Queue) -> String {
        format!("queues/{}/{}", segment(self.vhost), segment(&queue.name))
    }

    fn unbind(&self, queue: &Queue) -> Result<(), SetupError> {
        let between =
            format!("bindings/{}/e/{}/q/{}", segment(self.vhost), segment(queue.exchange), segment(&queue.name));
        let bindings = self.management.get(&between)?.unwrap_or_default();
        for key in bindings.as_array().into_iter().flatten().filter_map(|one| one.get("properties_key")?.as_str()) {
            let place = format!("{between}/{}", segment(key));
            self.management.ask(&Request { method: Method::Delete, place, body: None })?;
        }
        Ok(())
    }

    /// Takes a message and puts it back: the counts that the API shows are up to five seconds old.
    fn holds_messages(&self, queue: &Queue) -> Result<bool, SetupError> {
        if self.management.get(&self.queue(queue))?.is_none() {
            return Ok(false);
        }
        let body = json!({ "count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1 });
        let request = Request { method: Method::Post, place: format!("{}/get", self.queue(queue)), body: Some(body) };
        let messages = self.management.ask(&request)?.unwrap_or_default();
        Ok(messages.as_array().is_some_and(|messages: &Vec<Value>| !messages.is_empty()))
    }
}
