//! The few directories and files that a backup makes on the host itself, all of them on local file systems. Nothing here
//! removes a tree: only what is named, so that a path that turned out to be something else keeps its content.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, chown};
use tokio::fs;

use super::settings::QemuOwner;
use crate::failure::{Code, Failure};

/// For its owner alone.
const MODE: u32 = 0o700;

/// Makes a directory for its owner alone, with its parents; one that is there is taken over.
pub(super) async fn make(path: &Path, owner: Option<QemuOwner>) -> Result<(), Failure> {
    let failed = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::HostIo, format!("cannot {what} `{}`", path.display())).because(error)
    };
    fs::create_dir_all(path).await.map_err(|error| failed("make", &error))?;
    fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .await
        .map_err(|error| failed("set the mode of", &error))?;
    match owner {
        Some(QemuOwner { user, group }) => chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            .map_err(|error| failed("give away", &error)),
        None => Ok(()),
    }
}

/// Removes a file; one that isn't there is no error.
pub(super) async fn remove_file(path: &Path) -> Result<(), Failure> {
    removed(path, fs::remove_file(path).await)
}

/// Removes an empty directory; one that isn't there is no error.
pub(super) async fn remove_empty(path: &Path) -> Result<(), Failure> {
    removed(path, fs::remove_dir(path).await)
}

fn removed(path: &Path, result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::new(Code::HostIo, format!("cannot remove `{}`", path.display())).because(&error))
        }
        _ => Ok(()),
    }
}
