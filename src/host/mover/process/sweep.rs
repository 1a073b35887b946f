//! Directories of movers that are gone: a killed worker, or a killed mover, leaves its own behind, empty.
//!
//! A directory is a left-over when it has a mover's name and no process was started as the mover of that directory. It is
//! removed only while it is empty; one with something in it is not a mover's, whose files all lie in a mount of its own.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::exposed::{begin_to_unmount, exposed_in};
use crate::failure::{Code, Failure};
use crate::host::mover::MoverName;
use crate::mover::protocol::SUBCOMMAND;

/// Removes what movers that are gone have left in `run_directory`, the one that movers are given their directories in, and
/// answers what was removed. For the start of a worker, before it starts a mover of its own. `host_io`: the directory or
/// the list of processes can't be read; no such directory is no error.
pub fn sweep(run_directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::new(Code::HostIo, format!("cannot read `{}`", path.display())).because(error)
    };
    let entries = match std::fs::read_dir(run_directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(run_directory, &error))?,
    };
    let alive = of_living_movers().map_err(|error| failed(Path::new("/proc"), &error))?;
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(run_directory, &error))?;
        let path = entry.path();
        let is_movers = entry.file_name().to_str().is_some_and(|name| name.parse::<MoverName>().is_ok());
        // Removing a directory unmounts what a mover has mounted on it, so that of a living one is left alone.
        if is_movers && !alive.contains(&path) && std::fs::remove_dir(&path).is_ok() {
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// Places in `run_directory` that hold what movers that are gone have shown to the host. `is_ours` says of a name whether it is one that
/// nobody answers for any more: what else is mounted there is not ours to touch.
pub fn shown_by_the_gone(run_directory: &Path, is_ours: impl Fn(&str) -> bool) -> std::io::Result<Vec<PathBuf>> {
    let alive = of_living_movers()?;
    let gone = |place: &PathBuf| {
        let name = place.file_name().and_then(OsStr::to_str);
        let mover = name.filter(|name| is_ours(name)).and_then(|name| name.split_once('.'));
        mover.is_some_and(|(_, mover)| !alive.contains(&run_directory.join(mover)))
    };
    Ok(exposed_in(run_directory)?.into_iter().filter(gone).collect())
}

/// Removes the directory of a mover that has ended, unless it is another mover's by now or has something in it.
pub fn remove_unused(directory: &Path) {
    if of_living_movers().is_ok_and(|alive| !alive.contains(directory)) {
        // What a mover has shown to the host stays mounted as long as its guard needs it.
        begin_to_unmount(directory);
        // It stays where it is not empty, which its caller sees.
        let _kept = std::fs::remove_dir(directory);
    }
}

/// The directories that processes on this host were started as movers of, by their command lines.
pub(super) fn of_living_movers() -> std::io::Result<BTreeSet<PathBuf>> {
    let mut directories = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        directories.extend(of_mover(&entry?.path()));
    }
    Ok(directories)
}

/// The directory that a process was started as the mover of. One that ended meanwhile needs none.
pub(super) fn of_mover(process: &Path) -> Option<PathBuf> {
    let line = std::fs::read(process.join("cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let directory = (words.next() == Some(SUBCOMMAND.as_bytes())).then(|| words.next())??;
    Some(PathBuf::from(OsStr::from_bytes(directory)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn empty_directories_go_and_whatever_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["left-over", "full", ".hidden"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("full/file"), "x").unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(sweep(folder.path()).unwrap(), [folder.path().join("left-over")]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        assert!(sweep(&folder.path().join("nowhere")).unwrap().is_empty());
    }
}
