//! The few directories and files that a backup makes on the host itself, all of them on local file systems. Nothing here
//! removes a tree: only what is named, so that a path that turned out to be something else keeps its content.
//!
//! What is in them is worth as much as the guest's disks, so they are closed to everybody but root and QEMU, which may run as
//! a user of its own. A QEMU that its guest has taken over gets no more than it needs: it can make files only where nobody
//! opens them as root.
//!
//! A directory is made in one go, on the spot: one that another thread were asked to make would still come about when nobody waits for it any
//! more, as in an attempt that is stopped, and perhaps after it was to be removed.

use std::fs::{DirBuilder, Permissions, set_permissions, symlink_metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use nix::unistd::{Gid, Uid};
use tokio::fs;

use crate::failure::{Code, Failure, Remains};
use crate::model::owner::Owner;

/// For its owner alone.
const OWNER_ALONE: u32 = 0o700;

/// For its owner, and for its group to pass through to files whose names it knows.
const GROUP_PASSES: u32 = 0o710;

/// Directories above are not ours to close.
const ABOVE: u32 = 0o755;

/// What QEMU does in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It makes a socket there, so it must own the directory.
    MakesFiles,
    /// It opens files there that libvirt made as root and gave to it. It must not be able to put a link in the way of that.
    OpensFiles,
}

/// Makes a directory for us and QEMU alone, with its parents. One that is there is taken over only if it is one and ours, or
/// where QEMU makes files its user's already: the path is no secret, and whatever else is there was put in the way. Without
/// an owner QEMU runs as we do.
pub(super) fn make(path: &Path, access: Access, owner: Option<Owner>) -> Result<(), Failure> {
    let failed = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::HostIo, format!("cannot {what} `{}`", path.display())).because(error)
    };
    if let Some(parent) = path.parent() {
        let above = DirBuilder::new().recursive(true).mode(ABOVE).create(parent);
        above.map_err(|error| failed("make the directory above", &error))?;
    }
    let us = Uid::effective().as_raw();
    match DirBuilder::new().mode(OWNER_ALONE).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = symlink_metadata(path).map_err(|error| failed("look at", &error))?;
            let qemus = access == Access::MakesFiles && owner.is_some_and(|owner| owner.user == found.uid());
            if !(found.is_dir() && (found.uid() == us || qemus)) {
                return Err(failed("take over", &error));
            }
        }
        Err(error) => return Err(failed("make", &error)),
    }
    let (user, group, mode) = match (access, owner) {
        (Access::MakesFiles, Some(owner)) => (owner.user, owner.group, OWNER_ALONE),
        (Access::OpensFiles, Some(owner)) => (us, owner.group, GROUP_PASSES),
        (_, None) => (us, Gid::effective().as_raw(), OWNER_ALONE),
    };
    lchown(path, Some(user), Some(group)).map_err(|error| failed("give to QEMU's user", &error))?;
    set_permissions(path, Permissions::from_mode(mode)).map_err(|error| failed("close to others", &error))
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
            let failure = Failure::new(Code::HostIo, format!("cannot remove `{}`", path.display())).because(&error);
            Err(failure.leaving(Remains::Path(path.to_owned())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const QEMU: Owner = Owner { user: 64055, group: 64056 };

    fn seen(path: &Path) -> (u32, u32, u32) {
        let found = std::fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    fn us() -> (u32, u32) {
        (Uid::effective().as_raw(), Gid::effective().as_raw())
    }

    #[tokio::test]
    async fn a_directory_is_private_may_be_made_twice_and_goes_when_it_is_empty() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a").join("b");
        make(&path, Access::MakesFiles, None).unwrap();
        make(&path, Access::OpensFiles, None).unwrap();
        assert_eq!(seen(&path), (us().0, us().1, 0o700));
        std::fs::write(path.join("file"), b"x").unwrap();
        assert_eq!(remove_empty(&path).await.unwrap_err().code, Code::HostIo);
        remove_file(&path.join("file")).await.unwrap();
        remove_file(&path.join("file")).await.unwrap();
        remove_empty(&path).await.unwrap();
        remove_empty(&path).await.unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn qemus_user_owns_the_directory_of_the_socket_and_only_passes_that_of_the_scratch() {
        assert!(Uid::effective().is_root(), "only root can give directories away");
        let above = tempfile::tempdir().unwrap();
        let (sockets, scratch) = (above.path().join("sockets"), above.path().join("scratch"));
        for _twice in 0..2 {
            make(&sockets, Access::MakesFiles, Some(QEMU)).unwrap();
            make(&scratch, Access::OpensFiles, Some(QEMU)).unwrap();
            assert_eq!(seen(&sockets), (QEMU.user, QEMU.group, 0o700));
            assert_eq!(seen(&scratch), (us().0, QEMU.group, 0o710));
        }
        let refused = make(&sockets, Access::OpensFiles, Some(QEMU)).unwrap_err();
        assert_eq!(refused.code, Code::HostIo, "scratch is not put where QEMU could have put a link");
    }

    #[test]
    fn a_link_that_was_put_in_the_way_is_not_followed() {
        let above = tempfile::tempdir().unwrap();
        let (link, elsewhere) = (above.path().join("link"), above.path().join("elsewhere"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert_eq!(make(&link, Access::MakesFiles, None).unwrap_err().code, Code::HostIo);
    }
}
