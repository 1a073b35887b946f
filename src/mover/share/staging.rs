//! The staging directory of a backup: beside the published ones, so that relative backing files resolve while writing and
//! the commit is one rename. A crash leaves it; the next holder of the instance's lease moves it out of the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Dir, ENTRIES_MAX, INSTANCES, Sent};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;

/// What the name of a staging directory begins with.
pub(crate) const STAGING_PREFIX: &str = ".staging-";
/// What that of a fenced one begins with.
pub(crate) const FENCED_PREFIX: &str = ".fenced-";
/// What that of one on its way out begins with.
pub(crate) const DELETING_PREFIX: &str = ".deleting-";
/// Longest last part of a staging directory's name, and longest name of a record, bytes.
const NAME_BYTES_MAX: usize = 100;

/// The staging directory of the backup that is being made.
pub(crate) struct Staging {
    /// The instance.
    pub instance: InstanceId,
    /// The backup.
    pub backup: BackupId,
    /// The instance's directory.
    pub parent: Arc<Dir>,
    /// The directory itself; the descriptor stays on it even when somebody renames it.
    pub dir: Arc<Dir>,
    /// Its name in `parent`.
    pub name: String,
    rest: String,
    made: Mutex<BTreeMap<String, Option<Sent>>>,
}

impl Staging {
    /// Makes it. One of the same name, which only an earlier try of the same attempt can have left, is removed first.
    /// A published backup of that id: `backup_exists`.
    pub fn make(root: &Dir, instance: InstanceId, backup: BackupId, suffix: &str) -> Result<Self, Failure> {
        if !plain_file_name(suffix) {
            return Err(Failure::new(Code::Internal, format!("`{suffix}` cannot be part of a directory's name")));
        }
        let parent = root.open_dir(INSTANCES)?.ensure_dir(instance.to_string())?;
        if parent.stat(backup.to_string())?.is_some() {
            let text = format!("backup `{backup}` of instance `{instance}` is published already");
            return Err(Failure::new(Code::BackupExists, text));
        }
        let rest = format!("{backup}.{suffix}");
        let name = format!("{STAGING_PREFIX}{rest}");
        discard(&parent, &name, &rest)?;
        parent.create_dir(&name)?;
        let dir = Arc::new(parent.open_dir(&name)?);
        Ok(Self { instance, backup, parent: Arc::new(parent), dir, name, rest, made: Mutex::default() })
    }

    /// Notes that a file of that name is of our own making, and so belongs to the backup: with what it was given, or as an
    /// image, whose content others vouch for.
    pub fn note_made(&self, file: &str, sent: Option<Sent>) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(file.to_owned(), sent);
    }

    /// The names of our own files, sorted, with what each was given; none for an image.
    pub fn made(&self) -> BTreeMap<String, Option<Sent>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a small file; one of the same name is replaced.
    pub fn record(&self, file: &str, content: &[u8]) -> Result<(), Failure> {
        if !plain_file_name(file) || file == Manifest::FILE || file == super::README {
            return Err(Failure::new(Code::Internal, format!("`{file}` cannot be the name of a record")));
        }
        self.dir.remove_file(file)?;
        self.note_made(file, Some(Sent::of(content)));
        Ok(self.dir.write_new(file, content)?)
    }

    /// Removes it, whether it is there, half there or not there.
    pub fn discard(&self) -> Result<(), Failure> {
        discard(&self.parent, &self.name, &self.rest)
    }
}

/// Renamed before it is emptied: whoever looks meanwhile sees that it is on its way out, and what still writes into it by
/// its path writes no more.
fn discard(parent: &Dir, name: &str, rest: &str) -> Result<(), Failure> {
    let deleting = format!("{DELETING_PREFIX}{rest}");
    parent.remove_tree(&deleting)?;
    match parent.rename_new(name, &deleting) {
        Err(error) if error.is_missing() => return Ok(()),
        // A full share may have no room for the other name, and what is to go is what fills it.
        Err(error) if error.is_full() => return Ok(parent.remove_tree(name)?),
        renamed => renamed?,
    }
    Ok(parent.remove_tree(&deleting)?)
}

/// Moves every staging directory of an instance out of the way of its writer, whose commit rename fails from then on,
/// and then removes what was moved now or earlier. Only for who has just taken the instance's lease and staged nothing
/// yet. Answers the names of what was fenced.
pub(crate) fn fence_leftovers(root: &Dir, instance: InstanceId) -> Result<Vec<String>, Failure> {
    let parent = match root.open_dir(INSTANCES)?.open_dir(instance.to_string()) {
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut fenced = Vec::new();
    for entry in parent.list(ENTRIES_MAX)? {
        let Some(name) = entry.name.to_str() else { continue };
        if let Some(rest) = name.strip_prefix(STAGING_PREFIX) {
            let target = format!("{FENCED_PREFIX}{rest}");
            parent.remove_tree(&target)?;
            match parent.rename_new(name, &target) {
                Err(error) if error.is_missing() => continue,
                renamed => renamed?,
            }
            fenced.push(name.to_owned());
        }
    }
    // All renames come before the first removal, which may take long.
    parent.sync()?;
    for entry in parent.list(ENTRIES_MAX)? {
        if entry.name.to_str().is_some_and(|name| name.starts_with(FENCED_PREFIX) || name.starts_with(DELETING_PREFIX))
        {
            parent.remove_tree(&entry.name)?;
        }
    }
    Ok(fenced)
}

/// Removes what attempts of an instance that were cut off have left, as [`fence_leftovers`] does, and answers the names of what is gone.
/// Only for who has just taken the instance's lease.
pub(crate) fn sweep_leftovers(root: &Dir, instance: InstanceId) -> Result<Vec<String>, Failure> {
    let left = || -> Result<Vec<String>, Failure> {
        let parent = match root.open_dir(INSTANCES)?.open_dir(instance.to_string()) {
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            opened => opened?,
        };
        let names = parent.list(ENTRIES_MAX)?.into_iter().filter_map(|entry| entry.name.into_string().ok());
        let kinds = [STAGING_PREFIX, FENCED_PREFIX, DELETING_PREFIX];
        Ok(names.filter(|name| kinds.iter().any(|kind| name.starts_with(kind))).collect())
    };
    let mut removed = left()?;
    fence_leftovers(root, instance)?;
    let still = left()?;
    removed.retain(|name| !still.contains(name));
    removed.sort();
    Ok(removed)
}

/// A name that we would give to a file: letters, digits, `.`, `-` and `_`, none of them hidden.
fn plain_file_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    struct Share {
        directory: tempfile::TempDir,
        root: Dir,
        instance: InstanceId,
    }

    impl Share {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            super::super::init(directory.path()).unwrap();
            let root = Dir::open_root(directory.path()).unwrap();
            Self { directory, root, instance: InstanceId::draw() }
        }

        fn names(&self) -> Vec<String> {
            let path = self.directory.path().join(INSTANCES).join(self.instance.to_string());
            let mut names: Vec<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_staging_directory_is_made_filled_and_discarded_twice_over() {
        let share = Share::new();
        let backup = BackupId::draw();
        let staging = Staging::make(&share.root, share.instance, backup, "a.1").unwrap();
        staging.record("domain.xml", b"one").unwrap();
        staging.record("domain.xml", b"two").unwrap();
        assert_eq!(staging.dir.read("domain.xml", 10).unwrap(), b"two");
        assert_eq!(share.names(), [format!(".staging-{backup}.a.1")]);

        let again = Staging::make(&share.root, share.instance, backup, "a.1").unwrap();
        assert_eq!(again.dir.list(10).unwrap().len(), 0, "a second try begins anew");
        again.discard().unwrap();
        again.discard().unwrap();
        assert!(share.names().is_empty());
    }

    #[test]
    fn records_with_names_that_lead_elsewhere_or_belong_to_others_are_refused() {
        let share = Share::new();
        let staging = Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").unwrap();
        for name in
            ["", ".", "..", "../x", "a/b", ".hidden", "manifest.json", "README-RESTORE.txt", "a\nb", &"a".repeat(101)]
        {
            assert_eq!(staging.record(name, b"").unwrap_err().code, Code::Internal, "{name}");
        }
        assert!(Staging::make(&share.root, share.instance, BackupId::draw(), "../x").is_err());
    }

    #[test]
    fn a_link_in_place_of_the_instances_directory_is_not_followed() {
        let share = Share::new();
        let elsewhere = tempfile::tempdir().unwrap();
        let path = share.directory.path().join(INSTANCES).join(share.instance.to_string());
        symlink(elsewhere.path(), path).unwrap();
        let failure = Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").err().unwrap();
        assert_eq!(failure.code, Code::RepositoryUnsafe);
        assert_eq!(fence_leftovers(&share.root, share.instance).unwrap_err().code, Code::RepositoryUnsafe);
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn removing_a_tree_removes_links_and_not_what_they_point_at() {
        let share = Share::new();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("precious"), "x").unwrap();
        let staging = Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").unwrap();
        let path = staging.dir.path().to_owned();
        symlink(elsewhere.path(), path.join("out")).unwrap();
        std::fs::create_dir(path.join("in")).unwrap();
        symlink(elsewhere.path(), path.join("in/out")).unwrap();
        staging.discard().unwrap();
        assert!(elsewhere.path().join("precious").exists());
        assert!(share.names().is_empty());
    }

    #[test]
    fn fencing_takes_the_staging_of_a_lost_holder_away_and_leaves_published_backups() {
        let share = Share::new();
        let published = BackupId::draw();
        let lost = Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").unwrap();
        lost.record("domain.xml", b"x").unwrap();
        lost.parent.create_dir(published.to_string()).unwrap();
        lost.parent.create_dir(".deleting-old").unwrap();
        assert_eq!(fence_leftovers(&share.root, share.instance).unwrap(), std::slice::from_ref(&lost.name));
        assert_eq!(share.names(), [published.to_string()]);
        assert!(lost.parent.rename_new(&lost.name, "x").unwrap_err().is_missing());
    }

    #[test]
    fn a_published_id_cannot_be_staged_again() {
        let share = Share::new();
        let backup = BackupId::draw();
        let staging = Staging::make(&share.root, share.instance, backup, "a.1").unwrap();
        staging.parent.rename_new(&staging.name, backup.to_string()).unwrap();
        let failure = Staging::make(&share.root, share.instance, backup, "a.2").err().unwrap();
        assert_eq!(failure.code, Code::BackupExists);
    }
}
