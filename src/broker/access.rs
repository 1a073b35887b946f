//! Who may do what on the broker, as the regular expressions that RabbitMQ compares names and keys with.
//!
//! It promises that nobody has more than the role needs: no role may declare a queue that others use, no host may read what is
//! another's or speak in another's name, and no role can do what another is for, but for the letter operator, who publishes jobs again and
//! reads their letters for it, and so has to say under its own name what it did. A host's broker user has the host's id for a name; the
//! names that go into expressions are escaped.
//!
//! | role | publishes | reads | declares |
//! |---|---|---|---|
//! | host | own events, own dead letters, pings to itself | its three queues | nothing |
//! | publisher | jobs | nothing | nothing |
//! | controller | control messages but pings | nothing | nothing |
//! | event reader | nothing | events | queues of its own for them |
//! | letter reader | who reads dead letters, in its own name, and questions for it | dead letters | passing queues of its own for copies of them |
//! | letter operator | jobs, events of what it did with dead letters, and the same | dead letters | the same |

use super::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE, EVENTS_EXCHANGE, JOBS_EXCHANGE, LETTERS_EXCHANGE, LETTERS_WORDS,
    PING_COMMAND, control_queue, jobs_queue, urgent_jobs_queue,
};
use crate::message::event::LetterDetail;
use crate::model::id::HostId;

/// A word of a routing key, see [`word`](crate::message::key::word).
const WORD: &str = "[A-Za-z0-9_-]+";
/// Queues that the broker named, which only the connection that declared them can read.
const PASSING_QUEUES: &str = r"amq\.gen-.*";
/// Any key.
const ANY: &str = ".*";

/// What a user is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The worker of a host.
    Host(HostId),
    /// Publishes jobs.
    Publisher,
    /// Commands workers.
    Controller,
    /// Reads events.
    EventReader,
    /// Reads dead letters.
    LetterReader,
    /// Replays and discards dead letters, and tells of it.
    LetterOperator,
}

/// Names that a right holds for, as alternatives of one expression. Without any it holds for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// The expression. Nothing is what matches the empty text alone: an absent one would match everything.
    pub fn expression(&self) -> String {
        match &self.0[..] {
            [] => "^$".to_owned(),
            [one] => format!("^{one}$"),
            several => format!("^({})$", several.join("|")),
        }
    }

    fn of(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }
}

/// The keys that a user may write and bind on a topic exchange. Where a user has none of these, all keys are open to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRight {
    /// The exchange.
    pub exchange: &'static str,
    /// Keys that it may publish with.
    pub write: Names,
    /// Keys that it may bind.
    pub read: Names,
}

/// All rights of a user in the virtual host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// What it may declare and delete.
    pub configure: Names,
    /// Exchanges that it may publish to, and queues that it may bind.
    pub write: Names,
    /// Queues that it may read, and exchanges that it may bind to.
    pub read: Names,
    /// On every topic exchange that it may use at all.
    pub topics: Vec<TopicRight>,
}

impl Rights {
    /// What `user` needs for these roles.
    pub fn of(user: &str, roles: &[Role]) -> Self {
        let mut all = Self::default();
        for role in roles {
            let one = Self::of_role(user, role);
            for (names, more) in
                [(&mut all.configure, one.configure), (&mut all.write, one.write), (&mut all.read, one.read)]
            {
                names.0.extend(more.0);
            }
            one.topics.into_iter().for_each(|right| all.add_keys(right));
        }
        all
    }

    /// The broker keeps one entry a user and exchange, so that of two the later one would count alone.
    fn add_keys(&mut self, right: TopicRight) {
        match self.topics.iter_mut().find(|known| known.exchange == right.exchange) {
            Some(known) => {
                known.write.0.extend(right.write.0);
                known.read.0.extend(right.read.0);
            }
            None => self.topics.push(right),
        }
    }

    fn of_role(user: &str, role: &Role) -> Self {
        let topic = |exchange, write: Option<String>, read: Option<&str>| TopicRight {
            exchange,
            write: Names::of(write),
            read: Names::of(read.map(str::to_owned)),
        };
        match role {
            Role::Host(host) => {
                let own = || Some(format!(r"{WORD}\.{WORD}\.{host}"));
                Self {
                    configure: Names::default(),
                    write: Names::of([EVENTS_EXCHANGE, DEAD_EXCHANGE, CONTROL_EXCHANGE].map(escaped)),
                    read: Names::of(
                        [control_queue(host), urgent_jobs_queue(host), jobs_queue(host)].map(|queue| escaped(&queue)),
                    ),
                    topics: vec![
                        topic(EVENTS_EXCHANGE, own(), None),
                        topic(DEAD_EXCHANGE, own(), None),
                        topic(CONTROL_EXCHANGE, Some(format!(r"{host}\.{PING_COMMAND}")), None),
                    ],
                }
            }
            Role::Publisher => Self { write: Names::of([escaped(JOBS_EXCHANGE)]), ..Self::default() },
            Role::Controller => {
                let commands = format!(r"[a-z0-9-]+\.(?!{PING_COMMAND}$){WORD}");
                Self {
                    write: Names::of([escaped(CONTROL_EXCHANGE)]),
                    topics: vec![topic(CONTROL_EXCHANGE, Some(commands), None)],
                    ..Self::default()
                }
            }
            Role::EventReader => {
                let kept = format!(r"{}\.{}(\..*)?", escaped(EVENTS_EXCHANGE), escaped(user));
                let own = [PASSING_QUEUES.to_owned(), kept];
                Self {
                    configure: Names::of(own.clone()),
                    write: Names::of(own.clone()),
                    read: Names::of(own.into_iter().chain([escaped(EVENTS_EXCHANGE)])),
                    topics: vec![topic(EVENTS_EXCHANGE, None, Some(ANY))],
                }
            }
            Role::LetterReader => Self {
                configure: Names::of([PASSING_QUEUES.to_owned()]),
                write: Names::of([PASSING_QUEUES.to_owned(), escaped(LETTERS_EXCHANGE)]),
                // The exchange and the queue have one name.
                read: Names::of([PASSING_QUEUES.to_owned(), escaped(DEAD_QUEUE), escaped(LETTERS_EXCHANGE)]),
                topics: vec![
                    topic(DEAD_EXCHANGE, None, Some(ANY)),
                    TopicRight {
                        exchange: LETTERS_EXCHANGE,
                        write: Names::of(LETTERS_WORDS.map(|word| format!(r"{word}\.{}", escaped(user)))),
                        read: Names::of([ANY.to_owned()]),
                    },
                ],
            },
            Role::LetterOperator => {
                let mut rights = Self::of_role(user, &Role::LetterReader);
                rights.write.0.extend([JOBS_EXCHANGE, EVENTS_EXCHANGE].map(escaped));
                let told = LetterDetail::WORDS.map(|words| format!(r"{}\.{}", escaped(words), escaped(user)));
                rights.topics.push(TopicRight {
                    exchange: EVENTS_EXCHANGE,
                    write: Names::of(told),
                    read: Names::default(),
                });
                rights
            }
        }
    }
}

/// A name of letters, digits, dots, `-` and `_` as an expression. The others have no meaning outside of brackets.
fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(user: &str, roles: &[Role]) -> Vec<String> {
        let rights = Rights::of(user, roles);
        let mut lines = vec![
            format!("configure {}", rights.configure.expression()),
            format!("write {}", rights.write.expression()),
            format!("read {}", rights.read.expression()),
        ];
        let topics = rights.topics.iter();
        lines.extend(topics.map(|t| format!("{} {} {}", t.exchange, t.write.expression(), t.read.expression())));
        lines
    }

    #[test]
    fn a_host_has_what_its_worker_does_and_no_more() {
        let host: HostId = "kvm-07".parse().unwrap();
        assert_eq!(
            shown("kvm-07", &[Role::Host(host)]),
            [
                "configure ^$",
                r"write ^(longshore\.events|longshore\.dead|longshore\.control)$",
                r"read ^(longshore\.control\.kvm-07|longshore\.jobs\.kvm-07\.urgent|longshore\.jobs\.kvm-07)$",
                r"longshore.events ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.kvm-07$ ^$",
                r"longshore.dead ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.kvm-07$ ^$",
                r"longshore.control ^kvm-07\.ping$ ^$",
            ]
        );
    }

    #[test]
    fn a_letter_operator_reads_letters_publishes_jobs_and_tells_of_both_under_its_own_name_alone() {
        assert_eq!(
            shown("fleet.night_shift", &[Role::LetterOperator]),
            [
                r"configure ^amq\.gen-.*$",
                r"write ^(amq\.gen-.*|longshore\.letters|longshore\.jobs|longshore\.events)$",
                r"read ^(amq\.gen-.*|longshore\.dead|longshore\.letters)$",
                "longshore.dead ^$ ^.*$",
                r"longshore.letters ^(asked\.fleet\.night_shift|held\.fleet\.night_shift)$ ^.*$",
                r"longshore.events ^(letter\.replayed\.fleet\.night_shift|letter\.discarded\.fleet\.night_shift)$ ^$",
            ]
        );
    }

    #[test]
    fn two_roles_with_keys_on_one_exchange_have_one_entry_with_both() {
        let of_both = shown("a.b", &[Role::LetterOperator, Role::EventReader]);
        let of_events: Vec<_> = of_both.iter().filter(|line| line.starts_with("longshore.events ")).collect();
        assert_eq!(of_events, [r"longshore.events ^(letter\.replayed\.a\.b|letter\.discarded\.a\.b)$ ^.*$"]);
    }

    #[test]
    fn the_other_roles_have_one_thing_each() {
        assert_eq!(shown("p", &[Role::Publisher]), ["configure ^$", r"write ^longshore\.jobs$", "read ^$"]);
        assert_eq!(
            shown("c", &[Role::Controller]),
            [
                "configure ^$",
                r"write ^longshore\.control$",
                "read ^$",
                r"longshore.control ^[a-z0-9-]+\.(?!ping$)[A-Za-z0-9_-]+$ ^$",
            ]
        );
        assert_eq!(
            shown("l", &[Role::LetterReader]),
            [
                r"configure ^amq\.gen-.*$",
                r"write ^(amq\.gen-.*|longshore\.letters)$",
                r"read ^(amq\.gen-.*|longshore\.dead|longshore\.letters)$",
                "longshore.dead ^$ ^.*$",
                r"longshore.letters ^(asked\.l|held\.l)$ ^.*$",
            ]
        );
        assert_eq!(
            shown("m.1", &[Role::Publisher, Role::EventReader]),
            [
                r"configure ^(amq\.gen-.*|longshore\.events\.m\.1(\..*)?)$",
                r"write ^(longshore\.jobs|amq\.gen-.*|longshore\.events\.m\.1(\..*)?)$",
                r"read ^(amq\.gen-.*|longshore\.events\.m\.1(\..*)?|longshore\.events)$",
                "longshore.events ^$ ^.*$",
            ]
        );
    }
}
