//! How an attempt's things are called. Every name differs for every attempt, so that nothing of an earlier one is taken for this
//! one's. The directories of socket and scratch begin with the host id besides, so that whoever holds the host's control queue
//! knows what to sweep there; the mover's name and the staging directory's suffix don't: the one means something on this host
//! alone, the other stands for the installation that may remove it.

use std::path::{Path, PathBuf};

use super::super::settings::{BackupSettings, SOCKET_PATH_BYTES_MAX};
use crate::failure::{Code, Failure};
use crate::job::Attempt;
use crate::model::id::DiskTarget;

/// Hexadecimal digits of a job id that go into its paths: the last ones, which are random in a UUIDv7. The socket's path
/// has no room for all of them.
const JOB_ID_DIGITS: usize = 12;

/// `<job>.<run>.<attempt>`: the mover's name, unique on the host.
pub fn mover_name(attempt: &Attempt) -> String {
    let job = attempt.job.key.job_id.0.simple().to_string();
    let job: String = job.chars().skip(job.len().saturating_sub(JOB_ID_DIGITS)).collect();
    format!("{job}.{}.{}", attempt.job.key.run, attempt.attempt)
}

/// `<host>.<job>.<run>.<attempt>`; a host id has no dots, so the host can be read back.
pub fn attempt_name(settings: &BackupSettings, attempt: &Attempt) -> String {
    format!("{}.{}", settings.host, mover_name(attempt))
}

/// Suffix of the staging directory: two attempts never write into the same one, whichever worker they belong to.
pub fn staging_suffix(settings: &BackupSettings, attempt: &Attempt) -> String {
    format!("{}.{}", settings.installation, attempt.attempt)
}

/// The pull export's socket, in a directory that QEMU's user may write to.
pub fn socket(socket_dir: &Path) -> Result<PathBuf, Failure> {
    let socket = socket_dir.join("nbd");
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let text = format!("the socket path `{}` has more than {SOCKET_PATH_BYTES_MAX} bytes", socket.display());
        return Err(Failure::new(Code::InvalidField, text).caused_by("the worker's `run_dir` is too long"));
    }
    Ok(socket)
}

/// The scratch file of a disk.
pub fn scratch_file(scratch_dir: &Path, target: &DiskTarget) -> PathBuf {
    scratch_dir.join(format!("{target}.scratch.qcow2"))
}
