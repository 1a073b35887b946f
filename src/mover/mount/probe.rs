//! Proof that a repository can be written to and read back, before a byte of a backup goes there: a share can be mounted
//! and still be full, read-only by its export, or gone.

use uuid::Uuid;

use crate::failure::{Code, Failure};
use crate::mover::share::{Dir, ENTRIES_MAX};

const PREFIX: &str = ".probe-";
/// Bytes of a probe: more than a file system can hide in an inode.
const PROBE_BYTES: usize = 64 * 1024;
/// Age, by the share's own clock, from which a probe was left by a crash.
const LEFT_OVER_SECONDS: i64 = 60 * 60;

/// Writes, fsyncs, renames, reads and removes a file in the root. Left-overs of crashed probes go with it.
pub(super) fn probe(root: &Dir) -> Result<(), Failure> {
    let name = format!("{PREFIX}{}", Uuid::new_v4());
    let renamed = format!("{name}.renamed");
    let content: Vec<u8> = name.bytes().cycle().take(PROBE_BYTES).collect();
    let written = write_and_read(root, &name, &renamed, &content);
    let removed = root.remove_file(&name).and(root.remove_file(&renamed));
    written?;
    Ok(removed?)
}

fn write_and_read(root: &Dir, name: &str, renamed: &str, content: &[u8]) -> Result<(), Failure> {
    root.write_new(name, content)?;
    root.rename(name, renamed)?;
    if root.read(renamed, PROBE_BYTES as u64)? != content {
        let text =
            format!("a probe in `{}` was read back with another content than was written", root.path().display());
        return Err(Failure::new(Code::RepositoryIo, text));
    }
    if let Some(now) = root.stat(renamed)?.map(|status| status.st_mtime) {
        sweep(root, now)?;
    }
    Ok(())
}

fn sweep(root: &Dir, now: i64) -> Result<(), Failure> {
    for entry in root.list(ENTRIES_MAX)? {
        if entry.name.to_str().is_some_and(|name| name.starts_with(PREFIX))
            && root.stat(&entry.name)?.is_some_and(|status| status.st_mtime < now - LEFT_OVER_SECONDS)
        {
            root.remove_file(&entry.name)?;
        }
    }
    Ok(())
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
        probe(&Dir::open_root(directory.path()).unwrap()).unwrap();
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [fresh]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_fails_its_probe() {
        let failure = probe(&Dir::open_root("/sys".as_ref()).unwrap()).unwrap_err();
        assert_eq!(failure.code, Code::RepositoryReadOnly, "{failure:#}");
    }
}
