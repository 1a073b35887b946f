//! One guard an instance at a time on this host. A guard that still watches a guest after its worker died would thaw the
//! next backup's freeze, unseen by that one; so the next guard waits until the place is free, or isn't armed.
//!
//! The place is a lock (flock(2)) on a file in a directory that only root may enter, so that nobody else can take it. It is
//! free again when its holder ends in whatever way.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;

/// Where the places are. One for all workers of the host, since it is the guest that must not have two guards.
const DIRECTORY: &str = "/run/longshore-guard";

/// For its owner alone.
const DIRECTORY_MODE: u32 = 0o700;

/// Pause between two looks whether the place is free.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// A place that is held until this is dropped.
pub(super) struct Place {
    _locked: File,
    path: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        // While the lock is held. One that stays is an empty file that the next guard takes over.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes the place of `instance`'s guard, and keeps it until the answer is dropped. `guard_failed` after `wait`.
pub(super) async fn take(instance: InstanceId, wait: Duration) -> Result<Place, Failure> {
    take_in(Path::new(DIRECTORY), instance, wait).await
}

async fn take_in(directory: &Path, instance: InstanceId, wait: Duration) -> Result<Place, Failure> {
    let path = directory.join(instance.to_string());
    let failed = |error: Error| {
        let text = format!("cannot take the place `{}` of the guard of instance `{instance}`", path.display());
        Failure::new(Code::GuardFailed, text).because(&error)
    };
    private(directory).map_err(failed)?;
    let until = Instant::now() + wait;
    loop {
        match lock(&path).map_err(failed)? {
            Some(place) => return Ok(place),
            None if Instant::now() >= until => {
                let pid = std::fs::read_to_string(&path).unwrap_or_default();
                let who = pid
                    .trim()
                    .parse::<u32>()
                    .map_or("another guard".to_owned(), |pid| format!("the guard with pid {pid}"));
                let text = format!("{who} is still at work on instance `{instance}`");
                return Err(Failure::new(Code::GuardFailed, text));
            }
            None => sleep(LOOK_PERIOD).await,
        }
    }
}

/// Makes the directory, or makes sure that nobody else made it.
fn private(directory: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let found = std::fs::symlink_metadata(directory)?;
    let ours = found.uid() == nix::unistd::Uid::effective().as_raw();
    if found.is_dir() && ours && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::other("its directory is not one that only we may enter"))
}

/// The place, or none while another has it.
fn lock(path: &Path) -> std::io::Result<Option<Place>> {
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Its last holder may have removed it between our opening and our locking.
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.ino() == file.metadata()?.ino() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(Place { _locked: file, path: path.to_owned() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_second_guard_of_an_instance_waits_for_the_first() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("guards");
        let instance = InstanceId::draw();
        let first = take_in(&directory, instance, Duration::ZERO).await.unwrap();
        let refused = take_in(&directory, instance, Duration::ZERO).await.map(drop).unwrap_err();
        assert_eq!(refused.code, Code::GuardFailed);
        assert!(refused.text.contains(&std::process::id().to_string()), "{refused}");
        take_in(&directory, InstanceId::draw(), Duration::ZERO).await.unwrap();

        let second = {
            let directory = directory.clone();
            tokio::spawn(async move { take_in(&directory, instance, Duration::from_secs(20)).await })
        };
        drop(first);
        drop(second.await.unwrap().unwrap());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "no place outlives its guard");
    }

    #[tokio::test]
    async fn a_directory_that_others_may_enter_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let refused = take_in(directory.path(), InstanceId::draw(), Duration::ZERO).await.map(drop).unwrap_err();
        assert_eq!(refused.code, Code::GuardFailed);
    }
}
