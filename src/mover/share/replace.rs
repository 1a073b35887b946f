//! A file that takes the place of another one in a backup, without a moment in which a crash could cost both. Blocks.
//!
//! One rename does that, but on CIFS. There a server refuses to replace what somebody has open, after which Linux's client removes that, and
//! renames once more: where this fails as well, neither is there ("smb: client: fix data loss due to broken rename(2)", 2025, in
//! kernels before 6.17). So on CIFS the old file is moved aside first, to be put back by whoever takes the instance's lease next and
//! finds its place empty.

use super::staging::REPLACED_PREFIX;
use super::{Dir, ShareError};
use crate::model::id::BackupId;

/// What statfs(2) says of CIFS, by either of the kernel's clients.
pub(in crate::mover) const CIFS_MAGIC: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];

/// Gives `fresh`, which is in the instance's directory `parent`, the name `file` in `dir`, the directory of `backup`.
pub(crate) fn replace(parent: &Dir, fresh: &str, dir: &Dir, backup: BackupId, file: &str) -> Result<(), ShareError> {
    match CIFS_MAGIC.contains(&dir.file_system()?) {
        true => by_way_of_a_third_name(parent, fresh, dir, &aside(backup, file), file),
        false => parent.rename_into(fresh, dir, file),
    }
}

/// Where a file is while its place is being taken.
fn aside(backup: BackupId, file: &str) -> String {
    format!("{REPLACED_PREFIX}{backup}.{file}")
}

fn by_way_of_a_third_name(parent: &Dir, fresh: &str, dir: &Dir, aside: &str, file: &str) -> Result<(), ShareError> {
    let is_there = dir.stat(file)?.is_some();
    if is_there {
        // What an earlier one has replaced, and could not remove. Nothing is renamed onto it.
        parent.remove_file(aside)?;
        dir.rename_into(file, parent, aside)?;
    }
    match parent.rename_into(fresh, dir, file) {
        Ok(()) => {}
        Err(error) => {
            if dir.stat(file)?.is_none() && parent.stat(aside)?.is_some() {
                parent.rename_into(aside, dir, file)?;
            }
            return Err(error);
        }
    }
    dir.sync()?;
    // Somebody may have it open still; whoever takes the lease next removes it.
    if let Err(error) = parent.remove_file(aside) {
        tracing::warn!(aside, %error, "what was replaced is not removed yet");
    }
    Ok(())
}

/// Puts what was moved aside back where its place is empty; false where it is not, and the file is only there to be removed.
pub(super) fn put_back(parent: &Dir, name: &str) -> Result<bool, ShareError> {
    let rest = name.strip_prefix(REPLACED_PREFIX).and_then(|rest| rest.split_once('.'));
    let Some((backup, file)) = rest.filter(|(backup, _)| backup.parse::<BackupId>().is_ok()) else { return Ok(false) };
    let dir = match parent.open_dir(backup) {
        Err(error) if error.is_missing() => return Ok(false),
        Err(ShareError::NotWhatItSays { .. }) => return Ok(false),
        opened => opened?,
    };
    if dir.stat(file)?.is_some() {
        return Ok(false);
    }
    parent.rename_into(name, &dir, file)?;
    dir.sync()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// An instance's directory with a backup that has an image, and a new image beside it.
    struct Scene {
        folder: tempfile::TempDir,
        parent: Dir,
        backup: BackupId,
        aside: String,
    }

    const FRESH: &str = ".merging-x";
    const FILE: &str = "vda.qcow2";

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let backup = BackupId::draw();
            fs::create_dir(folder.path().join(backup.to_string())).unwrap();
            let scene =
                Self { parent: Dir::open_root(folder.path()).unwrap(), folder, backup, aside: aside(backup, FILE) };
            fs::write(scene.place(), "old").unwrap();
            fs::write(scene.folder.path().join(FRESH), "new").unwrap();
            scene
        }

        fn place(&self) -> PathBuf {
            self.folder.path().join(self.backup.to_string()).join(FILE)
        }

        fn dir(&self) -> Dir {
            self.parent.open_dir(self.backup.to_string()).unwrap()
        }

        fn by_three_names(&self) -> Result<(), ShareError> {
            by_way_of_a_third_name(&self.parent, FRESH, &self.dir(), &self.aside, FILE)
        }

        /// What is in the place, and what is beside the backup.
        fn seen(&self) -> (String, Vec<String>) {
            let entries = fs::read_dir(self.folder.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut hidden: Vec<_> = names.filter(|name| name.starts_with('.')).collect();
            hidden.sort();
            (fs::read_to_string(self.place()).unwrap_or_default(), hidden)
        }
    }

    #[test]
    fn the_new_one_is_there_and_the_old_one_is_gone() {
        let scene = Scene::new();
        scene.by_three_names().unwrap();
        assert_eq!(scene.seen(), ("new".into(), Vec::new()));
        let scene = Scene::new();
        replace(&scene.parent, FRESH, &scene.dir(), scene.backup, FILE).unwrap();
        assert_eq!(scene.seen(), ("new".into(), Vec::new()));
    }

    #[test]
    fn where_the_new_one_was_taken_away_the_old_one_is_back() {
        let scene = Scene::new();
        fs::remove_file(scene.folder.path().join(FRESH)).unwrap();
        assert!(scene.by_three_names().unwrap_err().is_missing());
        assert_eq!(scene.seen(), ("old".into(), Vec::new()));
    }

    #[test]
    fn one_that_was_cut_off_goes_on_or_is_put_back() {
        let cut_off = || {
            let scene = Scene::new();
            fs::rename(scene.place(), scene.folder.path().join(&scene.aside)).unwrap();
            scene
        };
        let scene = cut_off();
        scene.by_three_names().unwrap();
        assert_eq!(scene.seen(), ("new".into(), Vec::new()));
        let scene = cut_off();
        assert!(put_back(&scene.parent, &scene.aside).unwrap());
        assert_eq!(scene.seen(), ("old".into(), vec![FRESH.into()]));
    }

    #[test]
    fn what_was_replaced_and_stays_is_never_put_back() {
        let scene = Scene::new();
        fs::write(scene.folder.path().join(&scene.aside), "older").unwrap();
        assert!(!put_back(&scene.parent, &scene.aside).unwrap());
        scene.by_three_names().unwrap();
        assert_eq!(scene.seen(), ("new".into(), Vec::new()));
        for name in [".replaced-", ".replaced-x.vda.qcow2", &aside(BackupId::draw(), FILE)] {
            assert!(!put_back(&scene.parent, name).unwrap(), "{name}");
        }
    }
}
