//! From properties and body to a checked value, through all the gates.

use serde::de::DeserializeOwned;

use super::codec::{BODY_BYTES_MAX, Encoding, LETTER_BYTES_MAX, shape, shortened, walk};
use super::dead_letter::DeadLetter;
use super::envelope::Properties;
use super::event::{Event, HostDetail, HostEvent, LetterDetail, LetterEvent, RunDetail, RunEvent};
use super::job::JobMessage;
use super::refusal::Refusal;
use super::superseded::Superseded;
use super::walk::Head;
use crate::failure::Code;
use crate::model::id::HostId;
use crate::model::job::{Job, JobKind};

pub(super) fn encoding_of(properties: &Properties) -> Result<Encoding, Refusal> {
    Encoding::of(&properties.content_type).ok_or_else(|| {
        let given = shortened(&properties.content_type);
        let text = format!("the content type `{given}` is none of {}", Encoding::READ.join(", "));
        Refusal::new(Code::UnsupportedContentType, text)
    })
}

pub(super) fn wrong_type(found: &str, wanted: &str) -> Refusal {
    let text = format!("the message type `{}` is not `{wanted}`", shortened(found));
    Refusal::new(Code::UnsupportedVersion, text)
}

/// Refuses a body in which a secret was found.
pub(super) fn refuse_secret(head: &Head) -> Result<(), Refusal> {
    let Some(place) = &head.secret else { return Ok(()) };
    let what = " holds a secret; give credentials by reference instead";
    Err(match shortened(place) {
        place if place.is_empty() => Refusal::new(Code::SecretInOptions, format!("a field's name{what}")),
        place => Refusal::of_field(Code::SecretInOptions, &place, what),
    })
}

/// Reads a job that came to `host`, through all the gates.
///
/// # Errors
/// The first gate that the message does not pass, with as much of its identity as could be read.
pub fn decode_job(properties: &Properties, body: &[u8], host: &HostId) -> Result<Job, Refusal> {
    let mut head = Head::default();
    job(properties, body, host, &mut head).map_err(|refusal| Refusal {
        job_id: head.job_id,
        run: head.run,
        kind: head.kind.as_deref().and_then(known_kind),
        ..refusal
    })
}

fn known_kind(word: &str) -> Option<JobKind> {
    JobKind::ALL.iter().copied().find(|kind| kind.as_str() == word)
}

fn job(properties: &Properties, body: &[u8], host: &HostId, head: &mut Head) -> Result<Job, Refusal> {
    let encoding = encoding_of(properties)?;
    // Walked first for the identity; the wrong type of message outweighs whatever is wrong with its body.
    let walked = walk(body, encoding, BODY_BYTES_MAX, head);
    if properties.message_type != JobMessage::MESSAGE_TYPE {
        return Err(wrong_type(&properties.message_type, JobMessage::MESSAGE_TYPE));
    }
    walked?;
    // Before anything else that may be wrong: what holds a secret is to be told as such.
    refuse_secret(head)?;
    if let Some(named) = &head.host
        && named != host.as_str()
    {
        let text = format!("the job names the host `{}` and came to `{host}`", shortened(named));
        return Err(Refusal::new(Code::WrongHost, text));
    }
    if let Some(kind) = &head.kind
        && known_kind(kind).is_none()
    {
        let known = JobKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
        let text = format!("the kind `{}` is not one that this worker can do: {known}", shortened(kind));
        return Err(Refusal::new(Code::UnknownKind, text));
    }
    shape::<JobMessage>(body, encoding)?.check()
}

/// Reads an event.
///
/// # Errors
/// The first gate that the message does not pass.
pub fn decode_event(properties: &Properties, body: &[u8]) -> Result<Event, Refusal> {
    fn run<D: DeserializeOwned>(body: &[u8], encoding: Encoding, part: fn(D) -> RunDetail) -> Result<Event, Refusal> {
        shape::<RunEvent<D>>(body, encoding).map(|event| Event::Run(event.map(part)))
    }
    fn host<D: DeserializeOwned>(body: &[u8], encoding: Encoding, part: fn(D) -> HostDetail) -> Result<Event, Refusal> {
        shape::<HostEvent<D>>(body, encoding).map(|event| Event::Host(event.map(part)))
    }
    fn letter<D: DeserializeOwned>(
        body: &[u8],
        encoding: Encoding,
        part: fn(D) -> LetterDetail,
    ) -> Result<Event, Refusal> {
        shape::<LetterEvent<D>>(body, encoding).map(|event| Event::Letter(event.map(part)))
    }
    let encoding = encoding_of(properties)?;
    walk(body, encoding, BODY_BYTES_MAX, &mut Head::default())?;
    let words = properties.message_type.strip_prefix(Event::TYPE_PREFIX).and_then(|rest| rest.strip_suffix(".v1"));
    match words {
        Some("accepted") => run(body, encoding, RunDetail::Accepted),
        Some("started") => run(body, encoding, RunDetail::Started),
        Some("progress") => run(body, encoding, RunDetail::Progress),
        Some("retrying") => run(body, encoding, RunDetail::Retrying),
        Some("completed") => run(body, encoding, RunDetail::Completed),
        Some("failed") => run(body, encoding, RunDetail::Failed),
        Some("cancelled") => run(body, encoding, RunDetail::Cancelled),
        Some("worker.online") => host(body, encoding, HostDetail::Online),
        Some("worker.heartbeat") => host(body, encoding, HostDetail::Heartbeat),
        Some("worker.draining") => host(body, encoding, HostDetail::Draining),
        Some("worker.paused") => host(body, encoding, HostDetail::Paused),
        Some("worker.resumed") => host(body, encoding, HostDetail::Resumed),
        Some("worker.inventory") => host(body, encoding, HostDetail::Inventory),
        Some("message.refused") => host(body, encoding, HostDetail::MessageRefused),
        Some("letter.replayed") => letter(body, encoding, LetterDetail::Replayed),
        Some("letter.discarded") => letter(body, encoding, LetterDetail::Discarded),
        _ => Err(wrong_type(&properties.message_type, "longshore.event.*.v1")),
    }
}

/// Reads a dead letter.
///
/// # Errors
/// The first gate that the message does not pass.
pub fn decode_dead_letter(properties: &Properties, body: &[u8]) -> Result<DeadLetter, Refusal> {
    let encoding = encoding_of(properties)?;
    walk(body, encoding, LETTER_BYTES_MAX, &mut Head::default())?;
    if properties.message_type != DeadLetter::MESSAGE_TYPE {
        return Err(wrong_type(&properties.message_type, DeadLetter::MESSAGE_TYPE));
    }
    shape(body, encoding)
}

/// Reads a mark on a dead letter.
///
/// # Errors
/// The first gate that the message does not pass.
pub fn decode_superseded(properties: &Properties, body: &[u8]) -> Result<Superseded, Refusal> {
    let encoding = encoding_of(properties)?;
    walk(body, encoding, BODY_BYTES_MAX, &mut Head::default())?;
    if properties.message_type != Superseded::MESSAGE_TYPE {
        return Err(wrong_type(&properties.message_type, Superseded::MESSAGE_TYPE));
    }
    shape(body, encoding)
}
