//! A letter's job asked for once more: the same job, as its next run.
//!
//! A host vouches for its letters and for nobody else's jobs: what it says the original was may be anything. So a job goes back to
//! the host whose letter it is, and to another one only where the operator names it.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::edit::{Edit, EditError};
use super::letter::{Content, Letter};
use crate::failure::{Code, Failure};
use crate::message::job::CredentialsPart;
use crate::message::{
    Encoded, Encoding, JobMessage, REDACTED, Refusal, decode_job, encode_job_body, read_fields, read_job, write_fields,
};
use crate::model::id::HostId;

/// How the operator wants letters replayed.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// To this host; else to the one that gave the job up.
    pub to_host: Option<HostId>,
    /// With these changes.
    pub edits: Vec<Edit>,
    /// As this run, and not as the next one after the dead one: somebody may have asked for that already.
    pub as_run: Option<u32>,
    /// Credentials come with it: those of the job need not fit.
    pub brings_credentials: bool,
}

/// Why a letter is not replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayed {
    /// Anybody may have written it.
    #[error("it is not believed: {0}")]
    Doubted(String),
    /// The host has had the run, with another body, or has a later one: what was asked for is done or was asked for in another way.
    #[error(
        "its host has taken this run with another body, or a later run, and does that (`{0}`): publish a job of its own if it is wanted besides"
    )]
    WasTaken(String),
    /// There is no job in it.
    #[error("there is no job in it: {0}")]
    NoJob(String),
    /// A secret was taken out of the original.
    #[error("a secret was taken out of `{0}` of the original; say what belongs there with `--set`")]
    Redacted(String),
    /// The job is for another host than the one that gave it up.
    #[error("the job names the host `{named}`, and the letter is of `{letter}`: say with `--to-host` who is to do it")]
    OtherHost {
        /// Whom the job names.
        named: String,
        /// Who gave it up.
        letter: HostId,
    },
    /// Its credentials can be opened by the host alone to which they are sealed.
    #[error("its credentials are sealed to `{0}`: seal them anew with `--seal-credentials` and `--host-key`")]
    SealedToOther(HostId),
    /// They are sealed for the repository as it was.
    #[error(
        "its credentials are sealed for its repository as it is: seal them anew with `--seal-credentials` and `--host-key`"
    )]
    SealedForRepository,
    /// A change cannot be made.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// Its time to start has passed.
    #[error("its `start_before`, {0}, has passed: `--set start_before=null` takes it away")]
    TooLate(String),
    /// No host would take it.
    #[error("the job is not one that a host would take: {0}")]
    Invalid(String),
}

/// A job on its way to be asked for again.
#[derive(Clone, Debug)]
pub struct Draft {
    fields: Value,
    encoding: Encoding,
    traceparent: Option<String>,
    edits: Vec<Edit>,
    /// The body as it came, where it is to be sent like that.
    as_it_came: Option<Vec<u8>>,
    /// The host that is to do it.
    pub host: HostId,
    /// The run that it will be.
    pub run: u32,
    /// Whether it goes to the queue for urgent work.
    pub urgent: bool,
    /// Paths of fields that are not as they were.
    pub changed: Vec<String>,
}

/// What a letter's job would be as its next run.
///
/// # Errors
/// Why it cannot be.
pub fn draft(letter: &Letter, wish: &Wish) -> Result<Draft, NotReplayed> {
    if let Some(doubt) = &letter.doubt {
        return Err(NotReplayed::Doubted(doubt.clone()));
    }
    if [Code::RunBodyDiffers, Code::RunSuperseded].iter().any(|code| letter.code() == code.as_str()) {
        return Err(NotReplayed::WasTaken(letter.code()));
    }
    let no_job = |why: &str| NotReplayed::NoJob(why.to_owned());
    let (properties, body) = letter.original().ok_or_else(|| no_job(&letter.text()))?;
    let (encoding, mut fields) = read_fields(&properties, &body).map_err(|refusal| no_job(&refusal.text))?;
    let from = letter.host().ok_or_else(|| no_job("it names no host"))?;
    let named = fields.get("host").and_then(Value::as_str).unwrap_or_default().to_owned();
    if named.is_empty() {
        return Err(no_job("it names no host"));
    }
    let host = match &wish.to_host {
        Some(host) => host.clone(),
        None if named == from.as_str() => from,
        None => return Err(NotReplayed::OtherHost { named, letter: from }),
    };
    let sealed = fields.pointer("/repository/credentials/sealed").is_some();
    if sealed && named != host.as_str() && !wish.brings_credentials {
        return Err(NotReplayed::SealedToOther(named.parse().unwrap_or(host)));
    }
    if sealed && !wish.brings_credentials && wish.edits.iter().any(|edit| edit.pointer().starts_with("/repository/")) {
        return Err(NotReplayed::SealedForRepository);
    }
    let mut changed = Vec::new();
    for edit in &wish.edits {
        edit.apply(&mut fields)?;
        changed.push(edit.shown());
    }
    let is_other = wish.as_run.is_some() || !changed.is_empty() || named != host.as_str() || wish.brings_credentials;
    let run = next_run(letter, &fields, is_other, wish.as_run)?;
    let as_it_came = (matches!(letter.content, Content::GivenUp { .. }) && !is_other).then_some(body);
    let map = fields.as_object_mut().ok_or_else(|| no_job("its body is no map"))?;
    map.insert("run".to_owned(), run.into());
    if named != host.as_str() {
        map.insert("host".to_owned(), host.as_str().into());
        changed.push("host".to_owned());
    }
    let traceparent = properties.traceparent().map(str::to_owned);
    let edits = wish.edits.clone();
    Ok(Draft { fields, encoding, traceparent, edits, as_it_came, host, run, urgent: letter.is_urgent(), changed })
}

/// One more than the run that is dead. What the broker gave up no host has taken, and it stays the run that it was, so that it is done
/// once should a host have it all the same; another body has to be another run.
fn next_run(letter: &Letter, fields: &Value, is_other: bool, as_run: Option<u32>) -> Result<u32, NotReplayed> {
    let dead = fields.get("run").and_then(Value::as_u64).and_then(|run| u32::try_from(run).ok());
    let dead = dead.ok_or_else(|| NotReplayed::NoJob("it names no run".to_owned()))?;
    if matches!(letter.content, Content::GivenUp { .. }) && !is_other {
        return Ok(dead);
    }
    if let Some(run) = as_run {
        let later = format!("run {run} does not come after the dead run {dead}");
        return if run > dead { Ok(run) } else { Err(NotReplayed::Invalid(later)) };
    }
    dead.checked_add(1).ok_or_else(|| NotReplayed::Invalid("no run comes after this one".to_owned()))
}

impl Draft {
    /// What is to be done, on what, by whom, for who decides on it.
    pub fn words(&self) -> String {
        let text = |pointer: &str| self.fields.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").unwrap_or_default();
        let of =
            text("/instance/name").or_else(|| text("/instance/id")).map_or_else(String::new, |of| format!(" of {of}"));
        let place = text("/repository/address").unwrap_or_default();
        let changed = match &self.changed[..] {
            [] => String::new(),
            changed => format!(", with other {}", changed.join(", ")),
        };
        format!("{kind}{of} on {place} as run {} to host {}{changed}", self.run, self.host)
    }

    /// The job, for who seals credentials to it.
    ///
    /// # Errors
    /// It has not the shape of a job.
    pub fn job(&self) -> Result<JobMessage, NotReplayed> {
        let body = write_fields(&self.fields, self.encoding).map_err(internal)?;
        read_job(&body, self.encoding).map_err(|refusal| invalid(&refusal))
    }

    /// With other credentials than it had.
    ///
    /// # Errors
    /// They cannot be written, or it has no repository.
    pub fn bring(&mut self, credentials: &CredentialsPart) -> Result<(), NotReplayed> {
        let value = serde_json::to_value(credentials).map_err(|error| NotReplayed::Invalid(error.to_string()))?;
        let repository = self.fields.get_mut("repository").and_then(Value::as_object_mut);
        repository
            .ok_or_else(|| NotReplayed::NoJob("it names no repository".to_owned()))?
            .insert("credentials".to_owned(), value);
        self.changed.push("repository.credentials".to_owned());
        Ok(())
    }

    /// The message, if a host would take it.
    ///
    /// # Errors
    /// Why none would.
    pub fn message(&self, now: Timestamp) -> Result<Encoded, NotReplayed> {
        if let Some(place) = redacted(&self.fields, "") {
            return Err(NotReplayed::Redacted(place));
        }
        let job = self.job()?;
        self.edits_arrived(&job)?;
        let body = match &self.as_it_came {
            // Byte for byte: another spelling of the same run is another body to its host.
            Some(body) => body.clone(),
            None => write_fields(&self.fields, self.encoding).map_err(internal)?,
        };
        let encoded = encode_job_body(&job.job_id, body, self.encoding, self.traceparent.as_deref(), now);
        let encoded = encoded.map_err(internal)?;
        let job = decode_job(&encoded.properties, &encoded.body, &self.host).map_err(|refusal| invalid(&refusal))?;
        match job.start_before {
            Some(before) if before <= now => Err(NotReplayed::TooLate(before.to_string())),
            _ => Ok(encoded),
        }
    }

    /// Every field that was set is one that jobs have: others are skipped by whoever reads them, and a slip of the pen would change
    /// nothing without a word.
    fn edits_arrived(&self, job: &JobMessage) -> Result<(), NotReplayed> {
        let known = serde_json::to_value(job).map_err(|error| NotReplayed::Invalid(error.to_string()))?;
        let lost = |edit: &&Edit| {
            let pointer = edit.pointer();
            // What is empty is left out by who writes a job, and changes nothing where there is no such field.
            let set = self.fields.pointer(&pointer).is_some_and(|value| !is_empty(value));
            set && known.pointer(&pointer).is_none()
        };
        match self.edits.iter().find(lost) {
            Some(edit) => Err(EditError::NoSuchField(edit.shown()).into()),
            None => Ok(()),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    [Value::Null, Value::Bool(false), "".into(), Value::Array(Vec::new()), Value::Object(Map::new())].contains(value)
}

fn invalid(refusal: &Refusal) -> NotReplayed {
    NotReplayed::Invalid(refusal.text.clone())
}

fn internal(failure: Failure) -> NotReplayed {
    NotReplayed::Invalid(format!("{failure:#}"))
}

/// Where a secret was taken out. The depth of the recursion is bounded by what [`read_fields`] takes.
fn redacted(value: &Value, place: &str) -> Option<String> {
    match value {
        Value::String(text) => text.contains(REDACTED).then(|| place.to_owned()),
        Value::Array(items) => items.iter().find_map(|item| redacted(item, place)),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
            if name == REDACTED { Some(place) } else { redacted(value, &place) }
        }),
        _ => None,
    }
}
