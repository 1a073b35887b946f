//! From a value to properties and body.

use jiff::Timestamp;

use super::codec::{BODY_BYTES_MAX, Encoding, LETTER_BYTES_MAX, write};
use super::dead_letter::DeadLetter;
use super::envelope::{APP_ID, CloudEvent, Encoded, Properties, TRACEPARENT};
use super::event::Event;
use super::job::JobMessage;
use super::superseded::Superseded;
use crate::failure::{Code, Failure};
use crate::model::id::EventId;

pub(super) fn seconds(time: Timestamp) -> Option<u64> {
    u64::try_from(time.as_second()).ok()
}

pub(super) fn within(body: Vec<u8>, bytes_max: usize, what: &str) -> Result<Vec<u8>, Failure> {
    if body.len() <= bytes_max {
        return Ok(body);
    }
    let text = format!("the {what} has {} bytes, more than the {bytes_max} that its readers take", body.len());
    Err(Failure::new(Code::MessageTooLarge, text))
}

/// A job, as its publisher sends it.
///
/// # Errors
/// `message_too_large`.
pub fn encode_job(job: &JobMessage, encoding: Encoding, published: Timestamp) -> Result<Encoded, Failure> {
    encode_job_body(&job.job_id, write(job, encoding)?, encoding, None, published)
}

/// A job whose body is written already, in the trace that it belongs to.
///
/// # Errors
/// `message_too_large`.
pub fn encode_job_body(
    job_id: &str,
    body: Vec<u8>,
    encoding: Encoding,
    traceparent: Option<&str>,
    published: Timestamp,
) -> Result<Encoded, Failure> {
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: JobMessage::MESSAGE_TYPE.to_owned(),
        message_id: job_id.to_owned(),
        correlation_id: Some(job_id.to_owned()),
        app_id: Some(APP_ID.to_owned()),
        timestamp: seconds(published),
        headers: traceparent.into_iter().map(|context| (TRACEPARENT.to_owned(), context.to_owned())).collect(),
        persistent: true,
        ..Properties::default()
    };
    Ok(Encoded { properties, body: within(body, BODY_BYTES_MAX, "job")? })
}

/// An event. `id` was given when the event was recorded and is the same on every resend; `traceparent` is that of the
/// job, for events of its run.
///
/// # Errors
/// `message_too_large`.
pub fn encode_event(
    event: &Event,
    id: EventId,
    encoding: Encoding,
    traceparent: Option<&str>,
) -> Result<Encoded, Failure> {
    let correlation_id = match event {
        Event::Run(event) => Some(event.job_id.to_string()),
        Event::Host(_) => None,
        Event::Letter(event) => event.job_id.map(|job| job.to_string()),
    };
    let cloud_event = CloudEvent {
        id: &id.to_string(),
        source: &event.source(),
        event_type: &event.message_type(),
        subject: &event.subject(),
        time: &event.time().to_string(),
    };
    let mut headers = cloud_event.headers();
    headers.extend(traceparent.map(|context| (TRACEPARENT.to_owned(), context.to_owned())));
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: event.message_type(),
        message_id: id.to_string(),
        correlation_id,
        app_id: Some(APP_ID.to_owned()),
        user_id: None,
        timestamp: seconds(event.time()),
        headers,
        persistent: event.is_durable(),
    };
    Ok(Encoded { properties, body: within(write(event, encoding)?, BODY_BYTES_MAX, "event")? })
}

/// A dead letter.
///
/// # Errors
/// `message_too_large`.
pub fn encode_dead_letter(letter: &DeadLetter, id: EventId, encoding: Encoding) -> Result<Encoded, Failure> {
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: DeadLetter::MESSAGE_TYPE.to_owned(),
        message_id: id.to_string(),
        correlation_id: letter.job_id.map(|job| job.to_string()),
        app_id: Some(APP_ID.to_owned()),
        timestamp: seconds(letter.time),
        persistent: true,
        ..Properties::default()
    };
    Ok(Encoded { properties, body: within(write(letter, encoding)?, LETTER_BYTES_MAX, "dead letter")? })
}

/// A mark on a dead letter.
///
/// # Errors
/// `message_too_large`.
pub fn encode_superseded(mark: &Superseded, id: EventId, encoding: Encoding) -> Result<Encoded, Failure> {
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: Superseded::MESSAGE_TYPE.to_owned(),
        message_id: id.to_string(),
        correlation_id: Some(mark.job_id.to_string()),
        app_id: Some(APP_ID.to_owned()),
        timestamp: seconds(mark.time),
        persistent: true,
        ..Properties::default()
    };
    Ok(Encoded { properties, body: within(write(mark, encoding)?, BODY_BYTES_MAX, "mark on a dead letter")? })
}
