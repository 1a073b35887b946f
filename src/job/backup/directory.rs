//! The few directories and files that a backup makes on the host itself, all of them on local file systems. Nothing here
//! removes a tree: only what is named, so that a path that turned out to be something else keeps its content.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use nix::unistd::Uid;
use tokio::fs;

use super::settings::QemuOwner;
use crate::failure::{Code, Failure};

/// For its owner alone.
const MODE: u32 = 0o700;

/// Makes a directory for its owner alone, with its parents. One that is there is taken over only if it is one and ours or the
/// owner's already: the path is no secret, and whatever else is there was put in the way.
pub(super) async fn make(path: &Path, owner: Option<QemuOwner>) -> Result<(), Failure> {
    let failed = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::HostIo, format!("cannot {what} `{}`", path.display())).because(error)
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).await.map_err(|error| failed("make the directory above", &error))?;
    }
    match fs::DirBuilder::new().mode(MODE).create(path).await {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).await.map_err(|error| failed("look at", &error))?;
            let ours = found.uid() == Uid::effective().as_raw() || owner.is_some_and(|owner| owner.user == found.uid());
            if !(found.is_dir() && ours) {
                return Err(failed("take over", &error));
            }
        }
        Err(error) => return Err(failed("make", &error)),
    }
    match owner {
        Some(QemuOwner { user, group }) => {
            lchown(path, Some(user), Some(group)).map_err(|error| failed("give away", &error))
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_directory_is_private_may_be_made_twice_and_goes_when_it_is_empty() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a").join("b");
        make(&path, None).await.unwrap();
        make(&path, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        std::fs::write(path.join("file"), b"x").unwrap();
        assert_eq!(remove_empty(&path).await.unwrap_err().code, Code::HostIo);
        remove_file(&path.join("file")).await.unwrap();
        remove_file(&path.join("file")).await.unwrap();
        remove_empty(&path).await.unwrap();
        remove_empty(&path).await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_link_that_was_put_in_the_way_is_not_followed() {
        let above = tempfile::tempdir().unwrap();
        let (link, elsewhere) = (above.path().join("link"), above.path().join("elsewhere"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert_eq!(make(&link, None).await.unwrap_err().code, Code::HostIo);
    }
}
