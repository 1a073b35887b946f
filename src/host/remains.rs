//! What could not be removed yet, looked at again: whether the process has ended, whether the path is gone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::Remains;
use crate::host::mover;

/// A process of this host by its id, with the directory that is to be removed once it has ended.
pub fn of_process(pid: u32, directory: Option<PathBuf>) -> Remains {
    // One that has ended meanwhile never started at 0, so that it is found to be gone.
    Remains::Process { pid, started: started(pid).unwrap_or(0), directory }
}

/// Whether it is gone. Removes the empty directory of a process that has ended. Reads local file systems, so not for an
/// async thread.
pub fn is_gone(remains: &Remains) -> bool {
    match remains {
        Remains::Process { pid, started: then, directory } => {
            started(*pid) != Some(*then) && directory.as_deref().is_none_or(is_removed)
        }
        Remains::Path(path) => is_absent(path),
    }
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
    fn a_process_is_there_until_it_has_ended_and_its_directory_goes_after_it() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("mover");
        std::fs::create_dir(&directory).unwrap();
        let mut process = sleeper();
        let remains = of_process(process.id(), Some(directory.clone()));
        assert!(!is_gone(&remains) && directory.exists());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(is_gone(&remains) && !directory.exists());
    }

    #[test]
    fn another_process_with_the_same_id_is_not_taken_for_it() {
        let mut process = sleeper();
        let Remains::Process { pid, started, .. } = of_process(process.id(), None) else { unreachable!() };
        assert!(started > 0);
        assert!(is_gone(&Remains::Process { pid, started: started + 1, directory: None }));
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_directory_that_is_not_empty_keeps_the_left_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        let remains = Remains::Process { pid: u32::MAX, started: 1, directory: Some(directory.path().to_owned()) };
        assert!(!is_gone(&remains) && directory.path().join("file").exists());
    }

    #[test]
    fn a_path_is_gone_when_nothing_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        assert!(!is_gone(&Remains::Path(path.clone())));
        std::fs::remove_file(&path).unwrap();
        assert!(is_gone(&Remains::Path(path)));
    }
}
