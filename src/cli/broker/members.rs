//! The hosts and users that a setup is for, checked: no two roles that must not come together, and no name that could be a host's.

use std::path::Path;

use crate::broker::access::Role;
use crate::broker::setup::plan::Member;
use crate::model::id::HostId;

/// What a user's name looks like. A host id has neither `.` nor `_`, so that no host gets the user of a role, nor a role a host's.
const NAME_RULE: &str = "it has 1 to 63 of a-z, 0-9, `-`, `.` and `_`, begins with a letter or digit, has a `.` or `_` so that no host can have it, and \
     does not end in `.probe`";
/// Longest name.
const NAME_BYTES_MAX: usize = 63;

/// The hosts of the command line and of a file, each once.
pub fn hosts(named: &[HostId], file: Option<&Path>) -> Result<Vec<HostId>, String> {
    let mut hosts = named.to_vec();
    if let Some(path) = file {
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
        for (number, line) in text.lines().enumerate() {
            let host = line.split('#').next().unwrap_or_default().trim();
            if !host.is_empty() {
                let host =
                    host.parse().map_err(|error| format!("`{}`, line {}: {error}", path.display(), number + 1))?;
                hosts.push(host);
            }
        }
    }
    let mut once: Vec<HostId> = Vec::new();
    for host in hosts {
        if !once.contains(&host) {
            once.push(host);
        }
    }
    Ok(once)
}

/// The users of the roles, each once, in the order of the roles.
pub fn members(by_role: &[(Role, &[String])]) -> Result<Vec<Member>, String> {
    let mut members: Vec<Member> = Vec::new();
    for (role, users) in by_role {
        for user in *users {
            if !is_name(user) {
                return Err(format!("`{}` is no name of a user: {NAME_RULE}", user.escape_default()));
            }
            match members.iter_mut().find(|member| member.user == *user) {
                Some(member) if member.roles.contains(role) => {}
                Some(member) => member.roles.push(role.clone()),
                None => members.push(Member { user: user.clone(), roles: vec![role.clone()] }),
            }
        }
    }
    let together = |roles: &[Role]| roles.len() == 1 || roles == [Role::Publisher, Role::EventReader];
    match members.iter().find(|member| !together(&member.roles)) {
        None => Ok(members),
        Some(member) => Err(format!(
            "`{}` has several roles: only a publisher may be an event reader as well, to watch its jobs",
            member.user
        )),
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && begins
        && name.contains(['.', '_'])
        && !name.ends_with(".probe")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn hosts_come_from_both_places_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        std::fs::write(&file, "# rack 1\nkvm-07\n\n  kvm-08  # new\nkvm-07\n").unwrap();
        let found = hosts(&["kvm-09".parse().unwrap(), "kvm-08".parse().unwrap()], Some(&file)).unwrap();
        assert_eq!(found.iter().map(HostId::as_str).collect::<Vec<_>>(), ["kvm-09", "kvm-08", "kvm-07"]);
        std::fs::write(&file, "kvm-07\nKVM\n").unwrap();
        assert!(hosts(&[], Some(&file)).unwrap_err().contains("line 2"));
        assert!(hosts(&[], Some(&folder.path().join("none"))).is_err());
    }

    #[test]
    fn a_publisher_may_read_events_and_no_other_roles_come_together() {
        let (one, other) = (names(&["fleet.planner"]), names(&["fleet.planner", "fleet.wall"]));
        let both = members(&[(Role::Publisher, &one), (Role::EventReader, &other)]).unwrap();
        assert_eq!(both[0].roles, [Role::Publisher, Role::EventReader]);
        assert_eq!((both[1].user.as_str(), &both[1].roles[..]), ("fleet.wall", &[Role::EventReader][..]));
        for roles in [
            [Role::Publisher, Role::Controller],
            [Role::Controller, Role::EventReader],
            [Role::EventReader, Role::LetterReader],
            [Role::LetterReader, Role::LetterOperator],
            [Role::Publisher, Role::LetterOperator],
        ] {
            let [first, second] = roles;
            assert!(members(&[(first, &one), (second, &one)]).is_err());
        }
    }

    #[test]
    fn no_role_gets_a_name_that_a_host_or_a_probe_could_have() {
        for name in ["kvm-07", "", ".x", "a/b.c", "Fleet.x", "kvm-07.probe", "a..*", &"a.".repeat(40)] {
            assert!(members(&[(Role::Publisher, &names(&[name]))]).is_err(), "{name}");
        }
        members(&[(Role::Publisher, &names(&["fleet.planner", "fleet_planner", "a-1.b"]))]).unwrap();
    }
}
