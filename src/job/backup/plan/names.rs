//! How an attempt's things are called. Every name differs for every attempt, so that nothing of an earlier one is taken for this
//! one's. The directories of socket and scratch begin with the host id besides, so that whoever holds the host's control queue
//! knows what to sweep there; the mover's name and the staging directory's suffix don't: the one means something on this host
//! alone, the other stands for the installation that may remove it.

use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};
use crate::host::hypervisor::DomainJob;
use crate::job::Attempt;
use crate::job::names::{JOB_ID_DIGITS, job_digits, mover_name};
use crate::job::settings::{JobSettings, SOCKET_PATH_BYTES_MAX};
use crate::model::id::{DiskTarget, HostId};
use crate::model::job::RunKey;

/// The name of a pull export's socket in its directory.
const SOCKET: &str = "nbd";

/// `<host>.<job>.<run>.<attempt>`; a host id has no dots, so the host can be read back.
pub fn attempt_name(settings: &JobSettings, attempt: &Attempt) -> String {
    format!("{}.{}", settings.host, mover_name(attempt))
}

/// Whether `name` is that of an attempt of this host, of none of the runs `open`: nobody answers any more for what is called so.
pub fn is_abandoned(host: &HostId, open: &[RunKey], name: &str) -> bool {
    let Some(parts) = name.strip_prefix(host.as_str()).and_then(|rest| rest.strip_prefix('.')) else { return false };
    let [job, run, attempt] = parts.split('.').collect::<Vec<_>>()[..] else { return false };
    let is_job = job.len() == JOB_ID_DIGITS && job.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_open = |key: &RunKey| job_digits(key) == job && key.run.to_string() == run;
    is_job && run.parse::<u32>().is_ok() && attempt.parse::<u32>().is_ok() && !open.iter().any(is_open)
}

/// Suffix of the staging directory: two attempts never write into the same one, whichever worker they belong to.
pub fn staging_suffix(settings: &JobSettings, attempt: &Attempt) -> String {
    format!("{}.{}", settings.installation, attempt.attempt)
}

/// The pull export's socket, in a directory that QEMU's user may write to.
pub fn socket(socket_dir: &Path) -> Result<PathBuf, Failure> {
    let socket = socket_dir.join(SOCKET);
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let text = format!("the socket path `{}` has more than {SOCKET_PATH_BYTES_MAX} bytes", socket.display());
        return Err(Failure::new(Code::InvalidField, text).caused_by("the worker's `run_dir` is too long"));
    }
    Ok(socket)
}

/// The attempt of this host, whatever worker made it, whose libvirt job that is: the name of its directory in the run directory.
pub fn attempt_of(settings: &JobSettings, job: &DomainJob) -> Option<String> {
    let directory = match job {
        DomainJob::Pull { socket } => socket.parent().filter(|_| socket.ends_with(SOCKET))?,
        DomainJob::Push { images } => {
            let place = images.first()?.parent()?;
            images.iter().all(|image| image.parent() == Some(place)).then_some(place)?
        }
        DomainJob::Other => return None,
    };
    let name = directory.strip_prefix(&settings.run_dir).ok()?.to_str()?;
    let of_host = name.strip_prefix(settings.host.as_str())?.starts_with('.');
    (of_host && !name.contains('/')).then(|| name.to_owned())
}

/// The image of a disk in a push backup, where the host sees it.
pub fn image(place: &Path, target: &DiskTarget) -> PathBuf {
    place.join(format!("{target}.qcow2"))
}

/// What the name of a scratch file ends in.
const SCRATCH_SUFFIX: &str = ".scratch.qcow2";

/// The scratch file of a disk.
pub fn scratch_file(scratch_dir: &Path, target: &DiskTarget) -> PathBuf {
    scratch_dir.join(format!("{target}{SCRATCH_SUFFIX}"))
}

/// Whether a file of that name, in the directory of an attempt's scratch, is scratch.
pub fn is_scratch(name: &str) -> bool {
    name.ends_with(SCRATCH_SUFFIX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::model::id::InstallationId;

    #[test]
    fn only_attempts_of_this_host_that_no_open_run_answers_for_are_abandoned() {
        let host = "kvm-07".parse().unwrap();
        let open = [RunKey { job_id: "019a0f3e-7c00-7000-8000-0123456789ab".parse().unwrap(), run: 2 }];
        for abandoned in ["kvm-07.0123456789ab.1.1", "kvm-07.ffffffffffff.2.1"] {
            assert!(is_abandoned(&host, &open, abandoned), "{abandoned}");
        }
        for kept in [
            "kvm-07.0123456789ab.2.1",
            "kvm-07.0123456789ab.2.7",
            "kvm-08.0123456789ab.1.1",
            "scratch",
            "lock",
            "kvm-07",
            "kvm-07.scratch",
            "kvm-07.0123456789ab.1",
            "kvm-07.0123456789ab.1.1.1",
            "kvm-07.0123456789ab.x.1",
        ] {
            assert!(!is_abandoned(&host, &open, kept), "{kept}");
        }
    }

    #[test]
    fn only_jobs_of_this_hosts_attempts_are_ours() {
        let settings = JobSettings {
            host: "kvm-07".parse().unwrap(),
            installation: InstallationId::draw(),
            run_dir: "/run/longshore".into(),
            scratch_dir: "/scratch".into(),
            scratch_limit_bytes: None,
            stall_limit: Duration::from_secs(60),
            freeze_limit: Duration::from_secs(20),
            same_device_ok: false,
            auto_push: false,
            volume_roots: Vec::new(),
        };
        let found = |path: &str| attempt_of(&settings, &DomainJob::Pull { socket: path.into() });
        assert_eq!(found("/run/longshore/kvm-07.0123456789ab.1.2/nbd").as_deref(), Some("kvm-07.0123456789ab.1.2"));
        for others in [
            "/run/longshore/kvm-077.0123456789ab.1.2/nbd",
            "/run/longshore/kvm-07/nbd",
            "/run/longshore/kvm-07.a/b/nbd",
            "/run/longshore/kvm-07.0123456789ab.1.2/other",
            "/elsewhere/kvm-07.0123456789ab.1.2/nbd",
            "nbd",
        ] {
            assert_eq!(found(others), None, "{others}");
        }
        let images = |paths: &[&str]| {
            let images = paths.iter().map(PathBuf::from).collect();
            attempt_of(&settings, &DomainJob::Push { images })
        };
        let (vda, vdb) =
            ("/run/longshore/kvm-07.0123456789ab.1.2/vda.qcow2", "/run/longshore/kvm-07.0123456789ab.1.2/vdb.qcow2");
        assert_eq!(images(&[vda, vdb]).as_deref(), Some("kvm-07.0123456789ab.1.2"));
        for others in [&[][..], &[vda, "/backup/vdb.qcow2"], &["/run/longshore/vda.qcow2"], &["/backup/web/vda.qcow2"]]
        {
            assert_eq!(images(others), None, "{others:?}");
        }
        assert_eq!(attempt_of(&settings, &DomainJob::Other), None);
    }
}
