//! The address of a repository, by type.

use std::net::Ipv6Addr;

use super::{InvalidRepository, RepositoryType};

/// Longest address, bytes: what the kernel takes for a path, without its final zero.
pub const ADDRESS_BYTES_MAX: usize = 4095;

const DIRECTORY: &str = "an absolute path such as `/srv/backup`, not `/` itself, without `.` and `..`";
const NFS: &str = "`host:/path`, an IPv6 address in brackets";
const CIFS: &str = "`//server/share` or `//server/share/directory`";
const CEPH: &str = "`mon1,mon2:/path` or `user@fsid.fs=/path`";

/// Checks an address and brings it into its shortest form: repeated and trailing slashes of a path are left out.
///
/// # Errors
/// The address has not the form of its type, or a character in it could be taken for something else on its way.
pub fn parse_address(repository_type: RepositoryType, address: &str) -> Result<String, InvalidRepository> {
    let (rule, parse): (_, fn(&str) -> Option<String>) = match repository_type {
        RepositoryType::Directory => (DIRECTORY, directory),
        RepositoryType::Nfs => (NFS, nfs),
        RepositoryType::Cifs => (CIFS, cifs),
        RepositoryType::Ceph => (CEPH, ceph),
    };
    let refused = InvalidRepository::Address { rule };
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(refused);
    }
    parse(address).ok_or(refused)
}

fn directory(address: &str) -> Option<String> {
    let path = normalised(address, |c| !c.is_control())?;
    (path != "/").then_some(path)
}

fn nfs(address: &str) -> Option<String> {
    let (host, path) = address.split_once(":/")?;
    let path = share_path(&format!("/{path}"))?;
    is_host(host).then(|| format!("{host}:{path}"))
}

fn cifs(address: &str) -> Option<String> {
    let (server, path) = address.strip_prefix("//")?.split_once('/')?;
    let path = share_path(&format!("/{path}"))?;
    (is_bare_host(server) && path != "/").then(|| format!("//{server}{path}"))
}

fn ceph(address: &str) -> Option<String> {
    if let Some((device, path)) = address.split_once("=/") {
        let path = share_path(&format!("/{path}"))?;
        let (user, cluster) = device.split_once('@')?;
        let (fsid, file_system) = cluster.split_once('.')?;
        let known_fsid = fsid.is_empty() || uuid::Uuid::try_parse(fsid).is_ok();
        return (is_word(user) && known_fsid && is_word(file_system)).then(|| format!("{device}={path}"));
    }
    let (monitors, path) = address.split_once(":/")?;
    let path = share_path(&format!("/{path}"))?;
    monitors.split(',').all(is_monitor).then(|| format!("{monitors}:{path}"))
}

fn is_monitor(monitor: &str) -> bool {
    match monitor.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
            is_host(host) && port.len() <= 5 && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        _ => is_host(monitor),
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => is_ipv6(address),
        None => is_host_name(host),
    }
}

/// A name, an IPv4 address, or an IPv6 address as it stands in a UNC path.
fn is_bare_host(host: &str) -> bool {
    is_host_name(host) || is_ipv6(host)
}

/// With or without a zone, such as `fe80::1%eth0`.
fn is_ipv6(address: &str) -> bool {
    let (address, zone) = address.split_once('%').unwrap_or((address, "lo"));
    address.parse::<Ipv6Addr>().is_ok() && zone.len() <= 15 && is_word(zone)
}

fn is_host_name(host: &str) -> bool {
    let characters = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    (1..=253).contains(&host.len()) && characters && !host.starts_with(['-', '.'])
}

fn is_word(text: &str) -> bool {
    let characters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    (1..=64).contains(&text.len()) && characters && !text.starts_with('-')
}

/// A path on a server. Nothing in it can end an option, a word of a shell, or a line of `/proc/mounts`.
fn share_path(path: &str) -> Option<String> {
    normalised(path, |c| c.is_alphanumeric() || " /._-+@~=$".contains(c))
}

/// An absolute path without `.`, `..` and empty parts, all of its characters allowed.
fn normalised(path: &str, allowed: fn(char) -> bool) -> Option<String> {
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').filter(|part| !part.is_empty()).collect();
    let climbs = parts.iter().any(|part| matches!(*part, "." | ".."));
    (!climbs && path.chars().all(allowed)).then(|| format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(repository_type: RepositoryType, address: &str, normal: &str) {
        assert_eq!(parse_address(repository_type, address).as_deref(), Ok(normal), "{address}");
    }

    #[test]
    fn addresses_of_each_type_are_taken_and_brought_into_their_shortest_form() {
        use RepositoryType::{Ceph, Cifs, Directory, Nfs};
        accepted(Directory, "/srv//backup/", "/srv/backup");
        accepted(Directory, "/mnt/süd lager", "/mnt/süd lager");
        accepted(Nfs, "nas.example:/export/kvm", "nas.example:/export/kvm");
        accepted(Nfs, "10.1.1.1:/", "10.1.1.1:/");
        accepted(Nfs, "[fe80::1%eth0]:/export/", "[fe80::1%eth0]:/export");
        accepted(Cifs, "//nas/VM Backups$/kvm", "//nas/VM Backups$/kvm");
        accepted(Cifs, "//2001:db8::1/share", "//2001:db8::1/share");
        accepted(Ceph, "mon1,mon2:6789,[::1]:3300:/a", "mon1,mon2:6789,[::1]:3300:/a");
        accepted(Ceph, "[::1],[::2]:/", "[::1],[::2]:/");
        let new_form = "admin@b3acfc0d-575f-41d3-9c91-0e7ed3dbb3fa.cephfs=/backup";
        accepted(Ceph, new_form, new_form);
        accepted(Ceph, "admin@.cephfs=/", "admin@.cephfs=/");
    }

    #[test]
    fn addresses_that_could_mean_something_else_are_refused() {
        use RepositoryType::{Ceph, Cifs, Directory, Nfs};
        for (repository_type, addresses) in [
            (Directory, &["", "/", "//", "srv", "/srv/../etc", "/srv/./a", "/a\nb", "/a\0"][..]),
            (
                Nfs,
                &[
                    "",
                    "nas",
                    "nas:export",
                    ":/x",
                    "-o:/x",
                    "nas:/a/../b",
                    "nas:/a;reboot",
                    "nas:/$(id)",
                    "::1:/x",
                    "nas:/a,b",
                    "a b:/x",
                    "[::g]:/x",
                ],
            ),
            (
                Cifs,
                &[
                    "",
                    "//nas",
                    "//nas/",
                    "/nas/share",
                    r"\\nas\share",
                    "//bob:pw@nas/share",
                    "//nas/a/../b",
                    "//nas/a,sec=none",
                    "//-x/share",
                    "//nas/`id`",
                ],
            ),
            (
                Ceph,
                &[
                    "",
                    ":/",
                    "mon1",
                    "mon1,:/x",
                    "mon1:0:/x",
                    "mon1:99999:/x",
                    "admin@cephfs=/",
                    "@.fs=/",
                    "admin@x.fs=/",
                    "a,b@.fs=/",
                    "mon1:/a\tb",
                ],
            ),
        ] {
            for address in addresses {
                assert!(parse_address(repository_type, address).is_err(), "{repository_type:?} {address}");
            }
            assert!(parse_address(repository_type, &format!("/{}", "a".repeat(5000))).is_err());
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_holds_no_control_character_and_is_its_own_shortest_form(
            address in r"(//|/|\[::1\]:/|[a-z]{1,3}(,[a-z]{1,3})?:/|u@\.f=/)?[a-z./\\;,'$ \n\x00:-]{0,20}"
        ) {
            use RepositoryType::{Ceph, Cifs, Directory, Nfs};
            for repository_type in [Directory, Nfs, Cifs, Ceph] {
                if let Ok(parsed) = parse_address(repository_type, &address) {
                    prop_assert!(!parsed.chars().any(char::is_control));
                    prop_assert!(!parsed.starts_with('-'));
                    prop_assert!(!parsed.split('/').any(|part| part == ".."));
                    prop_assert_eq!(parse_address(repository_type, &parsed), Ok(parsed));
                }
            }
        }
    }
}
