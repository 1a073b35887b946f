//! What a run says to the outside, in job words: hides encoding, routing keys and exchanges.
//!
//! Nothing is published here. Each report is a row for the journal's outbox that lacks its place: event id and sequence
//! number are given in the transaction that writes it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use crate::failure::Failure;
use crate::journal::{Draft, MessageKind, OpenRun, OutboxMessage, Place, RunState, StoredMessage};
use crate::message::dead_letter::{Origin, Original};
use crate::message::event::{Failed, FailureReport, LeftOver, RunDetail};
use crate::message::{DeadLetter, Encoded, Encoding, Event, Properties, RunEvent, encode_dead_letter, encode_event};
use crate::model::id::{HostId, InstanceRef};
use crate::model::job::Job;

/// Speaks for one run.
#[derive(Clone, Debug)]
pub struct RunVoice {
    job: Arc<Job>,
    encoding: Encoding,
    traceparent: Option<String>,
}

impl RunVoice {
    /// Events follow the encoding of the job's message, and belong to its trace.
    pub fn new(job: Arc<Job>, properties: &Properties) -> Self {
        let encoding = Encoding::of(&properties.content_type).unwrap_or(Encoding::MessagePack);
        Self { job, encoding, traceparent: properties.traceparent().map(str::to_owned) }
    }

    /// An event of the run.
    pub fn event(&self, detail: RunDetail) -> Draft {
        let voice = self.clone();
        let time = Timestamp::now();
        Draft::new(move |place| voice.finish_event(detail, time, place))
    }

    /// The dead letter of the run.
    pub fn letter(&self, attempts: u32, failure: &Failure, origin: Origin, original: &StoredMessage) -> Draft {
        let letter = DeadLetter {
            host: self.job.host.clone(),
            time: Timestamp::now(),
            job_id: Some(self.job.key.job_id),
            run: Some(self.job.key.run),
            kind: Some(self.job.kind()),
            attempts,
            failure: FailureReport::from(failure),
            origin,
            original: Original::new(&properties_of(original), &original.body),
        };
        letter_draft(letter, self.encoding)
    }

    fn finish_event(&self, detail: RunDetail, time: Timestamp, place: Place) -> OutboxMessage {
        let kind = match &detail {
            RunDetail::Progress(_) => MessageKind::Progress,
            detail if detail.is_final() => MessageKind::Final,
            _ => MessageKind::State,
        };
        let event = Event::Run(RunEvent::of(&self.job, place.attempt, place.sequence, time, detail));
        let encoded = encode_event(&event, place.event_id, self.encoding, self.traceparent.as_deref());
        outbox(kind, EVENTS_EXCHANGE, event.routing_key(), encoded)
    }
}

/// The end of an open run of which only the journal's columns can be read: the final event and the dead letter.
pub fn orphan_rows(host: &HostId, open: &OpenRun, message: &StoredMessage, failure: &Failure) -> Vec<Draft> {
    let properties = properties_of(message);
    let encoding = Encoding::of(&properties.content_type).unwrap_or(Encoding::MessagePack);
    let letter = DeadLetter {
        host: host.clone(),
        time: Timestamp::now(),
        job_id: Some(open.key.job_id),
        run: Some(open.key.run),
        kind: Some(open.kind),
        attempts: open.attempt,
        failure: FailureReport::from(failure),
        origin: origin(host, open.urgent),
        original: Original::new(&properties, &message.body),
    };
    let mut rows = vec![letter_draft(letter, encoding)];
    let by_name = || open.instance.parse().map(InstanceRef::Name);
    let instance = open.instance.parse().map(InstanceRef::Id).or_else(|_| by_name());
    // The column was written from such a value; one that is not has been tampered with, and the letter has to do.
    if let Ok(instance) = instance {
        rows.push(orphan_event(host.clone(), open.clone(), instance, failure, encoding));
    }
    rows
}

fn orphan_event(host: HostId, open: OpenRun, instance: InstanceRef, failure: &Failure, encoding: Encoding) -> Draft {
    let held = LeftOver {
        what: format!("what attempt {} held", open.attempt),
        reason: "it was cut off, and its job cannot be read any more".to_owned(),
        job_id: None,
    };
    let left_overs = if open.state == RunState::Running { vec![held] } else { Vec::new() };
    let detail =
        RunDetail::Failed(Failed { failure: FailureReport::from(failure), attempts: open.attempt, left_overs });
    Draft::new(move |place| {
        let event = Event::Run(RunEvent {
            job_id: open.key.job_id,
            run: open.key.run,
            attempt: place.attempt,
            sequence: place.sequence,
            kind: open.kind,
            host,
            instance,
            labels: std::collections::BTreeMap::new(),
            time: Timestamp::now(),
            detail,
        });
        let encoded = encode_event(&event, place.event_id, encoding, None);
        outbox(MessageKind::Final, EVENTS_EXCHANGE, event.routing_key(), encoded)
    })
}

/// The row of an event of the host.
pub fn host_draft(event: impl FnOnce() -> Event + Send + 'static) -> Draft {
    Draft::new(move |place| {
        let event = event();
        let encoded = encode_event(&event, place.event_id, Encoding::MessagePack, None);
        outbox(MessageKind::Host, EVENTS_EXCHANGE, event.routing_key(), encoded)
    })
}

/// The row of a dead letter.
pub fn letter_draft(letter: DeadLetter, encoding: Encoding) -> Draft {
    Draft::new(move |place| {
        let encoded = encode_dead_letter(&letter, place.event_id, encoding);
        outbox(MessageKind::Letter, DEAD_EXCHANGE, letter.routing_key(), encoded)
    })
}

/// The properties of a message as the journal kept it. The journal gives back what it was given; anything else reads as none.
pub fn properties_of(message: &StoredMessage) -> Properties {
    serde_json::from_value(message.properties.clone()).unwrap_or_default()
}

/// Properties in the form that the journal keeps.
pub fn stored(properties: &Properties) -> Value {
    serde_json::to_value(properties).unwrap_or_default()
}

/// The queue a run came from, for its letter.
pub fn origin(host: &HostId, urgent: bool) -> Origin {
    use crate::broker::topology;
    if urgent {
        Origin { queue: topology::urgent_jobs_queue(host), routing_key: topology::urgent_jobs_key(host) }
    } else {
        Origin { queue: topology::jobs_queue(host), routing_key: topology::jobs_key(host) }
    }
}

fn outbox(kind: MessageKind, exchange: &str, routing_key: String, encoded: Result<Encoded, Failure>) -> OutboxMessage {
    // Every part of an event is bounded where it is made, so this is a mistake of ours; a message without a body is still
    // the sign that something ended, and its routing key says what.
    let Encoded { properties, body } = encoded.unwrap_or_else(|failure| {
        tracing::error!(%routing_key, failure = format!("{failure:#}"), "cannot encode a message; it goes out empty");
        Encoded { properties: Properties::default(), body: Vec::new() }
    });
    OutboxMessage { kind, exchange: exchange.to_owned(), routing_key, properties: stored(&properties), body }
}
