//! Mounting a network share: the type's own helper (mount.nfs, mount.cifs, mount.ceph) run with an argument vector, within a
//! deadline, and then the proof that what it left on the mount point is a share of that type.
//!
//! Repository options replace defaults, never what keeps the host safe: `nosuid,nodev,noexec` are always added, and links are
//! not followed. Secrets reach a helper through a file of the mover's own, which is gone once the helper has ended.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Place;
use super::credentials::{self, Secrets};
use super::kernel_log::KernelLog;
use super::refusal::{self, Said};
use crate::failure::{Code, Failure};
use crate::model::owner::Owner;
use crate::model::repository::{Repository, RepositoryType};
use crate::mover::blocking;
use crate::mover::command::{self, Command, CommandError, shown_end};
use crate::mover::protocol::CredentialPlaces;
use crate::mover::share::{CIFS_MAGIC, Dir};

/// Longest time for a helper to mount. It asks one server; a share that needs longer is of no use for a backup.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// What a mount of foreign data must have, whatever the repository says.
const ALWAYS: [&str; 3] = ["nosuid", "nodev", "noexec"];

/// An option that is added where the repository names none of `instead`.
struct Default {
    instead: &'static [&'static str],
    option: &'static str,
}

/// How a type of share is mounted.
pub struct Kind {
    /// For people.
    pub name: &'static str,
    /// The program that mounts it.
    pub helper: &'static str,
    /// Debian's package of the program.
    pub package: &'static str,
    /// The kernel's name for it, which its module has as well.
    pub file_system: &'static str,
    /// What statfs(2) says of it.
    magic: &'static [u32],
    defaults: &'static [Default],
    /// What keeps this mount apart from others of the same share.
    alone: &'static [Default],
}

/// An unreachable server must end as an error in bounded time: with the kernel's default, `hard`, calls wait for ever, and so
/// does the unmounting (CloudStack's issue 12829). Nothing is risked by it: every byte is fsynced and read back before a backup
/// is published. 30 + 60 + 90 s outlast a server's restart and end before a stalled job is given up.
const NFS: Kind = Kind {
    name: "NFS",
    helper: "mount.nfs",
    package: "nfs-common",
    file_system: "nfs",
    magic: &[0x6969],
    defaults: &[
        Default { instead: &["hard", "soft", "softerr"], option: "softerr" },
        Default { instead: &["timeo"], option: "timeo=300" },
        Default { instead: &["retrans"], option: "retrans=2" },
        // The helper would try for two minutes by itself; retries are the job's, which says so.
        Default { instead: &["retry"], option: "retry=0" },
    ],
    alone: &[Default { instead: &["sharecache", "nosharecache"], option: "nosharecache" }],
};

/// Byte-range locks of a Windows server are mandatory: QEMU's own would keep it from its file (CloudStack's pull request 9666).
const CIFS: Kind = Kind {
    name: "CIFS",
    helper: "mount.cifs",
    package: "cifs-utils",
    file_system: "cifs",
    magic: &CIFS_MAGIC,
    defaults: &[
        Default { instead: &["nobrl", "brl"], option: "nobrl" },
        Default { instead: &["hard", "soft"], option: "soft" },
        Default { instead: &["file_mode"], option: "file_mode=0600" },
        Default { instead: &["dir_mode"], option: "dir_mode=0700" },
    ],
    alone: &[Default { instead: &["nosharesock"], option: "nosharesock" }],
};

/// As `mount_timeout` of CephFS has it by default.
const CEPH_MOUNT_SECONDS: u64 = 30;

/// The kernel's client waits for an OSD for ever, and so does whoever waits for it, where it can't even be killed. It is given as long as a
/// server of NFS. For the monitors it waits as long as the helper may run, by default, so that it would be killed before it can say anything.
const CEPH: Kind = Kind {
    name: "CephFS",
    helper: "mount.ceph",
    package: "ceph-common",
    file_system: "ceph",
    magic: &[0x00c3_6400],
    defaults: &[
        Default { instead: &["osd_request_timeout"], option: "osd_request_timeout=180" },
        Default { instead: &["mount_timeout"], option: "mount_timeout=30" },
    ],
    alone: &[Default { instead: &["share", "noshare"], option: "noshare" }],
};

/// All types of network shares.
pub const KINDS: [&Kind; 3] = [&NFS, &CIFS, &CEPH];

impl Kind {
    /// None for a directory.
    pub fn of(repository_type: RepositoryType) -> Option<&'static Kind> {
        match repository_type {
            RepositoryType::Directory => None,
            RepositoryType::Nfs => Some(&NFS),
            RepositoryType::Cifs => Some(&CIFS),
            RepositoryType::Ceph => Some(&CEPH),
        }
    }

    /// mount.cifs(8) resolves names only: a server's IPv6 address has to be said once more.
    fn address_option(&self, repository: &Repository) -> Option<String> {
        if repository.repository_type != RepositoryType::Cifs {
            return None;
        }
        let server = repository.address.strip_prefix("//")?.split('/').next()?;
        server.contains(':').then(|| format!("ip={server}"))
    }

    /// For a share that somebody else writes to: a server that tells no owners leaves it to the mount whom its files belong to; and what
    /// is made to fail on this mount must not fail on another one of the same share.
    fn writers_options(&self, repository: &Repository, writer: Option<Owner>) -> Vec<String> {
        let given = |names: &[&str]| {
            repository.options.iter().any(|option| names.iter().any(|name| option.key.eq_ignore_ascii_case(name)))
        };
        let Some(Owner { user, group }) = writer else { return Vec::new() };
        let alone =
            self.alone.iter().filter(|default| !given(default.instead)).map(|default| default.option.to_owned());
        let owner = [("uid", user), ("gid", group)].into_iter();
        let owner = owner.filter(|(name, _)| repository.repository_type == RepositoryType::Cifs && !given(&[name]));
        alone.chain(owner.map(|(name, id)| format!("{name}={id}"))).collect()
    }

    /// The options as one text, for the helper's `-o`.
    fn options(&self, repository: &Repository, secrets: &[String], writer: Option<Owner>) -> String {
        let given = |names: &[&str]| {
            repository.options.iter().any(|option| names.iter().any(|name| option.key.eq_ignore_ascii_case(name)))
        };
        let defaults = self.defaults.iter().filter(|default| !given(default.instead)).map(|default| default.option);
        let address = self.address_option(repository);
        let own = repository.options.iter().map(|option| option.to_element());
        // Last, since of two that contradict each other the later one counts.
        let always = ALWAYS.into_iter().map(str::to_owned);
        let all: Vec<_> = defaults
            .map(str::to_owned)
            .chain(address)
            .chain(self.writers_options(repository, writer))
            .chain(own)
            .chain(secrets.iter().cloned())
            .chain(always)
            .collect();
        all.join(",")
    }
}

/// Mounts the repository's share. On failure something may be mounted all the same: whoever asked unmounts.
///
/// `mount_type_unsupported`: program or kernel cannot do it. `mount_timed_out`: no answer in time. `mount_denied`,
/// `repository_not_found`, `invalid_mount_option`: the server or the kernel said so. `mount_failed`: anything else.
pub(super) async fn mount(kind: &'static Kind, repository: &Repository, place: &Place) -> Result<Dir, Failure> {
    let failed = |code| Failure::new(code, format!("cannot mount `{}`", repository.address));
    let Some(program) = command::find(kind.helper) else {
        let missing = format!("`{}` is missing: install the package `{}`", kind.helper, kind.package);
        return Err(failed(Code::MountTypeUnsupported).caused_by(missing));
    };
    let secrets = secrets(repository, &place.credentials).await?;
    let file = secrets.as_ref().map(|secrets| secrets.write(repository.repository_type, &place.private)).transpose()?;
    let extra: Vec<_> = match &file {
        Some(file) => file.options().to_vec(),
        None => credentials::without(repository),
    };
    let began = Instant::now();
    let log = (repository.repository_type == RepositoryType::Ceph).then(KernelLog::from_now_on).flatten();
    let finished = Command::new(&program.to_string_lossy())
        .arg(&repository.address)
        .arg(&place.mount_point)
        .args(["-o", &kind.options(repository, &extra, place.writer)])
        .run(MOUNT_LIMIT)
        .await;
    drop(file);
    match finished {
        Ok(finished) if finished.status.success() => {}
        Ok(finished) => {
            let kernel = log.map(KernelLog::of_ceph).unwrap_or_default();
            let unanswered = cluster_limit(repository).is_some_and(|limit| began.elapsed() >= limit);
            let said = Said { status: finished.status.code(), text: &finished.stderr, unanswered, kernel: &kernel };
            let code = refusal::code(repository.repository_type, &said);
            let kernels: Vec<_> = kernel.iter().map(|line| format!("the kernel's log: {line}")).collect();
            let text = [vec![finished.stderr.trim_end().to_owned()], kernels].concat().join("\n");
            return Err(failed(code).caused_by(shown_end(&text)));
        }
        Err(error @ CommandError::Deadline { .. }) => return Err(failed(Code::MountTimedOut).because(&error)),
        Err(error) => return Err(failed(Code::MountFailed).because(&error)),
    }
    let (mount_point, address) = (place.mount_point.clone(), repository.address.clone());
    blocking(move || prove(kind, &mount_point, &address)).await
}

/// How long the kernel waits for a cluster of CephFS; none for another share, or without an end.
fn cluster_limit(repository: &Repository) -> Option<Duration> {
    if repository.repository_type != RepositoryType::Ceph {
        return None;
    }
    let given = repository.options.iter().rev().find(|option| option.key == "mount_timeout");
    let seconds = given.map_or(Some(CEPH_MOUNT_SECONDS), |option| option.value.as_ref()?.parse().ok())?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

async fn secrets(repository: &Repository, places: &CredentialPlaces) -> Result<Option<Secrets>, Failure> {
    let Some(given) = repository.credentials.clone() else { return Ok(None) };
    let places = places.clone();
    blocking(move || Secrets::read(&given, &places)).await.map(Some)
}

/// What is mounted is a share of the type: a helper that says "done" has been seen to have done nothing.
fn prove(kind: &Kind, mount_point: &Path, address: &str) -> Result<Dir, Failure> {
    let failed = |text: String| Failure::new(Code::MountFailed, text);
    let root = Dir::open_root(mount_point)?;
    super::restrict(&root, mount_point)
        .map_err(|errno| failed(format!("cannot restrict the mount of `{address}`")).because(&errno))?;
    super::must_not_follow_links(&root)?;
    let magic = root
        .file_system()
        .map_err(|error| failed(format!("cannot look at the mount of `{address}`")).because(&error))?;
    let above = mount_point.parent().unwrap_or(Path::new("/"));
    let device = |path: &Path| std::fs::metadata(path).map(|status| status.dev());
    let (ours, parents) = (device(mount_point), device(above));
    let separate = matches!((ours, parents), (Ok(ours), Ok(parents)) if ours != parents);
    if !separate || !kind.magic.contains(&magic) {
        return Err(failed(format!("what is mounted for `{address}` is no {} share", kind.name)));
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::id::RepositoryId;
    use crate::model::repository::{parse_address, parse_options};

    fn repository(repository_type: RepositoryType, address: &str, options: &str) -> Repository {
        Repository {
            id: RepositoryId::draw(),
            repository_type,
            address: parse_address(repository_type, address).unwrap(),
            options: parse_options(options).unwrap(),
            credentials: None,
        }
    }

    fn options(repository_type: RepositoryType, given: &str) -> String {
        let address = match repository_type {
            RepositoryType::Nfs => "nas:/export",
            RepositoryType::Cifs => "//nas/share",
            RepositoryType::Ceph => "mon1:/",
            RepositoryType::Directory => "/srv/backup",
        };
        Kind::of(repository_type).unwrap().options(&repository(repository_type, address, given), &[], None)
    }

    #[test]
    fn what_the_repository_says_replaces_a_default_and_never_what_is_always_so() {
        use RepositoryType::{Ceph, Cifs, Nfs};
        assert_eq!(options(Nfs, ""), "softerr,timeo=300,retrans=2,retry=0,nosuid,nodev,noexec");
        assert_eq!(
            options(Nfs, "vers=4.2,hard,timeo=600"),
            "retrans=2,retry=0,vers=4.2,hard,timeo=600,nosuid,nodev,noexec"
        );
        assert_eq!(
            options(Cifs, "vers=3.1.1"),
            "nobrl,soft,file_mode=0600,dir_mode=0700,vers=3.1.1,nosuid,nodev,noexec"
        );
        assert_eq!(
            options(Ceph, "name=backup,mount_timeout=5"),
            "osd_request_timeout=180,name=backup,mount_timeout=5,nosuid,nodev,noexec"
        );
    }

    #[test]
    fn a_share_that_others_write_to_is_theirs_and_mounted_apart_unless_the_repository_says_otherwise() {
        let writer = Some(Owner { user: 64055, group: 64056 });
        let of = |repository_type, address, given| {
            Kind::of(repository_type).unwrap().options(&repository(repository_type, address, given), &[], writer)
        };
        assert!(of(RepositoryType::Cifs, "//nas/share", "").contains(",nosharesock,uid=64055,gid=64056,"));
        assert!(of(RepositoryType::Cifs, "//nas/share", "uid=7").contains(",gid=64056,uid=7,"));
        let nfs = of(RepositoryType::Nfs, "nas:/export", "");
        assert!(nfs.contains(",nosharecache,") && !nfs.contains("uid="), "{nfs}");
        assert!(!of(RepositoryType::Nfs, "nas:/export", "sharecache").contains("nosharecache"));
    }

    #[test]
    fn a_cluster_is_waited_for_as_long_as_the_mount_says_or_by_default() {
        let limit = |repository_type, address, options| cluster_limit(&repository(repository_type, address, options));
        assert!(options(RepositoryType::Ceph, "").contains(&format!("mount_timeout={CEPH_MOUNT_SECONDS},")));
        assert_eq!(limit(RepositoryType::Ceph, "mon1:/", ""), Some(Duration::from_secs(CEPH_MOUNT_SECONDS)));
        assert_eq!(limit(RepositoryType::Ceph, "mon1:/", "mount_timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(limit(RepositoryType::Ceph, "mon1:/", "mount_timeout=0"), None);
        assert_eq!(limit(RepositoryType::Nfs, "nas:/export", ""), None);
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_is_named_with_its_package() {
        static MISSING: Kind = Kind {
            name: "X",
            helper: "mount.nowhere",
            package: "nowhere-utils",
            file_system: "nowhere",
            magic: &[],
            defaults: &[],
            alone: &[],
        };
        let directory = tempfile::tempdir().unwrap().path().to_owned();
        let place = Place {
            mount_point: directory.clone(),
            private: directory.clone(),
            credentials: CredentialPlaces { dir: directory.clone(), host_key: directory },
            same_device_ok: false,
            writer: None,
        };
        let repository = repository(RepositoryType::Nfs, "nas:/export", "");
        let failure = mount(&MISSING, &repository, &place).await.unwrap_err();
        assert_eq!(failure.code, Code::MountTypeUnsupported);
        assert!(format!("{failure:#}").contains("install the package `nowhere-utils`"), "{failure:#}");
    }
}
