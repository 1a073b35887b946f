//! Scratch of attempts that nobody answers for any more: their journal was lost, and with it the plan by which they would be unwound.
//!
//! It removes what bears the name of such an attempt of this host, and in it only what is called like scratch. A QEMU that still has its
//! scratch open goes on with it; its job is ended by the dead worker's guard, or by the next job of the instance.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use super::plan::{is_abandoned, is_scratch};
use crate::model::id::HostId;
use crate::model::job::RunKey;

/// Removes the scratch of attempts of `host` that are of none of the runs `open`, and gives their directories. What cannot be removed is
/// logged, and keeps nothing else. Blocks.
///
/// # Errors
/// The directory cannot be read.
pub fn sweep_scratch(scratch_dir: &Path, host: &HostId, open: &[RunKey]) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(scratch_dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A link that bears such a name is none of ours.
        let is_ours = entry.file_type()?.is_dir()
            && entry.file_name().to_str().is_some_and(|name| is_abandoned(host, open, name));
        match is_ours.then(|| remove(&entry.path())) {
            None => {}
            Some(Ok(())) => removed.push(entry.path()),
            Some(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(directory = %entry.path().display(), error, "cannot remove the scratch of an earlier worker");
            }
        }
    }
    removed.sort();
    Ok(removed)
}

fn remove(directory: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_scratch) {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scratch_that_no_run_answers_for_goes_and_whatever_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let host: HostId = "kvm-07".parse().unwrap();
        let open = [RunKey { job_id: "019a0f3e-7c00-7000-8000-0123456789ab".parse().unwrap(), run: 2 }];
        for name in [
            "kvm-07.ffffffffffff.1.1",
            "kvm-07.0123456789ab.2.1",
            "kvm-08.ffffffffffff.1.1",
            "kvm-07.eeeeeeeeeeee.1.1",
            "own",
        ] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("vda.scratch.qcow2"), "x").unwrap();
        }
        std::fs::create_dir(at("kvm-07.dddddddddddd.1.1")).unwrap();
        std::fs::write(at("kvm-07.eeeeeeeeeeee.1.1/notes"), "x").unwrap();
        std::os::unix::fs::symlink(at("own"), at("kvm-07.cccccccccccc.1.1")).unwrap();
        let gone = ["kvm-07.dddddddddddd.1.1", "kvm-07.ffffffffffff.1.1"].map(at);
        assert_eq!(sweep_scratch(folder.path(), &host, &open).unwrap(), gone);
        for kept in ["kvm-07.0123456789ab.2.1", "kvm-08.ffffffffffff.1.1", "own"] {
            assert!(at(kept).join("vda.scratch.qcow2").exists(), "{kept}");
        }
        assert!(at("kvm-07.eeeeeeeeeeee.1.1/notes").exists() && at("kvm-07.cccccccccccc.1.1").exists());
        assert!(sweep_scratch(&at("nowhere"), &host, &open).unwrap().is_empty());
    }
}
