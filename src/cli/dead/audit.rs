//! The event that tells what became of a letter.

use jiff::Timestamp;

use super::perform::PerformArgs;
use crate::broker::Outgoing;
use crate::broker::topology::EVENTS_EXCHANGE;
use crate::cli::ConfigArgs;
use crate::cli::broker::user;
use crate::cli::output::CliError;
use crate::letters::{Letter, Summary};
use crate::message::event::{LetterDetail, LetterEvent};
use crate::message::{Encoding, Event, encode_event, words};
use crate::model::id::{EventId, HostId};
use crate::model::job::JobKind;

/// Who does it, and why.
pub struct Audit {
    user: String,
    requested_by: Option<String>,
    reason: Option<String>,
}

impl Audit {
    pub fn new(config: &ConfigArgs, args: &PerformArgs, reason: Option<&str>) -> Result<Self, CliError> {
        for (option, said) in [("requested-by", args.requested_by.as_deref()), ("reason", reason)] {
            if !said.is_none_or(words::may_be_said) {
                return Err(CliError::usage(format!("`--{option}` is not allowed: {}", words::rule())));
            }
        }
        let user = user(config)?;
        if user.parse::<HostId>().is_ok() {
            eprintln!(
                "the broker user `{user}` could be a host: readers believe no event of it about dead letters (`longshore broker setup \
                 --letter-operator` makes a user for this)"
            );
        }
        Ok(Self { user, requested_by: args.requested_by.clone(), reason: reason.map(str::to_owned) })
    }

    /// The event. What is done a second time, since nobody knew of the first, has the id of the first.
    pub fn event(&self, letter: &Letter, detail: LetterDetail) -> Result<Outgoing, String> {
        let summary = Summary::of(letter);
        let known = |kind: &&JobKind| Some(kind.as_str()) == summary.kind.as_deref();
        let how = serde_json::to_string(&detail).map_err(|error| error.to_string())?;
        let id = EventId::derived(&[&letter.fingerprint().to_string(), detail.words(), &how]);
        let event = Event::Letter(LetterEvent {
            user: self.user.clone(),
            letter_id: summary.letter_id,
            letter_host: summary.host,
            job_id: summary.job_id,
            run: summary.run,
            kind: JobKind::ALL.iter().find(known).copied(),
            code: summary.code,
            time: Timestamp::now(),
            requested_by: self.requested_by.clone(),
            reason: self.reason.clone(),
            detail,
        });
        let encoded = encode_event(&event, id, Encoding::MessagePack, None).map_err(|error| format!("{error:#}"))?;
        let routing_key = event.routing_key();
        Ok(Outgoing { exchange: EVENTS_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body })
    }
}
