//! The process that writes a push backup, QEMU, and the proof that it can: a process of ours goes where that one is, as whom it
//! runs, and writes to the very files. What keeps it out (a mount that does not arrive, a share that takes no other user) is
//! found out before a guest is frozen, and has a remedy. Security modules are not asked; those show when the backup begins.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid};

use super::command::{Command, CommandError, shown_end};
use super::protocol::{OURSELVES, PROBE, SUBCOMMAND};
use crate::failure::{Code, Failure};

/// Longest time for the proof.
const PROBE_SECONDS_MAX: u64 = 30;
/// What the proof writes, with its own content: as much as a file system writes at least.
const PROBE_BYTES: usize = 512;
/// The exit status of a proof that did not find a file.
const NOT_THERE: u8 = 3;
/// What that means as a rule, and what to do.
const NOT_SPREAD: &str = "mounts do not spread from the worker's namespace into QEMU's: the worker's `run_dir` has to be on a mount \
    that is `shared` (`findmnt -o TARGET,PROPAGATION -T DIRECTORY`), and to have been when libvirt was started";
/// A process, as whom it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    process: u32,
    /// Its user.
    pub user: Uid,
    /// Its group.
    pub group: Gid,
    groups: Vec<Gid>,
}

/// A file as it is known by a descriptor on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Its name in the directory that was shown.
    pub name: String,
    /// Device and inode.
    pub identity: (u64, u64),
}

impl Writer {
    /// Looks the process up. `push_not_possible`: it is gone.
    pub fn of(process: u32) -> Result<Self, Failure> {
        let gone = |error: io::Error| {
            let text = format!("cannot see as whom QEMU, process {process}, runs");
            Failure::new(Code::PushNotPossible, text).because(&error)
        };
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).map_err(gone)?;
        Self::parse(process, &status).ok_or_else(|| gone(io::Error::other("its status is not readable")))
    }

    /// From proc_pid_status(5), where the second number is the effective one.
    fn parse(process: u32, status: &str) -> Option<Self> {
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let numbers = |line: &str| line.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>().ok();
        Some(Self {
            process,
            user: Uid::from_raw(*numbers(line("Uid:")?)?.get(1)?),
            group: Gid::from_raw(*numbers(line("Gid:")?)?.get(1)?),
            groups: numbers(line("Groups:")?)?.into_iter().map(Gid::from_raw).collect(),
        })
    }

    /// Proves that the process can write to each of `files` below `place`, and that they are those very files.
    pub async fn prove(&self, place: &Path, files: &[Known]) -> Result<(), Failure> {
        let mut probe = Command::new(OURSELVES).args([SUBCOMMAND, PROBE]).arg(self.process.to_string());
        for file in files {
            probe = probe.arg(place.join(&file.name));
        }
        let refused = || {
            let text = format!("QEMU, process {}, cannot write to the share at `{}`", self.process, place.display());
            Failure::new(Code::PushNotPossible, text)
        };
        let finished = match probe.run(Duration::from_secs(PROBE_SECONDS_MAX)).await {
            Ok(finished) if finished.status.success() => finished,
            Ok(finished) => {
                let failure = refused().caused_by(shown_end(&finished.stderr));
                let not_there = finished.status.code() == Some(i32::from(NOT_THERE));
                return Err(if not_there { failure.caused_by(NOT_SPREAD) } else { failure });
            }
            Err(error @ CommandError::Deadline { .. }) => {
                return Err(Failure::new(Code::RepositoryIo, refused().text).because(&error));
            }
            Err(error) => return Err(refused().because(&error)),
        };
        let found = String::from_utf8_lossy(&finished.stdout).into_owned();
        let expected: String = files.iter().map(|file| said(file.identity)).collect();
        if found == expected {
            return Ok(());
        }
        let differs = format!("it finds `{}` where `{}` was meant", found.escape_debug(), expected.escape_debug());
        Err(refused().caused_by(differs).caused_by(NOT_SPREAD))
    }

    /// Becomes as the process is: its mount namespace, user and groups. For a process with one thread.
    fn become_it(&self) -> io::Result<()> {
        let namespace = File::open(format!("/proc/{}/ns/mnt", self.process))?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        nix::unistd::setgroups(&self.groups)?;
        nix::unistd::setresgid(self.group, self.group, self.group)?;
        Ok(nix::unistd::setresuid(self.user, self.user, self.user)?)
    }
}

fn said((device, inode): (u64, u64)) -> String {
    format!("{device}:{inode}\n")
}

/// The child of [`Writer::prove`]: `PROCESS FILE…`. Says what it found, one line a file.
pub(super) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let process = arguments.next().and_then(|word| word.to_str().and_then(|word| word.parse().ok()));
    let Some(process) = process else {
        eprintln!("mover {PROBE}: needs a process id");
        return ExitCode::FAILURE;
    };
    let writer = match Writer::of(process) {
        Ok(writer) => writer,
        Err(failure) => {
            eprintln!("{failure:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = writer.become_it() {
        eprintln!("cannot go where process {process} is: {error}");
        return ExitCode::FAILURE;
    }
    for path in arguments.map(PathBuf::from) {
        match write_what_is_there(&path) {
            Ok(identity) => {
                // A mover that is gone reads nothing, and needs no answer.
                let _gone = io::Write::write_all(&mut io::stdout(), said(identity).as_bytes());
            }
            Err(error) => {
                let (user, group) = (writer.user, writer.group);
                eprintln!("user {user} of group {group} cannot write to `{}`: {error}", path.display());
                let not_there = error.kind() == io::ErrorKind::NotFound;
                return if not_there { ExitCode::from(NOT_THERE) } else { ExitCode::FAILURE };
            }
        }
    }
    ExitCode::SUCCESS
}

/// With fsync, since a server may say no only then.
fn write_what_is_there(path: &Path) -> io::Result<(u64, u64)> {
    let flags = OFlag::O_NOFOLLOW.bits();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let mut content = [0; PROBE_BYTES];
    file.read_exact_at(&mut content, 0)?;
    file.write_all_at(&content, 0)?;
    file.sync_data()?;
    let status = file.metadata()?;
    Ok((status.dev(), status.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_whom_its_status_says_in_effect() {
        let status = "Name:\tqemu\nUid:\t0\t64055\t0\t0\nGid:\t0\t64056\t0\t0\nGroups:\t104 64055 \n";
        let writer = Writer::parse(7, status).unwrap();
        assert_eq!((writer.user.as_raw(), writer.group.as_raw()), (64055, 64056));
        assert_eq!(writer.groups, [Gid::from_raw(104), Gid::from_raw(64055)]);
        assert_eq!(Writer::parse(7, "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t\n").unwrap().groups, []);
        for odd in ["", "Uid:\t0\n", "Uid:\tx\ty\nGid:\t0\t0\nGroups:\t\n"] {
            assert_eq!(Writer::parse(7, odd), None, "{odd:?}");
        }
        assert!(Writer::of(std::process::id()).unwrap().user == Uid::effective());
    }

    #[test]
    fn the_proof_leaves_a_file_as_it_was_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        let content: Vec<u8> = (0..2000).map(|at| (at % 251) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(write_what_is_there(&file).unwrap().1, std::fs::metadata(&file).unwrap().ino());
        assert_eq!(std::fs::read(&file).unwrap(), content);
        assert!(write_what_is_there(&link).is_err());
    }
}
