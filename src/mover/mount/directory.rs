//! Mounting a `directory` repository: the host's directory bound into the mover's own namespace. Others see nothing of it,
//! it goes when the mover goes, and nothing on it can be executed, be a device or be followed as a link by us.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::failure::{Code, Failure};
use crate::mover::share::{Dir, INSTANCES, LOCKS};

/// Binds `address` on `mount_point` and answers the mounted root. Where the address is mounted read-only so is that.
///
/// `repository_not_found`: no such directory. `repository_not_separate`: it lies on the device of its parent, so whatever
/// was to be mounted there is not, unless `same_device_ok`. `repository_unsafe`: a part of it is a file system of its own,
/// which others see where we would write underneath. `mount_failed`: the kernel refused.
pub(super) fn mount(address: &Path, mount_point: &Path, same_device_ok: bool) -> Result<Dir, Failure> {
    if !address.is_absolute() {
        let text = format!("the address `{}` is not an absolute path", address.display());
        return Err(Failure::new(Code::RepositoryNotFound, text));
    }
    let before = Dir::open_root(address).map_err(|error| {
        let text = format!("there is no directory `{}`", address.display());
        Failure::new(Code::RepositoryNotFound, text).because(&error)
    })?;
    if !same_device_ok {
        must_be_separate(address)?;
    }
    super::bind(&before, mount_point).map_err(|error| {
        let text = format!("cannot mount directory `{}` on `{}`", address.display(), mount_point.display());
        Failure::new(Code::MountFailed, text).because(&error)
    })?;
    let root = Dir::open_root(mount_point)?;
    super::must_not_follow_links(&root)?;
    for name in [INSTANCES, LOCKS] {
        let seen = |dir: &Dir| dir.stat(name).map(|status| status.map(|status| (status.st_dev, status.st_ino)));
        if seen(&before)? != seen(&root)? {
            let text = format!("something is mounted below `{}`, on `{name}`", address.display());
            return Err(Failure::new(Code::RepositoryUnsafe, text));
        }
    }
    Ok(root)
}

/// A file system of its own is mounted at `address`: its device is not that of the directory above.
pub(super) fn must_be_separate(address: &Path) -> Result<(), Failure> {
    let device = |path: &Path| {
        std::fs::metadata(path).map(|status| status.dev()).map_err(|error| {
            Failure::new(Code::RepositoryIo, format!("cannot stat `{}`", path.display())).because(&error)
        })
    };
    // The kernel resolves `..`, so that a symbolic link in the address ends above what it points at.
    if device(address)? == device(&address.join(".."))? {
        let text = format!(
            "`{}` is on the device of the directory above it: nothing is mounted there; allow it with `same_device_ok`",
            address.display()
        );
        return Err(Failure::new(Code::RepositoryNotSeparate, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_on_its_parents_device_is_not_separate_and_a_mount_point_is() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(must_be_separate(directory.path()).unwrap_err().code, Code::RepositoryNotSeparate);
        must_be_separate(Path::new("/proc")).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        must_be_separate(&link).unwrap();
    }

    #[test]
    fn an_address_that_is_relative_or_nowhere_is_not_mounted() {
        let directory = tempfile::tempdir().unwrap();
        for address in [Path::new("relative"), &directory.path().join("nowhere")] {
            let failure = mount(address, directory.path(), true).unwrap_err();
            assert_eq!(failure.code, Code::RepositoryNotFound, "{address:?}");
        }
    }
}
