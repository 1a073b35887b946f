//! Whether a message comes from whom it speaks for: what a reader has to look at before it believes a word of it.
//!
//! The broker vouches for `user-id` where it is given, and a host's broker user has the host's id for a name. A routing key alone
//! proves nothing: up to RabbitMQ 4.0.2 the keys in a CC or BCC header go past the rights that hosts have, so that a host reaches
//! the readers of another with a key of its own in front. BCC is taken off on the way, and then the key in front is what gives the
//! sender away, since it is the one that is compared here.
//!
//! Events of runs and of hosts come from hosts, those of dead letters from operators, whose names are never a host's ([`speaker`]).

mod speaker;

pub use self::speaker::{Speaker, letter_event, same_user, speaker};

use super::envelope::{Properties, source_of};
use super::key::of_job;
use super::superseded::Superseded;
use crate::model::id::HostId;

/// A message, as far as it says who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Its routing key.
    pub routing_key: &'a str,
    /// It carried a CC or BCC header.
    pub has_cc: bool,
    /// Its properties.
    pub properties: &'a Properties,
}

/// Why a message is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// Its publisher asked for further routing keys.
    #[error("it has further routing keys (CC), which go past the rights of hosts on RabbitMQ before 4.0.3")]
    FurtherKeys,
    /// It is not known in whose name it speaks.
    #[error("its routing key names no host")]
    NoHost,
    /// Nobody has vouched for its sender.
    #[error("it speaks for host `{host}` and has no user id")]
    NoUser {
        /// The host of its routing key.
        host: HostId,
    },
    /// Its sender is somebody else.
    #[error("it speaks for host `{host}` and comes from the broker user `{user}`")]
    OtherUser {
        /// The host of its routing key.
        host: HostId,
        /// Who sent it, with what cannot be printed escaped.
        user: String,
    },
    /// It contradicts itself.
    #[error("its routing key names the host `{host}`, and its {place} does not")]
    OtherHost {
        /// The host of its routing key.
        host: HostId,
        /// Where another one stands.
        place: &'static str,
    },
    /// What it says and its routing key do not go together.
    #[error("its routing key is not `{key}`, as what it says would have it")]
    OtherKey {
        /// The key that it would have.
        key: String,
    },
    /// It is about a job that another host does.
    #[error("host `{host}` does not do this job")]
    NotTheJobs {
        /// Who sent it.
        host: HostId,
    },
    /// It tells of a dead letter and is addressed as something else.
    #[error(
        "it tells of a dead letter, and its routing key is none of `letter.replayed.<user>` and `letter.discarded.<user>`"
    )]
    NoLettersKey,
    /// A host, or who could be one, speaks as an operator.
    #[error("it tells of a dead letter in the name of `{user}`, which is one that a host has")]
    HostsName {
        /// The user of its routing key, with what cannot be printed escaped.
        user: String,
    },
    /// It contradicts itself, or its sender is somebody else.
    #[error("its routing key names the user `{user}`, and its {place} does not")]
    NotTheUser {
        /// The user of its routing key, with what cannot be printed escaped.
        user: String,
        /// Where another one stands, or none.
        place: &'static str,
    },
    /// The sender may command nobody.
    #[error("the broker user `{user}` is not one of `broker.controllers`")]
    NoController {
        /// Who sent it, with what cannot be printed escaped.
        user: String,
    },
}

/// The host that told an event of a run or of itself. Its body has still to say the same, see [`same_host`].
///
/// # Errors
/// What speaks against it.
pub fn event(sent: Sent<'_>) -> Result<HostId, Disbelief> {
    let host = told_by_its_host(sent)?;
    match sent.properties.cloud_event("source") {
        Some(source) if source == source_of(&host) => Ok(host),
        _ => Err(Disbelief::OtherHost { host, place: "`cloudEvents_source`" }),
    }
}

/// The host that a dead letter is from: an event's rules but for the source, which letters do not have. One that the broker made
/// itself has the key that the job had, `<host>` or `<host>.urgent`, which no host may write.
///
/// # Errors
/// What speaks against it.
pub fn letter(sent: Sent<'_>) -> Result<HostId, Disbelief> {
    match of_job(sent.routing_key) {
        _ if sent.has_cc => Err(Disbelief::FurtherKeys),
        Some((host, _)) => Ok(host),
        None => told_by_its_host(sent),
    }
}

/// The host that a mark on a dead letter is from. It has the key that what it says gives it, and no other: nobody but a host writes
/// marks, so that none has the key of a job.
///
/// # Errors
/// What speaks against it.
pub fn mark(sent: Sent<'_>, mark: &Superseded) -> Result<HostId, Disbelief> {
    let host = told_by_its_host(sent)?;
    same_host(&host, &mark.host)?;
    let key = mark.routing_key();
    if sent.routing_key == key { Ok(host) } else { Err(Disbelief::OtherKey { key }) }
}

/// `<word>.<word>.<host>`, sent by that host.
fn told_by_its_host(sent: Sent<'_>) -> Result<HostId, Disbelief> {
    if sent.has_cc {
        return Err(Disbelief::FurtherKeys);
    }
    let [_, _, host] = sent.routing_key.split('.').collect::<Vec<_>>()[..] else { return Err(Disbelief::NoHost) };
    let host: HostId = host.parse().map_err(|_| Disbelief::NoHost)?;
    match sent.properties.user_id.as_deref() {
        None => Err(Disbelief::NoUser { host }),
        Some(user) if user == host.as_str() => Ok(host),
        Some(user) => Err(Disbelief::OtherUser { host, user: shown(user) }),
    }
}

/// Whether the host in a body is the one that sent it.
///
/// # Errors
/// It is not.
pub fn same_host(sender: &HostId, in_body: &HostId) -> Result<(), Disbelief> {
    if sender == in_body { Ok(()) } else { Err(Disbelief::OtherHost { host: sender.clone(), place: "body" }) }
}

/// The command of a control message for `host`, if it is one to obey. A ping is none: only the host itself sends it, and its
/// session takes it.
///
/// # Errors
/// What speaks against it.
pub fn command<'a>(sent: Sent<'a>, host: &HostId, controllers: &[String]) -> Result<&'a str, Disbelief> {
    if sent.has_cc {
        return Err(Disbelief::FurtherKeys);
    }
    let (named, command) = sent.routing_key.split_once('.').ok_or(Disbelief::NoHost)?;
    if named != host.as_str() {
        return Err(Disbelief::OtherHost { host: host.clone(), place: "routing key" });
    }
    match sent.properties.user_id.as_deref() {
        None => Err(Disbelief::NoUser { host: host.clone() }),
        Some(user) if controllers.iter().any(|controller| controller == user) => Ok(command),
        Some(user) => Err(Disbelief::NoController { user: shown(user) }),
    }
}

/// Whether a ping is `own`'s, who connects as this broker user.
pub fn is_own_ping(sent: Sent<'_>, own: &str) -> bool {
    !sent.has_cc && sent.properties.user_id.as_deref() == Some(own)
}

/// A user's name may hold anything, and goes into logs.
fn shown(user: &str) -> String {
    user.chars().flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host(id: &str) -> HostId {
        id.parse().unwrap()
    }

    fn from(user: Option<&str>, source: Option<&str>) -> Properties {
        let headers = source.map(|source| ("cloudEvents_source".to_owned(), source.to_owned()));
        Properties { user_id: user.map(str::to_owned), headers: headers.into_iter().collect(), ..Properties::default() }
    }

    fn sent<'a>(routing_key: &'a str, properties: &'a Properties) -> Sent<'a> {
        Sent { routing_key, has_cc: false, properties }
    }

    #[test]
    fn an_event_is_believed_if_user_key_and_source_name_one_host() {
        let honest = from(Some("kvm-07"), Some("/longshore/hosts/kvm-07"));
        assert_eq!(event(sent("backup.progress.kvm-07", &honest)), Ok(host("kvm-07")));
        let other = "backup.progress.kvm-08";
        let forged_key = Disbelief::OtherUser { host: host("kvm-08"), user: "kvm-07".to_owned() };
        assert_eq!(event(sent(other, &honest)), Err(forged_key));
        let copied = Sent { has_cc: true, ..sent("backup.progress.kvm-07", &honest) };
        assert_eq!(event(copied), Err(Disbelief::FurtherKeys));
        let anonymous = from(None, Some("/longshore/hosts/kvm-07"));
        let nobody = Disbelief::NoUser { host: host("kvm-07") };
        assert_eq!(event(sent("backup.progress.kvm-07", &anonymous)), Err(nobody));
        for source in [None, Some("/longshore/hosts/kvm-08"), Some("/longshore/hosts/kvm-07/"), Some("kvm-07")] {
            let told = event(sent("backup.progress.kvm-07", &from(Some("kvm-07"), source)));
            let expected = Disbelief::OtherHost { host: host("kvm-07"), place: "`cloudEvents_source`" };
            assert_eq!(told, Err(expected), "{source:?}");
        }
        for key in ["", "kvm-07", "backup.kvm-07", "backup.progress.x.kvm-07", "backup.progress.KVM-07", "a.b.kvm-07."]
        {
            assert_eq!(event(sent(key, &honest)), Err(Disbelief::NoHost), "{key}");
        }
        assert!(same_host(&host("kvm-07"), &host("kvm-07")).is_ok());
        assert!(same_host(&host("kvm-07"), &host("kvm-08")).is_err());
    }

    #[test]
    fn a_letter_is_believed_if_user_and_key_name_one_host() {
        let honest = from(Some("kvm-07"), None);
        assert_eq!(letter(sent("backup.internal.kvm-07", &honest)), Ok(host("kvm-07")));
        assert!(matches!(letter(sent("backup.internal.kvm-08", &honest)), Err(Disbelief::OtherUser { .. })));
        assert!(letter(Sent { has_cc: true, ..sent("backup.internal.kvm-07", &honest) }).is_err());
        let job = from(Some("publisher"), None);
        for key in ["kvm-07", "kvm-07.urgent"] {
            assert_eq!(letter(sent(key, &job)), Ok(host("kvm-07")), "the broker gave `{key}` up");
            assert!(letter(Sent { has_cc: true, ..sent(key, &job) }).is_err());
        }
        assert_eq!(letter(sent("kvm-07.drain", &job)), Err(Disbelief::NoHost));
    }

    #[test]
    fn only_a_configured_controller_commands_and_only_this_host() {
        let controllers = ["ops".to_owned()];
        let told = |key, user, has_cc| {
            let properties = from(user, None);
            command(Sent { has_cc, ..sent(key, &properties) }, &host("kvm-07"), &controllers).map(str::to_owned)
        };
        assert_eq!(told("kvm-07.drain", Some("ops"), false), Ok("drain".to_owned()));
        assert_eq!(told("kvm-07.drain", Some("ops"), true), Err(Disbelief::FurtherKeys));
        assert_eq!(told("kvm-07.drain", None, false), Err(Disbelief::NoUser { host: host("kvm-07") }));
        assert!(matches!(told("kvm-08.drain", Some("ops"), false), Err(Disbelief::OtherHost { .. })));
        assert!(matches!(told("kvm-07", Some("ops"), false), Err(Disbelief::NoHost)));
        let stranger = told("kvm-07.drain", Some("kvm-07\n"), false).unwrap_err();
        assert_eq!(stranger, Disbelief::NoController { user: "kvm-07\\n".to_owned() });
        let nobody = command(sent("kvm-07.drain", &from(Some("ops"), None)), &host("kvm-07"), &[]).is_err();
        assert!(nobody, "without controllers nobody commands");
    }

    #[test]
    fn a_ping_counts_only_from_the_host_itself() {
        let (own, others) = (from(Some("kvm-07"), None), from(Some("kvm-08"), None));
        assert!(is_own_ping(sent("kvm-07.ping", &own), "kvm-07"));
        assert!(!is_own_ping(sent("kvm-07.ping", &others), "kvm-07"));
        assert!(!is_own_ping(sent("kvm-07.ping", &from(None, None)), "kvm-07"));
        assert!(!is_own_ping(Sent { has_cc: true, ..sent("kvm-07.ping", &own) }, "kvm-07"));
    }
}
