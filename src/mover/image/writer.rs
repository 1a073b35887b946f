//! Whether somebody has a file or device open for writing, seen by the locks that QEMU takes.
//!
//! Asking for a lock would keep an instance from starting for as long as it is held, and `qemu-img info` would notice only
//! the writers of formats with metadata. So the [`locks`](crate::mover::volume::locks) are looked at and none is taken. What does not
//! lock, such as another program or a device on two hosts, is not seen here; that is found by comparing.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::failure::{Code, Failure};
use crate::mover::volume::locks;

/// Fails with `in_use_elsewhere` if one of the files has a writer.
pub(super) async fn refuse(files: &[PathBuf]) -> Result<(), Failure> {
    for path in files {
        let owned = path.clone();
        let looked = tokio::task::spawn_blocking(move || has_writer(&owned)).await;
        match looked.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(false) => {}
            Ok(true) => {
                let text = format!("another process or host has `{}` open for writing", path.display());
                return Err(Failure::new(Code::InUseElsewhere, text));
            }
            Err(error) => {
                let text = format!("cannot look for locks on `{}`", path.display());
                return Err(Failure::new(Code::SourceReadFailed, text).because(&error));
            }
        }
    }
    Ok(())
}

fn has_writer(path: &Path) -> io::Result<bool> {
    // Should it be a pipe, opening it must not wait for somebody at its other end.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(locks::is_locked(&file, locks::WRITES)? || locks::is_locked(&file, locks::RESIZES)?)
}
