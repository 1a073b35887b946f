//! The staging directory of a backup: beside the published ones, so that relative backing files resolve while writing and
//! the commit is one rename. A crash leaves it; the next holder of the instance's lease moves it out of the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::replace::put_back;
use super::{Dir, ENTRIES_MAX, INSTANCES, Sent, deleting};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;

/// What the name of a staging directory begins with.
pub(crate) const STAGING_PREFIX: &str = ".staging-";
/// What that of a file begins with that is to take the place of one in a backup. It lies beside the backups, so that the entry that is
/// renamed is the one that a later holder of the lease takes away.
pub(crate) const MERGING_PREFIX: &str = ".merging-";
/// What that of everything begins with that is only there to be removed: nobody puts it into anybody's place any more.
pub(crate) const FENCED_PREFIX: &str = ".fenced-";
/// What that of a directory begins with into which a backup is moved on its way out.
pub(crate) const DELETING_PREFIX: &str = ".deleting-";
/// What that of a file begins with that was moved aside while its place is being taken ([`replace`](super::replace())).
pub(crate) const REPLACED_PREFIX: &str = ".replaced-";
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
    let fenced = format!("{FENCED_PREFIX}{rest}");
    parent.remove_tree(&fenced)?;
    match parent.rename_new(name, &fenced) {
        Err(error) if error.is_missing() => return Ok(()),
        // A full share may have no room for the other name, and what is to go is what fills it.
        Err(error) if error.is_full() => return Ok(parent.remove_tree(name)?),
        renamed => renamed?,
    }
    Ok(parent.remove_tree(&fenced)?)
}

/// A name for what is moved out of everybody's way, which nothing else ever has. `of` begins with the id of a backup, if it is of one.
pub(super) fn fenced_name(of: &str) -> String {
    let own = Uuid::new_v4();
    match of.split('.').next().and_then(|id| id.parse::<BackupId>().ok()) {
        Some(backup) => format!("{FENCED_PREFIX}{backup}.{own}"),
        None => format!("{FENCED_PREFIX}{own}"),
    }
}

/// What attempts of an instance that were cut off have left, by the names that it had when the lease of the instance was held. Whoever
/// takes that lease later makes other names, so that what is done here never touches what is theirs.
///
/// Removing it is tried, and may fail in part without harm: a network client keeps a file that somebody on its host has open, under a name
/// of its own, and a directory with such a file can't be removed. The next holder of the lease tries again.
pub(crate) struct LeftOvers {
    parent: Dir,
    /// By the names that they were found under.
    staging: Vec<String>,
    replaced: Vec<String>,
    ways_out: Vec<String>,
    doomed: Vec<Doomed>,
    kept: BTreeSet<String>,
}

/// What is only there to be removed.
struct Doomed {
    found: String,
    name: String,
}

impl LeftOvers {
    /// Only for who has just taken the instance's lease and staged nothing yet. None where the instance has no directory.
    pub fn list(root: &Dir, instance: InstanceId) -> Result<Option<Self>, Failure> {
        let parent = match root.open_dir(INSTANCES)?.open_dir(instance.to_string()) {
            Err(error) if error.is_missing() => return Ok(None),
            opened => opened?,
        };
        let names = parent.list(ENTRIES_MAX)?.into_iter().filter_map(|entry| entry.name.into_string().ok());
        let (mut staging, mut replaced, mut ways_out, mut doomed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for name in names {
            if name.starts_with(STAGING_PREFIX) || name.starts_with(MERGING_PREFIX) {
                staging.push(name);
            } else if name.starts_with(REPLACED_PREFIX) {
                replaced.push(name);
            } else if name.starts_with(DELETING_PREFIX) {
                ways_out.push(name);
            } else if name.starts_with(FENCED_PREFIX) {
                doomed.push(Doomed { found: name.clone(), name });
            }
        }
        Ok(Some(Self { parent, staging, replaced, ways_out, doomed, kept: BTreeSet::new() }))
    }

    /// Their names, as they were listed.
    pub fn names(&self) -> Vec<String> {
        let doomed = self.doomed.iter().map(|doomed| &doomed.found);
        let mut names: Vec<_> =
            [&self.staging, &self.replaced, &self.ways_out].into_iter().flatten().chain(doomed).cloned().collect();
        names.sort();
        names
    }

    /// Moves every staging directory and merged file out of the way of its writer, whose commit rename fails from then on, and ends every
    /// way out, so that nothing is moved into it any more. Answers which ones, and leaves what was in them to [`LeftOvers::remove`]: all
    /// renames come before the first removal, which may take long. What was moved aside for something that has not come goes back.
    pub fn fence(&mut self) -> Result<Vec<String>, Failure> {
        let mut fenced = Vec::new();
        for found in std::mem::take(&mut self.staging) {
            let rest = found.strip_prefix(STAGING_PREFIX).or_else(|| found.strip_prefix(MERGING_PREFIX));
            let name = fenced_name(rest.unwrap_or_default());
            match self.parent.rename_new(&found, &name) {
                Err(error) if error.is_missing() => continue,
                // As where it is discarded.
                Err(error) if error.is_full() => self.parent.remove_tree(&found)?,
                renamed => {
                    renamed?;
                    self.doomed.push(Doomed { found: found.clone(), name });
                }
            }
            fenced.push(found);
        }
        // When nobody puts anything into its place any more.
        for found in std::mem::take(&mut self.replaced) {
            if !put_back(&self.parent, &found)? {
                self.doomed.push(Doomed { found: found.clone(), name: found.clone() });
            }
            fenced.push(found);
        }
        for found in std::mem::take(&mut self.ways_out) {
            let taken = deleting::end(&self.parent, found.as_ref())?;
            self.doomed.extend(taken.into_iter().map(|name| Doomed { found: found.clone(), name }));
            fenced.push(found);
        }
        self.parent.sync()?;
        fenced.sort();
        Ok(fenced)
    }

    /// Removes one of what was moved now or earlier; false when nothing is left. To be asked again, so that the lease can be looked at
    /// between one and the next.
    pub fn remove(&mut self) -> bool {
        let Some(Doomed { found, name }) = self.doomed.pop() else { return false };
        if let Err(error) = self.parent.remove_tree(&name) {
            tracing::warn!(name, failure = format!("{:#}", Failure::from(error)), "what is in nobody's way stays");
            self.kept.insert(found);
        }
        true
    }

    /// The names of what could not be removed, as they were listed.
    pub fn kept(&self) -> &BTreeSet<String> {
        &self.kept
    }
}

/// A name that we would give to a file: letters, digits, `.`, `-` and `_`, none of them hidden.
pub(crate) fn plain_file_name(name: &str) -> bool {
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
        let listed = LeftOvers::list(&share.root, share.instance);
        assert_eq!(listed.err().unwrap().code, Code::RepositoryUnsafe);
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
        lost.parent.create_dir(".fenced-old").unwrap();
        lost.parent.create_dir(".deleting-old").unwrap();
        lost.parent.write_new(".merging-x", b"an image").unwrap();
        let mut left = LeftOvers::list(&share.root, share.instance).unwrap().unwrap();
        let names = [".deleting-old".to_owned(), ".merging-x".to_owned(), lost.name.clone()];
        assert_eq!(left.names(), [&names[0], ".fenced-old", &names[1], &names[2]]);
        assert_eq!(left.fence().unwrap(), names);
        while left.remove() {}
        assert!(left.kept().is_empty());
        assert_eq!(share.names(), [published.to_string()]);
        assert!(lost.parent.rename_new(&lost.name, "x").unwrap_err().is_missing());
        assert!(lost.parent.rename_into(".merging-x", &lost.dir, "vda.qcow2").unwrap_err().is_missing());
    }

    #[test]
    fn what_the_next_holder_of_the_lease_stages_is_no_left_over_of_an_earlier_list() {
        let share = Share::new();
        Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").unwrap();
        let mut left = LeftOvers::list(&share.root, share.instance).unwrap().unwrap();
        // The lease was taken over while the share hung.
        let theirs = Staging::make(&share.root, share.instance, BackupId::draw(), "b.1").unwrap();
        theirs.parent.create_dir(".fenced-theirs").unwrap();
        left.fence().unwrap();
        while left.remove() {}
        assert_eq!(share.names(), [".fenced-theirs".to_owned(), theirs.name]);
    }

    /// Something in a directory that no removal takes, as a file is that somebody has open behind a network file system.
    fn keep(directory: &std::path::Path) {
        std::fs::create_dir_all(directory.join("1/2/3/4/5/6/7/8/9")).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_stays_in_nobodys_way() {
        let share = Share::new();
        let lost = Staging::make(&share.root, share.instance, BackupId::draw(), "a.1").unwrap();
        let path = lost.parent.path().to_owned();
        keep(lost.dir.path());
        // As long as names may be, and as an earlier holder may have left it.
        let long = format!("{MERGING_PREFIX}{}", "x".repeat(255 - MERGING_PREFIX.len()));
        for name in [long.as_str(), ".fenced-x"] {
            keep(&path.join(name));
        }
        for round in 0..3 {
            let mut left = LeftOvers::list(&share.root, share.instance).unwrap().unwrap();
            let names = left.names();
            left.fence().unwrap();
            while left.remove() {}
            assert_eq!(left.kept().iter().cloned().collect::<Vec<_>>(), names, "round {round}");
            assert!(share.names().iter().all(|name| name.starts_with(FENCED_PREFIX)), "{:?}", share.names());
            assert_eq!(share.names().len(), 3);
        }
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
