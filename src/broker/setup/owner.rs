//! Whose a user is that has the name of one of ours.
//!
//! It promises that a user counts as ours only with exactly the rights that a setup gives it, in this virtual host alone: all else is
//! somebody's who would miss it. Pure: what the management API answered goes in.

use serde_json::{Value, json};

use super::look::{Conflict, Found, same, tags};
use super::plan::Member;
use super::step::rights_body;
use crate::broker::access::Rights;

/// What to do about a user that is not ours.
const REMEDY: &str = "see whose it is, and set it right or delete it by hand";

/// What the API says of a user.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The user.
    pub user: Value,
    /// Its rights, in all virtual hosts.
    pub rights: Value,
    /// Its keys on topic exchanges, in all virtual hosts.
    pub topics: Value,
}

/// Whether a user is what a setup makes of `member` in a virtual host.
pub fn is_ours(member: &Member, vhost: &str, standing: &Standing) -> Result<(), Conflict> {
    let conflict = |is: String| Err(Conflict::new(format!("user `{}`", member.user), is, REMEDY));
    if let Some(tags) = tags(&standing.user) {
        return conflict(format!("has the tags `{tags}`"));
    }
    let place = |one: &Value| one.get("vhost").and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |answer: &Value| answer.as_array().cloned().unwrap_or_default();
    let (rights, topics) = (list(&standing.rights), list(&standing.topics));
    if let Some(elsewhere) = rights.iter().chain(&topics).map(place).find(|other| other != vhost) {
        return conflict(format!("has rights in the virtual host `{elsewhere}`"));
    }
    let wanted = Rights::of(&member.user, &member.roles);
    let keys = wanted.topics.iter().map(|right| {
        json!({ "exchange": right.exchange, "write": right.write.expression(), "read": right.read.expression() })
    });
    let holds = |wanted: &Value, found: &[Value]| found.iter().any(|one| same(wanted, one) == Found::AsWanted);
    let as_made = rights.len() == 1
        && holds(&rights_body(&wanted), &rights)
        && topics.len() == wanted.topics.len()
        && keys.into_iter().all(|key| holds(&key, &topics));
    if as_made { Ok(()) } else { conflict("has other rights than a setup gives it".to_owned()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::plan::closed_user;
    use super::super::step::Step;
    use super::*;

    fn host() -> Member {
        Member::host(&"kvm-07".parse().unwrap())
    }

    /// What the API says of a host that was set up.
    fn made() -> Standing {
        let mut standing = Standing { user: json!({ "tags": [] }), rights: json!([]), topics: json!([]) };
        for step in closed_user(&host(), false) {
            let list = match step {
                Step::Rights { .. } => &mut standing.rights,
                Step::Topic { .. } => &mut standing.topics,
                _ => continue,
            };
            let mut body = step.request("fleet", None).body.unwrap();
            body["vhost"] = json!("fleet");
            list.as_array_mut().unwrap().push(body);
        }
        standing
    }

    fn refusal(change: impl FnOnce(&mut Standing)) -> String {
        let mut standing = made();
        change(&mut standing);
        is_ours(&host(), "fleet", &standing).unwrap_err().to_string()
    }

    #[test]
    fn what_a_setup_made_is_ours() {
        assert_eq!(is_ours(&host(), "fleet", &made()), Ok(()));
    }

    #[test]
    fn tags_other_rights_and_rights_elsewhere_are_somebody_elses() {
        assert!(refusal(|s| s.user["tags"] = json!("administrator")).contains("has the tags `administrator`"));
        let other = "has other rights than a setup gives it";
        assert!(refusal(|s| s.rights[0]["configure"] = json!(".*")).contains(other));
        assert!(refusal(|s| s.topics[1]["write"] = json!(".*")).contains(other));
        assert!(refusal(|s| s.topics = json!([])).contains(other));
        assert!(refusal(|s| s.rights = json!([])).contains(other));
        let elsewhere = json!({ "vhost": "/", "configure": "^$", "write": "^$", "read": "^$" });
        let refused = refusal(|s| s.rights.as_array_mut().unwrap().push(elsewhere));
        assert!(refused.contains("has rights in the virtual host `/`"), "{refused}");
        let wrong = is_ours(&host(), "/", &made()).unwrap_err().to_string();
        assert!(wrong.contains("has rights in the virtual host `fleet`"), "{wrong}");
    }
}
