//! Who speaks in an event: a host, or an operator who tells what became of a dead letter.
//!
//! It promises that neither can speak as the other. What the message says that it is decides by whose rules it is looked at, and its body
//! has then to be of the same sort: a host's id is never an operator's name, and an operator's key never names a host.

use super::{Disbelief, Sent, same_host, shown};
use crate::message::envelope::source_of_user;
use crate::message::event::{Event, HostEvent, LetterDetail, RunEvent};
use crate::model::id::HostId;

/// Who has told an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// A host, of its runs and of itself.
    Host(HostId),
    /// A broker user who is no host, of a dead letter.
    Operator(String),
}

/// Who told an event. Its body has still to say the same, see [`Speaker::said`].
///
/// # Errors
/// What speaks against it.
pub fn speaker(sent: Sent<'_>) -> Result<Speaker, Disbelief> {
    let words = sent.properties.message_type.strip_prefix(Event::TYPE_PREFIX);
    match words {
        Some(words) if words.starts_with("letter.") => letter_event(sent).map(Speaker::Operator),
        _ => super::event(sent).map(Speaker::Host),
    }
}

/// The broker user who told what became of a dead letter. The body has still to say the same, see [`same_user`]. A host may write keys
/// that end in its own id, `letter.replayed.kvm-07` among them, so nobody is believed whose name could be a host's.
///
/// # Errors
/// What speaks against it.
pub fn letter_event(sent: Sent<'_>) -> Result<String, Disbelief> {
    if sent.has_cc {
        return Err(Disbelief::FurtherKeys);
    }
    let user = named_in(sent.routing_key).ok_or(Disbelief::NoLettersKey)?;
    if user.parse::<HostId>().is_ok() {
        return Err(Disbelief::HostsName { user: shown(user) });
    }
    let other = |place| Err(Disbelief::NotTheUser { user: shown(user), place });
    match (sent.properties.user_id.as_deref(), sent.properties.cloud_event("source")) {
        (id, _) if id != Some(user) => other("`user-id`"),
        (_, source) if source != Some(&source_of_user(user)) => other("`cloudEvents_source`"),
        _ => Ok(user.to_owned()),
    }
}

/// Whether the user in a body is the one who sent it.
///
/// # Errors
/// It is not.
pub fn same_user(sender: &str, in_body: &str) -> Result<(), Disbelief> {
    if sender == in_body { Ok(()) } else { Err(Disbelief::NotTheUser { user: shown(sender), place: "body" }) }
}

impl Speaker {
    /// Whether an event is one that they may tell, and is told in their own name.
    ///
    /// # Errors
    /// It is not.
    pub fn said(&self, event: &Event) -> Result<(), Disbelief> {
        match (self, event) {
            (Self::Host(sender), Event::Run(RunEvent { host, .. }) | Event::Host(HostEvent { host, .. })) => {
                same_host(sender, host)
            }
            (Self::Operator(sender), Event::Letter(event)) => same_user(sender, &event.user),
            (Self::Host(host), Event::Letter(_)) => Err(Disbelief::OtherHost { host: host.clone(), place: "body" }),
            (Self::Operator(user), Event::Run(_) | Event::Host(_)) => {
                Err(Disbelief::NotTheUser { user: shown(user), place: "body" })
            }
        }
    }
}

/// `<user>` of `letter.<event>.<user>`: the rest of the key, since a name may have dots.
fn named_in(routing_key: &str) -> Option<&str> {
    let user = LetterDetail::WORDS.into_iter().find_map(|words| routing_key.strip_prefix(words)?.strip_prefix('.'))?;
    (!user.is_empty()).then_some(user)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::Properties;
    use crate::message::event::{Discarded, Draining, HostDetail, LetterEvent};
    use crate::model::id::IncarnationId;

    const OPS: &str = "fleet.ops";
    const KEY: &str = "letter.discarded.fleet.ops";

    fn properties(user: Option<&str>, source: Option<&str>) -> Properties {
        let headers = source.map(|source| ("cloudEvents_source".to_owned(), source.to_owned()));
        Properties {
            message_type: "longshore.event.letter.discarded.v1".to_owned(),
            user_id: user.map(str::to_owned),
            headers: headers.into_iter().collect(),
            ..Properties::default()
        }
    }

    fn told(routing_key: &str, properties: &Properties) -> Result<String, Disbelief> {
        let sent = Sent { routing_key, has_cc: false, properties };
        assert_eq!(speaker(sent), letter_event(sent).map(Speaker::Operator));
        letter_event(sent)
    }

    fn discarded(user: &str) -> Event {
        Event::Letter(LetterEvent {
            user: user.to_owned(),
            letter_id: "1".to_owned(),
            letter_host: None,
            job_id: None,
            run: None,
            kind: None,
            code: "internal".to_owned(),
            time: jiff::Timestamp::UNIX_EPOCH,
            requested_by: None,
            reason: None,
            detail: LetterDetail::Discarded(Discarded {}),
        })
    }

    fn draining(host: &HostId) -> Event {
        let detail = HostDetail::Draining(Draining { limit_seconds: 1, ..Draining::default() });
        let (incarnation, time) = (IncarnationId(uuid::Uuid::nil()), jiff::Timestamp::UNIX_EPOCH);
        Event::Host(HostEvent { host: host.clone(), incarnation, sequence: 1, time, detail })
    }

    #[test]
    fn a_letters_event_is_believed_if_user_key_and_source_name_one_operator() {
        let source = "/longshore/users/fleet.ops";
        let honest = properties(Some(OPS), Some(source));
        assert_eq!(told(KEY, &honest), Ok(OPS.to_owned()));
        assert_eq!(told("letter.replayed.fleet.ops", &honest), Ok(OPS.to_owned()));
        let copied = Sent { routing_key: KEY, has_cc: true, properties: &honest };
        assert_eq!(speaker(copied), Err(Disbelief::FurtherKeys));
        let not_theirs = |place| Err(Disbelief::NotTheUser { user: OPS.to_owned(), place });
        for user in [None, Some("fleet.planner"), Some("kvm-07"), Some("fleet")] {
            assert_eq!(told(KEY, &properties(user, Some(source))), not_theirs("`user-id`"), "{user:?}");
        }
        for source in [None, Some("/longshore/users/fleet"), Some("/longshore/hosts/fleet.ops"), Some(OPS)] {
            let result = told(KEY, &properties(Some(OPS), source));
            assert_eq!(result, not_theirs("`cloudEvents_source`"), "{source:?}");
        }
        for key in
            ["", "letter", "letter.discarded", "letter.discarded.", "letter.read.fleet.ops", "backup.x.fleet.ops"]
        {
            assert_eq!(told(key, &honest), Err(Disbelief::NoLettersKey), "{key}");
        }
        let longer = "letter.discarded.fleet.ops.x";
        assert!(matches!(told(longer, &honest), Err(Disbelief::NotTheUser { .. })));
    }

    #[test]
    fn no_host_speaks_as_an_operator_and_no_operator_as_a_host() {
        // The broker lets a host write this key.
        let own = properties(Some("kvm-07"), Some("/longshore/users/kvm-07"));
        let refused = Err(Disbelief::HostsName { user: "kvm-07".to_owned() });
        assert_eq!(told("letter.discarded.kvm-07", &own), refused);
        // Nor does it help to call the message, the source or the body by the other's name.
        let as_host = properties(Some("kvm-07"), Some("/longshore/hosts/kvm-07"));
        assert_eq!(told("letter.discarded.kvm-07", &as_host), refused);
        let hosts = Properties { message_type: "longshore.event.worker.draining.v1".to_owned(), ..as_host };
        let host: HostId = "kvm-07".parse().unwrap();
        let sent = Sent { routing_key: "letter.discarded.kvm-07", has_cc: false, properties: &hosts };
        let speaks = speaker(sent).unwrap();
        assert_eq!(speaks, Speaker::Host(host.clone()));
        assert!(speaks.said(&draining(&host)).is_ok() && speaks.said(&discarded("kvm-07")).is_err());
        let hosts = Properties { user_id: Some(OPS.to_owned()), ..hosts };
        assert_eq!(speaker(Sent { routing_key: KEY, has_cc: false, properties: &hosts }), Err(Disbelief::NoHost));
        let ops = Speaker::Operator(OPS.to_owned());
        assert!(ops.said(&discarded(OPS)).is_ok());
        assert!(ops.said(&discarded("fleet.planner")).is_err() && ops.said(&draining(&host)).is_err());
        let other = "kvm-08".parse().unwrap();
        assert!(Speaker::Host(host).said(&draining(&other)).is_err());
    }
}
