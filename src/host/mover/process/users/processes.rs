//! Processes that have a block device open.
//!
//! QEMU may have it under another name, in a `/dev` of its own: so the numbers are compared. Only what lies below `/dev` is looked at; a
//! look at a file elsewhere may wait for a share that is dead. Blocks.

use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{CannotLook, Verdict, verdict};
use crate::host::mover::process::sweep::of_mover;
use crate::mover::protocol::DeviceNumbers;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// One of the devices, and the process that has it open.
    pub found: Option<(DeviceNumbers, String)>,
    /// How many processes could not be looked at.
    pub unseen: usize,
}

/// The host's own PID namespace, in which all processes are seen (`PROC_PID_INIT_INO`).
const PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether what `proc` shows are all processes of the host, and not those of a container alone.
pub(super) fn are_of_host(proc: &Path) -> bool {
    std::fs::read_link(proc.join("self/ns/pid")).is_ok_and(|found| found == Path::new(PID_NAMESPACE))
}

/// Looks at all processes that `proc` shows, among which `own` has to be: else they are not those of this host. Each device comes with one that
/// is to be open no more than itself; the mover of `claimer` has them open by right.
pub(super) fn of(
    proc: &Path,
    own: u32,
    devices: &[(DeviceNumbers, DeviceNumbers)],
    claimer: Option<&Path>,
) -> Result<Found, CannotLook> {
    let (mut all, mut sees_itself) = (Found::default(), false);
    for entry in std::fs::read_dir(proc).map_err(|error| CannotLook::at(proc, error))? {
        let process = entry.map_err(|error| CannotLook::at(proc, error))?.path();
        let id = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        let Some(id) = id else { continue };
        sees_itself |= id == own;
        if claimer.is_some_and(|claimer| of_mover(&process).is_some_and(|directory| directory == claimer)) {
            continue;
        }
        match opened_by(&process, devices) {
            Ok(None) => {}
            Ok(Some(device)) => return Ok(Found { found: Some((device, shown(id, &process))), ..all }),
            Err(CannotLook { path, source }) => match verdict(&source) {
                Verdict::Gone => {}
                Verdict::Hidden => all.unseen += 1,
                Verdict::Failed => return Err(CannotLook { path, source }),
            },
        }
    }
    match sees_itself {
        true => Ok(all),
        false => Err(CannotLook::at(proc, io::Error::other("it does not show even this process"))),
    }
}

/// The first of the devices that a process has open. An error is that of the process.
fn opened_by(process: &Path, devices: &[(DeviceNumbers, DeviceNumbers)]) -> Result<Option<DeviceNumbers>, CannotLook> {
    let open = process.join("fd");
    let mut hidden = None;
    for entry in std::fs::read_dir(&open).map_err(|error| CannotLook::at(&open, error))? {
        match entry.and_then(|entry| opened(&entry)) {
            Ok(None) => {}
            Ok(Some(number)) => {
                let opened = DeviceNumbers::of(number);
                if let Some((device, _)) = devices.iter().find(|(_, looked_at)| looked_at.overlaps(&opened)) {
                    return Ok(Some(*device));
                }
            }
            Err(error) => match verdict(&error) {
                // Closed meanwhile.
                Verdict::Gone => {}
                Verdict::Hidden => hidden = Some(error),
                Verdict::Failed => return Err(CannotLook::at(&open, error)),
            },
        }
    }
    hidden.map_or(Ok(None), |error| Err(CannotLook::at(&open, error)))
}

/// The number of the block device that is open there.
fn opened(entry: &DirEntry) -> io::Result<Option<u64>> {
    let link = entry.path();
    let leads_to: PathBuf = std::fs::read_link(&link)?;
    if !leads_to.starts_with("/dev") {
        return Ok(None);
    }
    // Of what is open, whatever its name leads to in our own `/dev`.
    let metadata = std::fs::metadata(&link)?;
    Ok(metadata.file_type().is_block_device().then(|| metadata.rdev()))
}

fn shown(id: u32, process: &Path) -> String {
    match std::fs::read_to_string(process.join("comm")) {
        Ok(name) => format!("process {id} (`{}`)", name.trim().escape_debug()),
        Err(_) => format!("process {id}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{Permissions, create_dir_all, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::unistd::{Uid, setfsuid};

    use super::*;

    const DEVICE: DeviceNumbers = DeviceNumbers { device: u64::MAX, whole: u64::MAX, sequence: None };

    /// Processes that have nothing of interest open.
    fn proc(ids: &[u32]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for id in ids {
            create_dir_all(proc.path().join(id.to_string()).join("fd")).unwrap();
            symlink("/dev/null", proc.path().join(id.to_string()).join("fd/0")).unwrap();
        }
        write(proc.path().join("uptime"), "1").unwrap();
        proc
    }

    fn look(proc: &Path) -> Result<Found, CannotLook> {
        of(proc, 7, &[(DEVICE, DEVICE)], None)
    }

    /// As a user who may do less: that of this thread alone.
    fn as_nobody<T: Send>(look: impl FnOnce() -> T + Send) -> T {
        assert!(Uid::effective().is_root(), "only root can be somebody else");
        std::thread::scope(|threads| {
            let looking = threads.spawn(|| {
                setfsuid(Uid::from_raw(65534));
                look()
            });
            looking.join().unwrap()
        })
    }

    #[test]
    fn a_process_that_may_not_be_looked_at_is_counted_and_one_that_has_ended_is_not() {
        let proc = proc(&[7, 8, 9, 10]);
        set_permissions(proc.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::remove_dir_all(proc.path().join("8/fd")).unwrap();
        for hidden in ["9/fd", "10/fd"] {
            set_permissions(proc.path().join(hidden), Permissions::from_mode(0o700)).unwrap();
        }
        assert_eq!(look(proc.path()).unwrap(), Found::default());
        let found = as_nobody(|| look(proc.path())).unwrap();
        assert_eq!(found, Found { found: None, unseen: 2 });
    }

    #[test]
    fn those_of_a_container_are_not_all_of_the_host() {
        let proc = proc(&[7]);
        assert!(!are_of_host(proc.path()), "nobody can tell");
        create_dir_all(proc.path().join("self/ns")).unwrap();
        for (namespace, all) in [("pid:[4026532836]", false), ("pid:[4026531836]", true)] {
            let link = proc.path().join("self/ns/pid");
            let _absent_at_first = std::fs::remove_file(&link);
            symlink(namespace, &link).unwrap();
            assert_eq!(are_of_host(proc.path()), all, "{namespace}");
        }
    }

    #[test]
    fn whatever_else_goes_wrong_is_not_taken_for_nobody() {
        let broken = proc(&[7, 8]);
        std::fs::remove_dir_all(broken.path().join("8/fd")).unwrap();
        write(broken.path().join("8/fd"), "no folder").unwrap();
        let error = look(broken.path()).unwrap_err();
        assert!(error.path.ends_with("8/fd"), "{error}");
        // Nothing is mounted there, or what is shown is another host's.
        for others in [proc(&[]), proc(&[8])] {
            assert!(look(others.path()).is_err());
        }
        assert!(look(&broken.path().join("nowhere")).is_err());
    }
}
