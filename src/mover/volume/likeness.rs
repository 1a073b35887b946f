//! Making a new volume like the one whose place it takes: whom it belongs to, who may do what with it, and what labels it has.
//! Without them the instance may be refused its own disk. Blocks.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::errno::Errno;
use xattr::FileExt;

/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;

/// Gives `new` the owner, the extended attributes and the mode of `old`, in this order: a change of the owner takes rights away,
/// and an access list is a part of the mode. An attribute that can't be set is left out; everything else has to be alike.
pub(in crate::mover) fn take_over(old: &File, new: &File) -> io::Result<()> {
    let (wanted, found) = (old.metadata()?, new.metadata()?);
    if (found.uid(), found.gid()) != (wanted.uid(), wanted.gid()) {
        std::os::unix::fs::fchown(new, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    take_over_attributes(old, new)?;
    let mode = wanted.mode() & PERMISSIONS;
    if new.metadata()?.mode() & PERMISSIONS != mode {
        new.set_permissions(Permissions::from_mode(mode))?;
    }
    let found = new.metadata()?;
    let who = |status: &std::fs::Metadata| (status.uid(), status.gid(), status.mode() & PERMISSIONS);
    if who(&found) == who(&wanted) {
        return Ok(());
    }
    let (user, group, mode) = who(&found);
    Err(io::Error::other(format!(
        "it belongs to user {user} of group {group} with mode {mode:o} whatever is asked for"
    )))
}

fn take_over_attributes(old: &File, new: &File) -> io::Result<()> {
    let names = match old.list_xattr() {
        Err(error) if is_refusal(&error) => return Ok(()),
        names => names?,
    };
    for name in names {
        let Some(value) = old.get_xattr(&name)? else { continue };
        // As a rule the policy or the directory has given it the same already.
        if new.get_xattr(&name).ok().flatten().as_ref() == Some(&value) {
            continue;
        }
        match new.set_xattr(&name, &value) {
            Err(error) if is_refusal(&error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(name = ?name, error, "a new volume cannot be given an attribute of the old one");
            }
            set => set?,
        }
    }
    Ok(())
}

/// The file system has no attributes, or none of that kind for us.
fn is_refusal(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOSYS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mode_and_attributes_are_taken_over() {
        let (old, new) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        old.set_permissions(Permissions::from_mode(0o640)).unwrap();
        let has_attributes = old.set_xattr("user.longshore", b"label").is_ok();
        take_over(&old, &new).unwrap();
        assert_eq!(new.metadata().unwrap().mode() & PERMISSIONS, 0o640);
        if has_attributes {
            assert_eq!(new.get_xattr("user.longshore").unwrap().unwrap(), b"label");
        }
    }
}
