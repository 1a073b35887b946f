//! What a user must be able to do and what must be refused to it, as things to try against the broker itself: the rights that were
//! set are what somebody meant, a refusal is what the broker does.
//!
//! Trying does no harm, also where the broker allows what it must not: the other host that is spoken for or read does not exist
//! ([`OTHER_HOST`]), and what is published is in the name of a user that nobody is, which the broker refuses after it has looked at
//! the rights, so that nothing is ever kept.

use super::plan::Member;
use super::version::ServerVersion;
use crate::broker::access::Role;
use crate::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE, EVENTS_EXCHANGE, JOBS_EXCHANGE, LETTERS_EXCHANGE, PING_COMMAND,
    control_key, control_queue, jobs_key, jobs_queue, letters_asked_key, letters_held_key, urgent_jobs_queue,
};
use crate::message::event::LetterDetail;
use crate::model::id::HostId;

/// The host that users try to speak for. It has no queues.
pub const OTHER_HOST: &str = "longshore-probe";
/// The user whom an operator tries to speak for. No role gets a name of this ending, so it is nobody's who tells anything.
pub const OTHER_USER: &str = "longshore.probe";
/// What stands in front of the host in the keys of events that are tried, and of dead letters.
const TOLD: (&str, &str) = ("worker.heartbeat", "backup.internal");
/// What stands in front of the user in those of events of dead letters.
const REPLAYED: &str = LetterDetail::WORDS[0];
/// The same, of letters that were thrown away.
const DISCARDED: &str = LetterDetail::WORDS[1];

/// Something to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Try {
    /// Publish, in the name of nobody.
    Publish {
        /// The exchange.
        exchange: &'static str,
        /// The routing key.
        key: String,
        /// A further routing key, in the CC header.
        further: Option<String>,
    },
    /// Publish in the name of another user.
    PublishAs {
        /// The exchange.
        exchange: &'static str,
        /// The routing key.
        key: String,
        /// The other user.
        user: String,
    },
    /// Take a message of a queue, and let it go back.
    Get(String),
    /// The same if it holds none: a quorum queue counts what goes back.
    GetIfEmpty(String),
    /// Throw away what a queue holds.
    Purge(String),
    /// Make a queue, which goes with the connection.
    Declare(String),
    /// Delete a queue.
    Delete(String),
    /// Bind a queue to the jobs.
    Bind(String),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The broker let the user.
    Allowed,
    /// The broker did not.
    Refused,
    /// It was not tried.
    Untried,
}

/// What has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It works.
    Allowed,
    /// It is refused.
    Refused,
    /// It is refused from this version on; before it the broker is known to let it pass.
    RefusedFrom(ServerVersion),
}

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What, as it is told.
    pub what: String,
    /// How.
    pub attempt: Try,
    /// What has to come of it.
    pub expected: Expected,
}

/// How it stands with a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It was not tried.
    Untried,
    /// The broker is too old to refuse it; readers look for themselves.
    KnownGap,
    /// Not as it should be.
    Bad,
}

impl Probe {
    /// What an answer means.
    pub fn verdict(&self, answer: Answer, version: ServerVersion) -> Verdict {
        match (self.expected, answer) {
            (_, Answer::Untried) => Verdict::Untried,
            (Expected::Allowed, Answer::Allowed) | (Expected::Refused | Expected::RefusedFrom(_), Answer::Refused) => {
                Verdict::Good
            }
            (Expected::RefusedFrom(first), Answer::Allowed) if version < first => Verdict::KnownGap,
            _ => Verdict::Bad,
        }
    }
}

/// What to try as a user.
pub fn probes(member: &Member) -> Vec<Probe> {
    let mut probes = everybodys(&member.roles);
    for role in &member.roles {
        match role {
            Role::Host(host) => probes.extend(hosts(host)),
            Role::LetterOperator => probes.extend(letter_operators(&member.user)),
            Role::LetterReader => probes.extend(letter_readers(&member.user)),
            Role::Publisher | Role::Controller | Role::EventReader => {}
        }
    }
    probes
}

fn expect(allowed: bool) -> Expected {
    if allowed { Expected::Allowed } else { Expected::Refused }
}

fn probe(what: impl Into<String>, expected: Expected, attempt: Try) -> Probe {
    Probe { what: what.into(), attempt, expected }
}

fn publish(exchange: &'static str, key: String) -> Try {
    Try::Publish { exchange, key, further: None }
}

/// What each user tries, whatever it is.
fn everybodys(roles: &[Role]) -> Vec<Probe> {
    let is_one = |of: &[Role]| of.iter().any(|role| roles.contains(role));
    let publishes = is_one(&[Role::Publisher, Role::LetterOperator]);
    let reads_letters = is_one(&[Role::LetterReader, Role::LetterOperator]);
    let makes_queues = reads_letters || is_one(&[Role::EventReader]);
    let (event, letter) = TOLD;
    let dead_letters = if reads_letters { Try::GetIfEmpty } else { Try::Get };
    vec![
        probe("publish a job", expect(publishes), publish(JOBS_EXCHANGE, OTHER_HOST.to_owned())),
        probe(
            "put a job into a queue past its exchange",
            Expected::Refused,
            publish("", format!("{JOBS_EXCHANGE}.{OTHER_HOST}")),
        ),
        probe(
            "drain a host",
            expect(is_one(&[Role::Controller])),
            publish(CONTROL_EXCHANGE, format!("{OTHER_HOST}.drain")),
        ),
        probe(
            "ping as another host",
            Expected::Refused,
            publish(CONTROL_EXCHANGE, format!("{OTHER_HOST}.{PING_COMMAND}")),
        ),
        probe(
            "tell an event of another host",
            Expected::Refused,
            publish(EVENTS_EXCHANGE, format!("{event}.{OTHER_HOST}")),
        ),
        probe(
            "write a dead letter of another host",
            Expected::Refused,
            publish(DEAD_EXCHANGE, format!("{letter}.{OTHER_HOST}")),
        ),
        probe(
            "tell what another user did with a dead letter",
            Expected::Refused,
            publish(EVENTS_EXCHANGE, format!("{DISCARDED}.{OTHER_USER}")),
        ),
        probe(
            "say in another user's name that it reads the dead letters",
            Expected::Refused,
            publish(LETTERS_EXCHANGE, letters_held_key(OTHER_USER)),
        ),
        probe("read the dead letters", expect(reads_letters), dead_letters(DEAD_QUEUE.to_owned())),
        probe("read the jobs of another host", Expected::Refused, Try::Get(format!("{JOBS_EXCHANGE}.{OTHER_HOST}"))),
        probe(
            "throw away the control messages of another host",
            Expected::Refused,
            Try::Purge(format!("{CONTROL_EXCHANGE}.{OTHER_HOST}")),
        ),
        probe("make a queue for jobs", Expected::Refused, Try::Declare(format!("{JOBS_EXCHANGE}.{OTHER_HOST}"))),
        probe("delete a queue for jobs", Expected::Refused, Try::Delete(format!("{JOBS_EXCHANGE}.{OTHER_HOST}"))),
        probe("bind a queue to the jobs", Expected::Refused, Try::Bind(format!("{JOBS_EXCHANGE}.{OTHER_HOST}"))),
        probe("make a passing queue", expect(makes_queues), Try::Declare(String::new())),
    ]
}

/// What a host tries besides.
fn hosts(host: &HostId) -> Vec<Probe> {
    let (event, letter) = TOLD;
    let own_event = format!("{event}.{host}");
    let mut probes = vec![
        probe("tell an event", Expected::Allowed, publish(EVENTS_EXCHANGE, own_event.clone())),
        probe("write a dead letter", Expected::Allowed, publish(DEAD_EXCHANGE, format!("{letter}.{host}"))),
        probe("ping itself", Expected::Allowed, publish(CONTROL_EXCHANGE, control_key(host, PING_COMMAND))),
        probe("read its control messages", Expected::Allowed, Try::Get(control_queue(host))),
        probe("drain itself", Expected::Refused, publish(CONTROL_EXCHANGE, control_key(host, "drain"))),
        probe("publish a job for itself", Expected::Refused, publish(JOBS_EXCHANGE, jobs_key(host))),
        probe(
            "tell an event under another user's name",
            Expected::Refused,
            Try::PublishAs { exchange: EVENTS_EXCHANGE, key: own_event.clone(), user: OTHER_HOST.to_owned() },
        ),
        probe(
            "copy an event to the key of another host (CC header)",
            Expected::RefusedFrom(ServerVersion::CHECKS_FURTHER_KEYS),
            Try::Publish { exchange: EVENTS_EXCHANGE, key: own_event, further: Some(format!("{event}.{OTHER_HOST}")) },
        ),
    ];
    for queue in [urgent_jobs_queue(host), jobs_queue(host)] {
        probes.push(probe(format!("read `{queue}`"), Expected::Allowed, Try::GetIfEmpty(queue)));
    }
    probes
}

/// What whoever reads letters tries besides: to ask who else does, and to answer.
fn letter_readers(user: &str) -> Vec<Probe> {
    let own = |key| publish(LETTERS_EXCHANGE, key);
    vec![
        probe("ask who reads the dead letters", Expected::Allowed, own(letters_asked_key(user))),
        probe("answer that it reads the dead letters", Expected::Allowed, own(letters_held_key(user))),
    ]
}

/// What a letter operator tries besides: to tell what it did, in its own name and of letters alone.
fn letter_operators(user: &str) -> Vec<Probe> {
    let (event, _) = TOLD;
    let own = |words: &str| publish(EVENTS_EXCHANGE, format!("{words}.{user}"));
    let discarded = format!("{DISCARDED}.{user}");
    let mut probes = letter_readers(user);
    probes.extend([
        probe("tell that it replayed a dead letter", Expected::Allowed, own(REPLAYED)),
        probe("tell that it discarded a dead letter", Expected::Allowed, own(DISCARDED)),
        probe("tell an event that is of no dead letter", Expected::Refused, own(event)),
        probe(
            "tell under another user's name what it did",
            Expected::Refused,
            Try::PublishAs { exchange: EVENTS_EXCHANGE, key: discarded.clone(), user: OTHER_USER.to_owned() },
        ),
        probe(
            "copy what it tells to the key of a host (CC header)",
            Expected::RefusedFrom(ServerVersion::CHECKS_FURTHER_KEYS),
            Try::Publish { exchange: EVENTS_EXCHANGE, key: discarded, further: Some(format!("{event}.{OTHER_HOST}")) },
        ),
    ]);
    probes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(roles: &[Role]) -> Member {
        Member { user: "x".to_owned(), roles: roles.to_vec() }
    }

    fn allowed(roles: &[Role]) -> Vec<String> {
        let probes = probes(&member(roles)).into_iter().filter(|probe| probe.expected == Expected::Allowed);
        probes.map(|probe| probe.what).collect()
    }

    #[test]
    fn each_role_is_let_do_what_it_is_for() {
        assert_eq!(allowed(&[Role::Publisher]), ["publish a job"]);
        assert_eq!(allowed(&[Role::Controller]), ["drain a host"]);
        assert_eq!(allowed(&[Role::EventReader]), ["make a passing queue"]);
        assert_eq!(
            allowed(&[Role::LetterReader]),
            [
                "read the dead letters",
                "make a passing queue",
                "ask who reads the dead letters",
                "answer that it reads the dead letters",
            ]
        );
        assert_eq!(
            allowed(&[Role::LetterOperator]),
            [
                "publish a job",
                "read the dead letters",
                "make a passing queue",
                "ask who reads the dead letters",
                "answer that it reads the dead letters",
                "tell that it replayed a dead letter",
                "tell that it discarded a dead letter",
            ]
        );
        let host = Role::Host("kvm-07".parse().unwrap());
        assert_eq!(allowed(std::slice::from_ref(&host)).len(), 6);
        assert!(probes(&member(&[host])).len() > 20);
    }

    #[test]
    fn what_an_old_broker_is_known_to_let_pass_is_no_failure_and_everything_else_is() {
        let (old, new) = ("4.0.2".parse().unwrap(), "4.0.3".parse().unwrap());
        let probe = |expected| Probe { what: String::new(), attempt: Try::Get(String::new()), expected };
        let gap = probe(Expected::RefusedFrom(ServerVersion::CHECKS_FURTHER_KEYS));
        assert_eq!(gap.verdict(Answer::Allowed, old), Verdict::KnownGap);
        assert_eq!(gap.verdict(Answer::Allowed, new), Verdict::Bad);
        assert_eq!(gap.verdict(Answer::Refused, old), Verdict::Good);
        assert_eq!(probe(Expected::Refused).verdict(Answer::Allowed, old), Verdict::Bad);
        assert_eq!(probe(Expected::Allowed).verdict(Answer::Refused, new), Verdict::Bad);
        assert_eq!(probe(Expected::Allowed).verdict(Answer::Untried, new), Verdict::Untried);
    }
}
