//! What became of a dead letter: told by whoever did it, a broker user and no host.
//!
//! It promises a trail of what people did with jobs that had been given up: who, why, and which letter it was, also after the letter
//! itself is gone. A reader believes it only by the rules of [`vouch`](crate::message::vouch), which let no host speak as an operator;
//! the words of a person (`requested_by`, `reason`) are that person's and nobody vouches for them.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::model::id::{HostId, JobId};
use crate::model::job::JobKind;

/// An event of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LetterEvent<D = LetterDetail> {
    /// The broker user who did it: the `user-id` of the message and the end of its routing key. Never a host's.
    #[schemars(length(min = 1))]
    pub user: String,
    /// The message id of the letter.
    pub letter_id: String,
    /// The host that the letter is from, as far as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter_host: Option<HostId>,
    /// The job, as far as the letter says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The run that failed, as far as the letter says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// The job's kind, as far as the letter says. New kinds may come within v1, so a reader must bear one that it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<JobKind>,
    /// The code of the failure that the letter tells. New ones may come within v1, so a reader must bear one that it does not know.
    #[schemars(regex(pattern = r"^[a-z_]{1,64}$"))]
    pub code: String,
    /// When it was done.
    pub time: Timestamp,
    /// Who wanted it, in a person's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, in a person's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The event's own part.
    pub detail: D,
}

/// The own part of a letter's event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum LetterDetail {
    /// Its job was published again.
    Replayed(Replayed),
    /// It was thrown away.
    Discarded(Discarded),
}

/// The job of a letter was published again, as its next run. The events of that run tell the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Replayed {
    /// The run that it was published as.
    pub run: u32,
    /// The host that it was published to.
    pub host: HostId,
    /// Paths of the fields of the job that were edited, such as `repository.address`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
}

/// A letter was thrown away: nobody works on its job any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Discarded {}

impl LetterDetail {
    /// The two words of each of these events.
    pub const WORDS: [&'static str; 2] = ["letter.replayed", "letter.discarded"];

    /// The two words of the event, as they begin its routing key.
    pub const fn words(&self) -> &'static str {
        let [replayed, discarded] = Self::WORDS;
        match self {
            LetterDetail::Replayed(_) => replayed,
            LetterDetail::Discarded(_) => discarded,
        }
    }
}

impl<D> LetterEvent<D> {
    /// The same event with its own part told as `part` of it.
    pub fn map<P>(self, part: impl FnOnce(D) -> P) -> LetterEvent<P> {
        LetterEvent {
            user: self.user,
            letter_id: self.letter_id,
            letter_host: self.letter_host,
            job_id: self.job_id,
            run: self.run,
            kind: self.kind,
            code: self.code,
            time: self.time,
            requested_by: self.requested_by,
            reason: self.reason,
            detail: part(self.detail),
        }
    }
}

impl From<LetterEvent> for Event {
    fn from(event: LetterEvent) -> Self {
        Event::Letter(event)
    }
}
