//! One message of the queue of dead letters, read as far as it can be.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::mark::Subject;
use crate::failure::Class;
use crate::message::dead_letter::DeadLetter;
use crate::message::key::of_job;
use crate::message::vouch::{self, Sent};
use crate::message::{Properties, Superseded, decode_dead_letter, decode_superseded, read_fields, redact};
use crate::model::id::{HostId, JobId};
use crate::model::job::RunKey;

/// Header in which RabbitMQ says why it gave a message up.
const DEATH_REASON: &str = "x-first-death-reason";
/// The code of what cannot be read, or is no letter.
const UNREADABLE: &str = "unreadable_letter";

/// How far a host's clock may be ahead of this one for its marks to be believed.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(10);
/// Longest code.
const CODE_CHARACTERS_MAX: usize = 64;

/// What a message in the queue is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A worker's letter.
    Letter(Box<DeadLetter>),
    /// A worker's mark on another of its letters.
    Mark(Box<Superseded>),
    /// A job that the broker gave up before any worker took it.
    GivenUp {
        /// Why, in the broker's word.
        reason: String,
    },
    /// Neither.
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
}

/// BLAKE3 of what a letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A message in the queue.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Its routing key.
    pub routing_key: String,
    /// It carried a CC header.
    pub has_cc: bool,
    /// Its properties.
    pub properties: Properties,
    /// Its body, as it came.
    pub body: Vec<u8>,
    /// What it is.
    pub content: Content,
    /// Why it is not believed, if so: somebody else than the host that it names may have written it.
    pub doubt: Option<String>,
    fields: Option<Value>,
}

impl Letter {
    /// Reads a message.
    pub fn read(routing_key: String, has_cc: bool, properties: Properties, body: Vec<u8>) -> Self {
        let sent = Sent { routing_key: &routing_key, has_cc, properties: &properties };
        let content = content(&routing_key, &properties, &body);
        let believed = match &content {
            Content::Letter(letter) => vouch::letter(sent).and_then(|sender| vouch::same_host(&sender, &letter.host)),
            Content::Mark(mark) => vouch::mark(sent, mark).map(drop),
            Content::GivenUp { .. } | Content::Unreadable { .. } => vouch::letter(sent).map(drop),
        };
        let doubt = believed.err().map(|disbelief| disbelief.to_string()).or_else(|| ahead(&content));
        let mut letter = Self { routing_key, has_cc, properties, body, content, doubt, fields: None };
        letter.fields = letter.original().and_then(|(properties, body)| Some(read_fields(&properties, &body).ok()?.1));
        letter.doubt = letter.doubt.take().or_else(|| letter.contradiction());
        letter
    }

    /// A letter that says it is of another run than the one that is in it would be chosen as the one and replayed as the other.
    fn contradiction(&self) -> Option<String> {
        let Content::Letter(letter) = &self.content else { return None };
        let fields = self.fields()?;
        let run = fields.get("run").and_then(Value::as_u64);
        let job = fields.get("job_id").and_then(Value::as_str).and_then(|text| text.parse::<JobId>().ok());
        let other = letter.job_id.is_some_and(|said| job.is_some_and(|job| job != said))
            || letter.run.is_some_and(|said| run.is_some_and(|run| run != u64::from(said)));
        other.then(|| "it says that it is of another job or run than the one that is in it".to_owned())
    }

    /// The fields of the job, as far as they can be read.
    pub fn fields(&self) -> Option<&Value> {
        self.fields.as_ref()
    }

    /// Its body without secrets: a worker's letter has none, but what comes from elsewhere was looked at by nobody.
    pub fn shown_body(&self) -> Vec<u8> {
        match &self.content {
            Content::Letter(_) | Content::Mark(_) => self.body.clone(),
            Content::GivenUp { .. } | Content::Unreadable { .. } => redact(&self.body, &self.properties.content_type),
        }
    }

    /// What it is known by: its message id. One without has none, and can only be meant together with others.
    pub fn id(&self) -> &str {
        &self.properties.message_id
    }

    /// What tells it from every other one: two that have one id, as somebody could make them, are two.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        let user = self.properties.user_id.as_deref().unwrap_or_default();
        let cc = [u8::from(self.has_cc)];
        for part in [self.routing_key.as_bytes(), self.id().as_bytes(), user.as_bytes(), &cc, &self.body] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// The code of the failure.
    pub fn code(&self) -> String {
        match &self.content {
            Content::Letter(letter) => word(&letter.failure.code),
            Content::GivenUp { reason } => word(&format!("broker_{reason}")),
            Content::Mark(_) | Content::Unreadable { .. } => UNREADABLE.to_owned(),
        }
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Class {
        match &self.content {
            Content::Letter(letter) => letter.failure.class,
            Content::Mark(_) | Content::GivenUp { .. } | Content::Unreadable { .. } => Class::Permanent,
        }
    }

    /// What was tried, on what.
    pub fn text(&self) -> String {
        match &self.content {
            Content::Letter(letter) => letter.failure.text.clone(),
            Content::GivenUp { reason } => format!("the broker gave the job up before a worker took it: {reason}"),
            Content::Mark(mark) => {
                format!("a mark that run {} of job {} is superseded", mark.run, mark.job_id)
            }
            Content::Unreadable { why } => why.clone(),
        }
    }

    /// The host that gave it up, or whose queue it was in.
    pub fn host(&self) -> Option<HostId> {
        match &self.content {
            Content::Letter(letter) => Some(letter.host.clone()),
            Content::GivenUp { .. } => of_job(&self.routing_key).map(|(host, _)| host),
            Content::Mark(_) | Content::Unreadable { .. } => None,
        }
    }

    /// The mark that it is, if it is one to be believed: a host says it of its own letters, and only of those that can be superseded.
    pub fn mark(&self) -> Option<&Superseded> {
        match &self.content {
            Content::Mark(mark) if self.doubt.is_none() && mark.kind.is_superseded_by_success() => Some(mark),
            _ => None,
        }
    }

    /// What a mark on it would name, where it is a worker's letter that one could be on.
    pub(super) fn subject(&self) -> Option<Subject> {
        match &self.content {
            Content::Letter(letter) if self.doubt.is_none() => Some(Subject {
                host: letter.host.clone(),
                letter_id: self.id().parse().ok()?,
                kind: letter.kind.filter(|kind| kind.is_superseded_by_success())?,
                key: RunKey { job_id: letter.job_id?, run: letter.run? },
            }),
            _ => None,
        }
    }

    /// Whether the job was in the queue for urgent work.
    pub fn is_urgent(&self) -> bool {
        let key = match &self.content {
            Content::Letter(letter) => &letter.origin.routing_key,
            Content::Mark(_) | Content::GivenUp { .. } | Content::Unreadable { .. } => &self.routing_key,
        };
        of_job(key).is_some_and(|(_, is_urgent)| is_urgent)
    }

    /// The job, as far as it could be read.
    pub fn job_id(&self) -> Option<JobId> {
        match &self.content {
            Content::Letter(letter) => letter.job_id,
            Content::GivenUp { .. } => self.properties.message_id.parse().ok(),
            Content::Mark(_) | Content::Unreadable { .. } => None,
        }
    }

    /// The original message: its properties and its body, which in what the broker gave up may hold secrets.
    pub fn original(&self) -> Option<(Properties, Vec<u8>)> {
        match &self.content {
            Content::Letter(letter) => {
                let original = &letter.original;
                let properties = Properties {
                    content_type: original.content_type.clone(),
                    message_type: original.message_type.clone(),
                    message_id: original.message_id.clone(),
                    correlation_id: original.correlation_id.clone(),
                    app_id: original.app_id.clone(),
                    user_id: original.user_id.clone(),
                    timestamp: original.timestamp,
                    headers: original.headers.clone(),
                    persistent: true,
                };
                Some((properties, original.body.bytes()?))
            }
            Content::GivenUp { .. } => Some((self.properties.clone(), self.body.clone())),
            Content::Mark(_) | Content::Unreadable { .. } => None,
        }
    }
}

/// A mark of a time to come would never be old, and is on no letter that anybody has written.
fn ahead(content: &Content) -> Option<String> {
    let Content::Mark(mark) = content else { return None };
    let is_ahead = mark.time.duration_since(Timestamp::now()) > AHEAD_MAX;
    is_ahead.then(|| format!("it is of a time to come, {}", mark.time))
}

/// A letter that the broker made has the key of the job, `<host>` or `<host>.urgent`, with which no host may publish here.
fn content(routing_key: &str, properties: &Properties, body: &[u8]) -> Content {
    if of_job(routing_key).is_some()
        && let Some(reason) = properties.headers.get(DEATH_REASON)
    {
        return Content::GivenUp { reason: reason.clone() };
    }
    if properties.message_type == Superseded::MESSAGE_TYPE {
        return match decode_superseded(properties, body) {
            Ok(mark) => Content::Mark(Box::new(mark)),
            Err(refusal) => Content::Unreadable { why: refusal.to_string() },
        };
    }
    match decode_dead_letter(properties, body) {
        Ok(letter) => Content::Letter(Box::new(letter)),
        Err(refusal) => Content::Unreadable { why: refusal.to_string() },
    }
}

/// A code or a reason, which may be anybody's text, as what a code looks like.
fn word(text: &str) -> String {
    let text = if text.is_empty() { UNREADABLE } else { text };
    text.chars().take(CODE_CHARACTERS_MAX).map(|c| if c.is_ascii_lowercase() { c } else { '_' }).collect()
}
