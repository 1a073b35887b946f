//! Whether another user can come to a directory: the permission bits of everything on the way. Access control lists are not
//! looked at, so a way that only a list opens counts as closed.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::model::owner::Owner;

/// Who goes. Root is nobody special here: libvirt takes root's capabilities from a QEMU that runs as root.
pub struct Walker {
    user: u32,
    groups: Vec<u32>,
}

impl Walker {
    /// QEMU's user, in all groups that libvirt puts it into.
    pub fn of(owner: Owner) -> Self {
        let mut groups = vec![owner.group];
        if let Ok(Some(user)) = User::from_uid(Uid::from_raw(owner.user))
            && let Ok(name) = std::ffi::CString::new(user.name)
            && let Ok(more) = getgrouplist(&name, Gid::from_raw(owner.group))
        {
            groups.extend(more.into_iter().map(Gid::as_raw));
        }
        Self { user: owner.user, groups }
    }

    /// The first directory from the top that closes the way to `directory`, itself included. What is not there yet is left
    /// out: a worker makes it so that it can be passed.
    pub fn stopped_at(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).canonicalize()?;
        let mut on_the_way: Vec<&Path> = there.ancestors().collect();
        on_the_way.reverse();
        for step in on_the_way {
            if !self.passes(&step.metadata()?) {
                return Ok(Some(step.to_owned()));
            }
        }
        Ok(None)
    }

    fn passes(&self, found: &Metadata) -> bool {
        let search = match found {
            _ if found.uid() == self.user => 0o100,
            _ if self.groups.contains(&found.gid()) => 0o010,
            _ => 0o001,
        };
        found.mode() & search != 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    const QEMU: u32 = 3_064_055;

    #[test]
    fn the_first_closed_directory_is_named_and_the_missing_ones_are_not() {
        assert!(Uid::effective().is_root(), "only root can give directories away");
        let top = tempfile::tempdir().unwrap();
        let (middle, end) = (top.path().join("middle"), top.path().join("middle/end"));
        create_dir(&middle).unwrap();
        create_dir(&end).unwrap();
        let walker = Walker { user: QEMU, groups: vec![QEMU] };
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let stopped = |path: &Path| walker.stopped_at(path).unwrap().map(|at| at.file_name().unwrap().to_owned());

        mode(top.path(), 0o711);
        mode(&middle, 0o700);
        mode(&end, 0o711);
        assert_eq!(stopped(&end).unwrap(), "middle");
        mode(&middle, 0o711);
        assert_eq!(stopped(&end), None);
        assert_eq!(stopped(&end.join("not/yet")), None);
        chown(&middle, None, Some(QEMU)).unwrap();
        mode(&middle, 0o701);
        assert_eq!(stopped(&end).unwrap(), "middle", "the group's bits count for the group");
        mode(&middle, 0o710);
        assert_eq!(stopped(&end), None);
        chown(&end, Some(QEMU), None).unwrap();
        mode(&end, 0o077);
        assert_eq!(stopped(&end).unwrap(), "end", "the owner's bits count for the owner");
    }
}
