//! What could not be removed yet, looked at again: whether the process has ended, whether the path is gone, whether lvm2 still has the
//! volume.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::{LogicalName, Remains};
use crate::host::mover;
use crate::mover::lvm::{self, Presence};

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there, or nobody can tell now.
    There,
    /// It is gone.
    Gone,
    /// It is not seen, and nor is what it would be in.
    Nowhere,
}

/// A process of this host by its id, with the directories that are to be removed once it has ended.
pub fn of_process(pid: u32, directories: Vec<PathBuf>) -> Remains {
    // One that has ended meanwhile never started at 0, so that it is found to be gone.
    Remains::Process { pid, started: started(pid).unwrap_or(0), directories }
}

/// Looks. Removes the empty directories of a process that has ended. A path, or a disk of a volume group, may be where nobody answers: then nor
/// does this.
pub async fn look(remains: &Remains) -> Seen {
    let logical = if let Remains::Volumes { logical, .. } = remains { logical.as_slice() } else { &[] };
    let remains = remains.clone();
    let seen = tokio::task::spawn_blocking(move || see(&remains)).await.unwrap_or(Seen::There);
    if seen == Seen::There || logical.is_empty() {
        return seen;
    }
    match look_for(logical).await {
        Seen::Gone => seen,
        other => other,
    }
}

/// A volume that is not active has no path.
async fn look_for(logical: &[LogicalName]) -> Seen {
    match lvm::presence(logical).await {
        Ok(Presence::There) => Seen::There,
        Ok(Presence::Gone) => Seen::Gone,
        Ok(Presence::Unseen) => Seen::Nowhere,
        Err(failure) => {
            tracing::warn!(failure = format!("{failure:#}"), "cannot see whether what was left is gone");
            Seen::There
        }
    }
}

/// As far as paths and processes tell: that of a logical volume may be there though the volume is gone, or not though it is there. Blocks.
fn see(remains: &Remains) -> Seen {
    let gone = match remains {
        Remains::Process { pid, started: then, directories } => {
            // All of them are tried, whatever becomes of the first.
            started(*pid) != Some(*then) && directories.iter().filter(|directory| !is_removed(directory)).count() == 0
        }
        Remains::Path(path) => is_absent(path),
        Remains::Volumes { files, .. } => files.iter().all(|path| is_absent(path)),
        // An image cannot be seen from here.
        Remains::Images { .. } => false,
    };
    match remains {
        _ if !gone => Seen::There,
        Remains::Volumes { files, .. } if !files.iter().all(|path| is_storage_there(path)) => Seen::Nowhere,
        _ => Seen::Gone,
    }
}

/// The directory of a volume's file has something in it, as that of an instance's disks has. One that is empty, or not there, may be where its
/// storage is mounted at other times.
fn is_storage_there(file: &Path) -> bool {
    file.parent().and_then(|directory| directory.read_dir().ok()?.next()?.ok()).is_some()
}

/// A directory that another process works in by now, or that has something in it, stays.
fn is_removed(directory: &Path) -> bool {
    mover::remove_unused(directory);
    is_absent(directory)
}

fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// When the process with that id started, unless it is gone or has only its exit status left (proc_pid_stat(5)).
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold spaces and brackets.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22 of the whole line; the state is field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_process_is_there_until_it_has_ended_and_its_directories_go_after_it() {
        let above = tempfile::tempdir().unwrap();
        let directories = ["run", "scratch"].map(|name| above.path().join(name));
        directories.iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        let mut process = sleeper();
        let remains = of_process(process.id(), directories.to_vec());
        assert!(see(&remains) == Seen::There && directories.iter().all(|directory| directory.exists()));
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(see(&remains) == Seen::Gone && !directories.iter().any(|directory| directory.exists()));
    }

    #[test]
    fn another_process_with_the_same_id_is_not_taken_for_it() {
        let mut process = sleeper();
        let Remains::Process { pid, started, .. } = of_process(process.id(), Vec::new()) else { unreachable!() };
        assert!(started > 0);
        let another = Remains::Process { pid, started: started + 1, directories: Vec::new() };
        assert_eq!(see(&another), Seen::Gone);
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_directory_that_is_not_empty_keeps_the_left_over() {
        let [full, empty] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        std::fs::write(full.path().join("file"), "x").unwrap();
        let directories = [&full, &empty].map(|directory| directory.path().to_owned()).to_vec();
        let remains = Remains::Process { pid: u32::MAX, started: 1, directories };
        assert!(see(&remains) == Seen::There && full.path().join("file").exists() && !empty.path().exists());
    }

    #[test]
    fn a_path_is_gone_when_nothing_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(see(&Remains::Path(path.clone())), Seen::There);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(see(&Remains::Path(path)), Seen::Gone);
    }

    #[tokio::test]
    async fn files_are_gone_with_the_last_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| directory.path().join(name));
        files.iter().for_each(|file| std::fs::write(file, "x").unwrap());
        let own = directory.path().join("disk");
        std::fs::write(&own, "x").unwrap();
        let remains = Remains::Volumes { files: files.to_vec(), logical: Vec::new() };
        for file in &files {
            assert_eq!(look(&remains).await, Seen::There);
            std::fs::remove_file(file).unwrap();
        }
        assert_eq!(look(&remains).await, Seen::Gone);
        // As where its storage is not mounted.
        std::fs::remove_file(own).unwrap();
        assert_eq!(look(&remains).await, Seen::Nowhere);
        drop(directory);
        assert_eq!(look(&remains).await, Seen::Nowhere);
    }

    /// Its disks may come back.
    #[tokio::test]
    async fn a_volume_whose_group_is_not_seen_is_not_known_to_be_gone() {
        let name = LogicalName { group: "longshore-no-such-group".to_owned(), name: "a.new".to_owned() };
        let seen = look(&Remains::Volumes { files: Vec::new(), logical: vec![name] }).await;
        assert_ne!(seen, Seen::Gone);
    }
}
