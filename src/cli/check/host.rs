//! Can this host do its work? Each part is tried for real, within a bound, and nothing is left behind.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use super::{Finding, qemu, shares};
use crate::broker::HostOnBroker;
use crate::broker::topology::jobs_queue;
use crate::cli::broker::{block_on, settings};
use crate::cli::host::credential_places;
use crate::cli::output::{self, CliError};
use crate::cli::worker::doors;
use crate::config::Config;
use crate::host::hypervisor::Hypervisor;
use crate::host::mover::MoverName;
use crate::job::Doors;
use crate::model::id::{HostId, InstanceRef};
use crate::model::instance::PowerState;
use crate::mover::sealed::HostKey;
use crate::mover::{command, missing_for_rbd};

/// Longest wait for one part of the host.
const PART_MAX: Duration = Duration::from_secs(20);
/// Longest wait for one guest agent.
const AGENT_MAX: Duration = Duration::from_secs(5);
/// Running instances whose agent is asked.
const AGENTS_MAX: usize = 200;
/// Free scratch below which a pull backup of a busy instance may well be given up, bytes.
const SCRATCH_COMFORTABLE: u64 = 10 * 1024 * 1024 * 1024;
/// Tools that a mover runs.
const TOOLS: [&str; 2] = ["qemu-img", "qemu-nbd"];

pub fn check(config: &Config) -> Result<Vec<Finding>, CliError> {
    let host: HostId = config.host().map_err(CliError::usage)?.parse().map_err(CliError::usage)?;
    let (run_dir, there) = run_dir(&config.worker.run_dir);
    block_on(async {
        let doors = doors(&there_for_now(config, there.clone()));
        let mut findings = vec![Finding::ok("host", format!("id `{host}`")), root(), run_dir];
        findings.extend(hypervisor(config, doors.hypervisor.as_ref()).await);
        findings.extend(qemu::check(config, &there, doors.hypervisor.as_ref()).await);
        findings.extend(TOOLS.map(tool));
        findings.push(lvm());
        findings.push(rbd().await);
        findings.extend(shares::check());
        findings.push(scratch(&config.scratch.dir));
        findings.push(mover(&doors).await);
        findings.push(host_key(&credential_places(config).host_key));
        findings.push(broker(config, &host).await?);
        Ok(findings)
    })
}

/// The run directory, and where a mover can be tried: before the first start of a worker, or after a boot, it is not there, and its
/// nearest parent stands in for it. Making it is the worker's, since others have to pass it.
fn run_dir(directory: &Path) -> (Finding, PathBuf) {
    let shown = directory.display();
    if directory.is_dir() {
        return (Finding::ok("run dir", format!("`{shown}` is there")), directory.to_owned());
    }
    let there = directory.ancestors().skip(1).find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let finding = match directory.symlink_metadata() {
        Ok(_) => {
            let remedy = "remove it, or correct `worker.run_dir`";
            Finding::fail("run dir", format!("`{shown}` is there and is no directory"), remedy)
        }
        Err(_) => {
            let text = format!("there is no `{shown}` yet");
            Finding::note(
                "run dir",
                text,
                format!("the worker makes it when it starts; tried in `{}`", there.display()),
            )
        }
    };
    (finding, there)
}

fn there_for_now(config: &Config, run_dir: PathBuf) -> Config {
    let mut config = config.clone();
    config.worker.run_dir = run_dir;
    config
}

fn root() -> Finding {
    if geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        Finding::fail("user", "not root", "run the worker as root: movers make mount and PID namespaces")
    }
}

async fn hypervisor(config: &Config, hypervisor: &dyn Hypervisor) -> Vec<Finding> {
    let uri = &config.libvirt.uri;
    let versions = match hypervisor.versions().await {
        Ok(versions) => versions,
        Err(failure) => {
            let remedy = format!("is libvirtd running, and is `{uri}` right? (`virsh -c {uri} version`)");
            return vec![Finding::fail("libvirt", format!("{failure:#}"), remedy)];
        }
    };
    let text = format!("libvirt {}, QEMU {} at `{uri}`", versions.libvirt, versions.qemu);
    let mut findings = match (versions.allow_full(), versions.allow_incremental()) {
        (Err(failure), _) => vec![Finding::fail("libvirt", text, format!("{failure}"))],
        (Ok(()), Err(failure)) => vec![Finding::warn("libvirt", text, format!("{failure}"))],
        (Ok(()), Ok(())) => vec![Finding::ok("libvirt", text)],
    };
    match hypervisor.instances().await {
        Ok(instances) => {
            let running: Vec<_> = instances.iter().filter(|one| one.state == PowerState::Running).collect();
            findings.push(Finding::ok("instances", format!("{}, {} running", instances.len(), running.len())));
            for instance in running.into_iter().take(AGENTS_MAX) {
                let asked = async {
                    let found = hypervisor.find(&InstanceRef::Id(instance.id)).await?;
                    match found.agent_configured {
                        true => hypervisor.agent_ping(instance.id, AGENT_MAX).await.map(|()| true),
                        false => Ok(false),
                    }
                };
                findings.push(agent(instance.name.as_str(), asked.await));
            }
        }
        Err(failure) => findings.push(Finding::fail("instances", format!("{failure:#}"), "`virsh list --all`")),
    }
    findings
}

fn agent(name: &str, answer: Result<bool, crate::failure::Failure>) -> Finding {
    match answer {
        Ok(true) => Finding::ok("agent", format!("`{name}` answers")),
        Ok(false) => {
            let remedy = "add the channel `org.qemu.guest_agent.0` and install qemu-guest-agent in the guest";
            Finding::warn("agent", format!("`{name}` has no agent channel: it cannot be quiesced"), remedy)
        }
        Err(failure) => {
            let remedy = "is qemu-guest-agent running in the guest?";
            Finding::warn("agent", format!("`{name}` cannot be quiesced: {failure:#}"), remedy)
        }
    }
}

fn tool(name: &str) -> Finding {
    match command::find(name) {
        Some(path) => Finding::ok("tool", path.display().to_string()),
        None => Finding::fail("tool", format!("`{name}` is missing"), "install the package `qemu-utils`"),
    }
}

/// Only what is on logical volumes needs it.
fn lvm() -> Finding {
    match command::find("lvs") {
        Some(path) => Finding::ok("lvm", path.display().to_string()),
        None => {
            let remedy = "install the package `lvm2` if instances of this host have logical volumes";
            Finding::warn("lvm", "`lvs` is missing: no instance on logical volumes can be restored in place", remedy)
        }
    }
}

/// What it takes to read an RBD image of an instance that is shut off, and to restore one. Most hosts have none.
async fn rbd() -> Finding {
    let missing = missing_for_rbd().await;
    if missing.is_empty() {
        return Finding::ok("rbd", "RBD images of stopped instances can be read and restored");
    }
    let names = missing.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ");
    let packages = missing.iter().map(|(_, package)| format!("`{package}`")).collect::<Vec<_>>().join(" and ");
    let text = format!("RBD images of stopped instances can be neither read nor restored: {names} is missing");
    Finding::warn("rbd", text, format!("install {packages} if instances of this host are on RBD"))
}

fn scratch(directory: &Path) -> Finding {
    // Before the first start of a worker the directory is not there: its nearest parent is on the same file system.
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = directory.display();
    match statvfs(there) {
        Ok(room) => {
            let free = room.blocks_available() * room.fragment_size();
            let text = format!("{} free for `{shown}`", output::bytes(free));
            if free >= SCRATCH_COMFORTABLE {
                Finding::ok("scratch", text)
            } else {
                Finding::warn("scratch", text, "what guests overwrite during a backup is kept there: give it more room")
            }
        }
        Err(error) => Finding::fail("scratch", format!("cannot see `{shown}`: {error}"), "correct `scratch.dir`"),
    }
}

/// Starts a mover and ends it: namespaces work, and our own binary can be run.
async fn mover(doors: &Doors) -> Finding {
    let remedy = "the worker must be root with CAP_SYS_ADMIN in the host's own namespaces";
    let name = format!("check-{}", std::process::id());
    let tried = async {
        let name: MoverName = name.parse().map_err(|error: crate::model::id::InvalidName| {
            crate::failure::Failure::new(crate::failure::Code::Internal, error.to_string())
        })?;
        doors.movers.start(&name).await?.stop().await
    };
    match tokio::time::timeout(PART_MAX, tried).await {
        Ok(Ok(())) => Finding::ok("mover", "starts, with mount and PID namespaces of its own"),
        Ok(Err(failure)) => Finding::fail("mover", format!("{failure:#}"), remedy),
        Err(_) => Finding::fail("mover", format!("no answer within {} s", PART_MAX.as_secs()), remedy),
    }
}

/// The key that opens sealed credentials.
fn host_key(file: &Path) -> Finding {
    let shown = file.display();
    // A link that leads nowhere is there, and is not what the worker makes a key in place of.
    match file.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("there is no `{shown}` yet");
            let remedy = "the worker makes it when it first starts; sealed credentials need it";
            return Finding::note("host key", text, remedy);
        }
        // Whatever else is wrong with it, reading it says.
        _ => {}
    }
    match HostKey::read(file) {
        Ok(key) => Finding::ok("host key", format!("`{shown}` is that of {}", key.public())),
        Err(failure) => {
            let remedy = "`chown root` and `chmod 600` it, or put a copy of it in its place; where it is lost, remove it, start the \
                          worker and seal anew";
            Finding::fail("host key", format!("no sealed credentials can be opened: {failure:#}"), remedy)
        }
    }
}

async fn broker(config: &Config, host: &HostId) -> Result<Finding, CliError> {
    if let Err(missing) = config.broker.uri() {
        return Ok(Finding::fail(
            "broker",
            missing.to_string(),
            "the worker needs it; other commands of this host do not",
        ));
    }
    let settings = settings(&config.broker, "check")?;
    let address = settings.uri.address();
    let broker = crate::broker::connect(settings).map_err(CliError::failed)?;
    let unreachable = "is the broker up, and are user, password and virtual host right?";
    Ok(match tokio::time::timeout(PART_MAX, broker.inspect(host)).await {
        Ok(Ok(found)) => on_broker(&found, host, &address),
        Ok(Err(error)) => Finding::fail("broker", CliError::failed(error).chain(), unreachable),
        Err(_) => {
            let text = format!("no answer from {address} within {} s", PART_MAX.as_secs());
            Finding::fail("broker", text, unreachable)
        }
    })
}

fn on_broker(found: &HostOnBroker, host: &HostId, address: &str) -> Finding {
    let named = |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if !found.closed_exchanges.is_empty() {
        let text = format!("{address} lets this user not publish to {}", named(found.closed_exchanges.clone()));
        return Finding::fail("broker", text, "set the broker up for this host (`longshore broker setup`)");
    }
    if !found.missing.is_empty() {
        let names = named(found.missing.iter().map(String::as_str).collect());
        let text = format!("reached at {address}, where host `{host}` is not enrolled: there is no {names}");
        return Finding::warn(
            "broker",
            text,
            "`longshore broker setup` makes them; a worker whose user may configure makes them when it starts",
        );
    }
    Finding::ok("broker", format!("reached at {address}; jobs will come from `{}`", jobs_queue(host)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::Level;
    use super::*;

    #[test]
    fn a_run_directory_that_is_not_there_yet_is_a_note_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (not_yet, file) = (folder.path().join("run/longshore"), folder.path().join("file"));
        let (finding, there) = run_dir(&not_yet);
        assert!(finding.level == Level::Note && finding.text.contains("run/longshore` yet"), "{finding:?}");
        assert_eq!((there.as_path(), not_yet.exists()), (folder.path(), false));
        write(&file, "").unwrap();
        assert_eq!(run_dir(&file).0.level, Level::Fail);
        assert_eq!(
            run_dir(folder.path()),
            (Finding::ok("run dir", format!("`{}` is there", folder.path().display())), folder.path().to_owned())
        );
    }

    #[test]
    fn a_host_key_that_is_there_and_cannot_be_read_is_a_failure_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.key");
        assert_eq!(host_key(&file).level, Level::Note, "before the first start");
        let key = HostKey::read_or_make(&file).unwrap();
        let found = host_key(&file);
        assert!(found.level == Level::Ok && found.text.contains(&key.public().to_string()), "{found:?}");
        set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let open = host_key(&file);
        assert!(open.level == Level::Fail && open.text.contains("open to others"), "{open:?}");
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        write(&file, "no key").unwrap();
        assert_eq!(host_key(&file).level, Level::Fail);
        let (link, below) = (folder.path().join("link"), file.join("host.key"));
        symlink("nowhere", &link).unwrap();
        for other in [&link, &below] {
            let found = host_key(other);
            assert!(found.level == Level::Fail && found.remedy.is_some(), "{found:?}");
        }
    }
}
