//! Proof that a repository can be written to and read back, before a byte of a backup goes there: a share can be mounted
//! and still be full, read-only by its export, or gone.

use std::ffi::OsStr;

use uuid::Uuid;

use crate::failure::{Code, Failure};
use crate::mover::share::{Dir, ENTRIES_MAX, ShareError};

const PREFIX: &str = ".probe-";
/// Bytes of a probe: more than a file system can hide in an inode.
const PROBE_BYTES: usize = 64 * 1024;
/// Age, by the share's own clock, from which a probe was left by a crash.
const LEFT_OVER_SECONDS: i64 = 60 * 60;

/// What a probe has shown.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mover) struct Probed {
    /// What time it is by the share's clock, seconds since 1970.
    pub share_seconds: i64,
    /// Left-overs of crashed probes that can't be removed.
    pub warning: Option<String>,
}

/// Writes, fsyncs, renames, reads and removes a file in the root. Left-overs of crashed probes go with it; those that can't be
/// removed are the warning.
pub(in crate::mover) fn probe(root: &Dir) -> Result<Probed, Failure> {
    let name = format!("{PREFIX}{}", Uuid::new_v4());
    let renamed = format!("{name}.renamed");
    let content: Vec<u8> = name.bytes().cycle().take(PROBE_BYTES).collect();
    let written = write_and_read(root, &name, &renamed, &content);
    let removed = root.remove_file(&name).and(root.remove_file(&renamed));
    let now = written?;
    removed?;
    Ok(Probed { share_seconds: now, warning: sweep(root, now) })
}

/// Answers what time it is by the share's clock.
fn write_and_read(root: &Dir, name: &str, renamed: &str, content: &[u8]) -> Result<i64, Failure> {
    root.write_new(name, content)?;
    root.rename(name, renamed)?;
    if root.read(renamed, PROBE_BYTES as u64)? != content {
        let text =
            format!("a probe in `{}` was read back with another content than was written", root.path().display());
        return Err(Failure::new(Code::RepositoryIo, text));
    }
    Ok(root.stat(renamed)?.map_or(0, |status| status.st_mtime))
}

/// A directory of such a name stays, as no probe makes one and it may hold anything.
fn sweep(root: &Dir, now: i64) -> Option<String> {
    let entries = match root.list(ENTRIES_MAX) {
        Ok(entries) => entries,
        Err(error) => return Some(format!("{:#}", Failure::from(error))),
    };
    let probes = entries.iter().filter(|entry| entry.name.to_str().is_some_and(|name| name.starts_with(PREFIX)));
    let failed: Vec<_> = probes.filter_map(|probe| remove_old(root, &probe.name, now).err()).collect();
    let (count, first) = (failed.len(), failed.into_iter().next()?);
    Some(format!("{count} left-overs of probes can't be removed, the first because: {:#}", Failure::from(first)))
}

fn remove_old(root: &Dir, name: &OsStr, now: i64) -> Result<(), ShareError> {
    match root.stat(name)? {
        Some(status) if status.st_mtime < now.saturating_sub(LEFT_OVER_SECONDS) => root.remove_file(name),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_probe_leaves_nothing_and_takes_old_left_overs_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let (old, fresh) = (directory.path().join(".probe-old"), directory.path().join(".probe-fresh"));
        std::fs::write(&fresh, "x").unwrap();
        let two_hours_ago = SystemTime::now() - Duration::from_secs(7200);
        std::fs::File::create(&old).unwrap().set_modified(two_hours_ago).unwrap();
        assert_eq!(probe(&Dir::open_root(directory.path()).unwrap()).unwrap().warning, None);
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [fresh]);
    }

    #[test]
    fn what_has_a_probes_name_and_cannot_be_removed_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let stray = directory.path().join(".probe-x");
        std::fs::create_dir(&stray).unwrap();
        std::fs::write(stray.join("precious"), "x").unwrap();
        let two_hours_ago = SystemTime::now() - Duration::from_secs(7200);
        std::fs::File::open(&stray).unwrap().set_modified(two_hours_ago).unwrap();
        let warning = probe(&Dir::open_root(directory.path()).unwrap()).unwrap().warning.unwrap();
        assert!(warning.starts_with("1 left-overs") && warning.contains(".probe-x"), "{warning}");
        assert!(stray.join("precious").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_fails_its_probe() {
        let failure = probe(&Dir::open_root("/sys".as_ref()).unwrap()).unwrap_err();
        assert_eq!(failure.code, Code::RepositoryReadOnly, "{failure:#}");
    }
}
