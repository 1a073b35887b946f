//! What a run says to the outside, in job words: hides encoding, routing keys and exchanges.
//!
//! Nothing is published here. Each report is a row for the journal's outbox that lacks its place: event id and sequence
//! number are given in the transaction that writes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::Value;

use crate::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use crate::failure::Failure;
use crate::journal::{Draft, MessageKind, OpenRun, OutboxMessage, Place, RunState, StoredMessage, WrittenLetter};
use crate::message::dead_letter::{Origin, Original};
use crate::message::event::{Failed, FailureReport, LeftOver, RunDetail};
use crate::message::told::ToldRun;
use crate::message::{
    DeadLetter, Encoded, Encoding, Event, Properties, RunEvent, Superseded, decode_event, encode_dead_letter,
    encode_event, encode_superseded,
};
use crate::model::id::{HostId, InstanceRef};
use crate::model::job::Job;

/// Speaks for one run.
#[derive(Clone, Debug)]
pub struct RunVoice {
    job: Arc<Job>,
    encoding: Encoding,
    traceparent: Option<String>,
    told: Arc<Mutex<ToldRun>>,
}

impl RunVoice {
    /// Events follow the encoding of the job's message, and belong to its trace.
    pub fn new(job: Arc<Job>, properties: &Properties) -> Self {
        let encoding = Encoding::of(&properties.content_type).unwrap_or(Encoding::MessagePack);
        Self { job, encoding, traceparent: properties.traceparent().map(str::to_owned), told: Arc::default() }
    }

    /// Takes up what an earlier worker told of the run, as the journal has it: messages of its outbox.
    pub fn recall(&self, messages: &[StoredMessage]) {
        for message in messages {
            match decode_event(&properties_of(message), &message.body) {
                Ok(Event::Run(event)) => self.told().note(&event),
                // The journal keeps what was written; a letter has to do without what is damaged.
                other => tracing::warn!(run = %self.job.key, ?other, "an event of a run cannot be read back"),
            }
        }
    }

    /// When an attempt began, as far as that is known.
    pub fn started_at(&self, attempt: u32) -> Option<Timestamp> {
        self.told().started_at(attempt)
    }

    fn told(&self) -> MutexGuard<'_, ToldRun> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event of the run.
    pub fn event(&self, detail: RunDetail) -> Draft {
        let voice = self.clone();
        let time = Timestamp::now();
        Draft::new(move |place| voice.finish_event(detail, time, place))
    }

    /// The dead letter of the run, with what was told of it until its row is written: that of its end stands before it.
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
            events: Vec::new(),
            events_left_out: 0,
        };
        let voice = self.clone();
        Draft::new(move |place| {
            let (events, events_left_out) = voice.told().told();
            letter_row(&DeadLetter { events, events_left_out, ..letter }, place, voice.encoding)
        })
    }

    /// The mark for the letter of an earlier run that this one's success supersedes.
    pub fn mark(&self, letter: WrittenLetter) -> Draft {
        let mark = Superseded {
            host: self.job.host.clone(),
            time: Timestamp::now(),
            letter_id: letter.letter_id,
            kind: self.job.kind(),
            job_id: letter.key.job_id,
            run: letter.key.run,
            by_job_id: self.job.key.job_id,
            by_run: self.job.key.run,
        };
        let encoding = self.encoding;
        Draft::new(move |place| {
            let encoded = encode_superseded(&mark, place.event_id, encoding);
            outbox(MessageKind::Letter, DEAD_EXCHANGE, mark.routing_key(), encoded)
        })
    }

    fn finish_event(&self, detail: RunDetail, time: Timestamp, place: Place) -> OutboxMessage {
        let kind = match &detail {
            RunDetail::Progress(_) => MessageKind::Progress,
            detail if detail.is_final() => MessageKind::Final,
            _ => MessageKind::State,
        };
        let event = RunEvent::of(&self.job, place.attempt, place.sequence, time, detail);
        self.told().note(&event);
        run_event(kind, event, place, self.encoding, self.traceparent.as_deref())
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
        events: Vec::new(),
        events_left_out: 0,
    };
    let mut rows = vec![letter_draft(letter, encoding)];
    let by_name = || open.instance.parse().map(InstanceRef::Name);
    let instance = match open.instance.is_empty() {
        true => Ok(None),
        false => open.instance.parse().map(InstanceRef::Id).or_else(|_| by_name()).map(Some),
    };
    // The column was written from such a value; one that is not has been tampered with, and the letter has to do.
    if let Ok(instance) = instance {
        rows.push(orphan_event(host.clone(), open.clone(), instance, failure, encoding));
    }
    rows
}

fn orphan_event(
    host: HostId,
    open: OpenRun,
    instance: Option<InstanceRef>,
    failure: &Failure,
    encoding: Encoding,
) -> Draft {
    let held = LeftOver {
        what: format!("what attempt {} held", open.attempt),
        reason: "it was cut off, and its job cannot be read any more".to_owned(),
        job_id: None,
    };
    let left_overs = if open.state == RunState::Running { vec![held] } else { Vec::new() };
    let detail = RunDetail::Failed(Failed {
        failure: FailureReport::from(failure),
        attempts: open.attempt,
        warnings: Vec::new(),
        left_overs,
    });
    Draft::new(move |place| {
        let event = RunEvent {
            job_id: open.key.job_id,
            run: open.key.run,
            attempt: place.attempt,
            sequence: place.sequence,
            kind: open.kind,
            host,
            instance,
            labels: BTreeMap::new(),
            time: Timestamp::now(),
            detail,
        };
        run_event(MessageKind::Final, event, place, encoding, None)
    })
}

/// The row of an event of a run. One that is longer than its readers take goes out without the labels, which its job has, and
/// then with the least that says how it ended: never without its identity.
fn run_event(
    kind: MessageKind,
    event: RunEvent,
    place: Place,
    encoding: Encoding,
    traceparent: Option<&str>,
) -> OutboxMessage {
    let encode = |event: RunEvent| {
        let event = Event::Run(event);
        (event.routing_key(), encode_event(&event, place.event_id, encoding, traceparent))
    };
    let (mut routing_key, mut encoded) = encode(event.clone());
    if encoded.is_err() {
        let unlabelled = RunEvent { labels: BTreeMap::new(), ..event };
        (routing_key, encoded) = encode(unlabelled.clone());
        if encoded.is_err() {
            (routing_key, encoded) = encode(unlabelled.map(RunDetail::in_short));
        }
        tracing::warn!(%routing_key, "an event is too long for its readers, and goes out shortened");
    }
    outbox(kind, EVENTS_EXCHANGE, routing_key, encoded)
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
    Draft::new(move |place| letter_row(&letter, place, encoding))
}

/// One that is longer than its readers take goes out without what was told before.
fn letter_row(letter: &DeadLetter, place: Place, encoding: Encoding) -> OutboxMessage {
    let mut encoded = encode_dead_letter(letter, place.event_id, encoding);
    if encoded.is_err() && !letter.events.is_empty() {
        let left_out = letter.events_left_out.saturating_add(u32::try_from(letter.events.len()).unwrap_or(u32::MAX));
        let shorter = DeadLetter { events: Vec::new(), events_left_out: left_out, ..letter.clone() };
        encoded = encode_dead_letter(&shorter, place.event_id, encoding);
    }
    outbox(MessageKind::Letter, DEAD_EXCHANGE, letter.routing_key(), encoded)
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
    // Every part of a message is bounded where it is made, or can be shortened, so this is a mistake of ours; a message without a
    // body is still the sign that something happened, and its routing key says what.
    let Encoded { properties, body } = encoded.unwrap_or_else(|failure| {
        tracing::error!(%routing_key, failure = format!("{failure:#}"), "cannot encode a message; it goes out empty");
        Encoded { properties: Properties::default(), body: Vec::new() }
    });
    OutboxMessage { kind, exchange: exchange.to_owned(), routing_key, properties: stored(&properties), body }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::message::event::{Completed, Retrying};
    use crate::message::job::{BackupPart, InstancePart, RepositoryPart};
    use crate::message::{JobMessage, decode_event};
    use crate::model::id::{EventId, JobId, RepositoryId};

    fn job(labels: BTreeMap<String, String>) -> Option<Job> {
        let message = JobMessage {
            job_id: JobId::draw().to_string(),
            run: 1,
            kind: "backup".to_owned(),
            host: "h".repeat(63),
            instance: Some(InstancePart { id: None, name: Some("web".to_owned()) }),
            repository: RepositoryPart {
                id: RepositoryId::draw().to_string(),
                repository_type: "directory".to_owned(),
                address: "/share".to_owned(),
                options: String::new(),
                credentials: None,
            },
            backup: Some(BackupPart::default()),
            restore: None,
            restore_new: None,
            validate: None,
            delete: None,
            retry: None,
            start_before: None,
            deadline_seconds: None,
            labels,
            requested_by: None,
        };
        message.check().ok()
    }

    /// Details as long as nobody expects them to be.
    fn details(text: &str, count: usize) -> [RunDetail; 3] {
        let failure = FailureReport {
            code: "internal".to_owned(),
            class: crate::failure::Class::Bug,
            step: None,
            text: text.to_owned(),
            causes: vec![text.to_owned(); count],
        };
        let left_over = LeftOver { what: text.to_owned(), reason: text.to_owned(), job_id: None };
        let (warnings, left_overs) = (vec![text.to_owned(); count], vec![left_over; count]);
        let (failed, next_attempt_at) = (failure.clone(), Timestamp::UNIX_EPOCH);
        [
            RunDetail::Completed(Completed {
                duration_ms: 1,
                warnings: warnings.clone(),
                left_overs: left_overs.clone(),
                backup: None,
                restore: None,
                restore_plan: None,
                validate: None,
                delete: None,
            }),
            RunDetail::Failed(Failed {
                failure,
                attempts: 3,
                warnings: warnings.clone(),
                left_overs: left_overs.clone(),
            }),
            RunDetail::Retrying(Retrying { failure: failed, next_attempt_at, warnings, left_overs }),
        ]
    }

    fn told(job: &Job, encoding: Encoding, detail: RunDetail) -> RunEvent {
        let properties = Properties { content_type: encoding.content_type().to_owned(), ..Properties::default() };
        let voice = RunVoice::new(Arc::new(job.clone()), &properties);
        let place = Place { event_id: EventId::draw(), attempt: 3, sequence: 7 };
        let message = voice.finish_event(detail, Timestamp::UNIX_EPOCH, place);
        let properties: Properties = serde_json::from_value(message.properties).unwrap();
        match decode_event(&properties, &message.body).unwrap() {
            Event::Run(event) => event,
            other => unreachable!("{other:?}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn whatever_the_job_and_however_much_there_is_to_say_its_events_go_out(
            labels in proptest::collection::btree_map(any::<String>(), "\\PC{0,300}", 0..64),
            (text, count) in prop_oneof![
                (any::<String>(), 0_usize..200),
                (Just("\u{1}".repeat(60_000)), 0_usize..3),
                (Just("\"\\".repeat(2000)), 0_usize..40),
            ],
        ) {
            let Some(job) = job(labels) else { return Ok(()) };
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                for detail in details(&text, count) {
                    let event = told(&job, encoding, detail.clone());
                    prop_assert_eq!((event.job_id, event.attempt, event.sequence), (job.key.job_id, 3, 7));
                    prop_assert_eq!(event.detail.word(), detail.word());
                }
            }
        }
    }

    #[test]
    fn the_labels_go_first_and_then_the_lists_but_never_the_failure() {
        let job = job([("ticket".to_owned(), "4711".to_owned())].into()).unwrap();
        let short = details("short", 1)[1].clone();
        let event = told(&job, Encoding::Json, short.clone());
        assert_eq!((&event.labels, &event.detail), (&job.labels, &short));
        let event = told(&job, Encoding::Json, details(&"long ".repeat(1000), 400)[1].clone());
        let RunDetail::Failed(failed) = event.detail else { unreachable!() };
        assert!(failed.failure.text.starts_with("long long") && failed.warnings[0].contains("800 more"), "{failed:?}");
    }
}
