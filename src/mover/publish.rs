//! The commit of a backup: its manifest, and the rename that makes the staging directory a backup. All of it blocks.
//!
//! ```text
//!   manifest.json.tmp ─fsync─▶ manifest.json ─read back, fsync dir─▶ rename directory into place ─fsync parent─▶ published
//!                                                            │ error: look at both names
//!                                                            ├─ ours is in place ──────▶ published
//!                                                            ├─ staging is still there ─▶ failed, can be discarded
//!                                                            ├─ neither ───────────────▶ `lease_lost`: it was fenced
//!                                                            └─ can't be looked at ────▶ not known: to be asked again
//! ```
//!
//! The rename is the fence of a lost lease and of an earlier attempt alike: a looked-at name proves nothing behind a
//! network client's cache, a rename that the server refuses does.

use std::time::Duration;

use serde::Serialize;

use super::share::{
    Dir, INSTANCES, MANIFEST_BYTES_MAX, NUMBER_MAX, README, Sent, ShareError, Staging, highest_number, must_be_stored,
    read_identity, read_manifest, restore_readme,
};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;

const MANIFEST_TEMPORARY: &str = "manifest.json.tmp";
/// Looks at the two names after a rename that answered an error, as long as they can't be looked at either.
const LOOKS_MAX: u32 = 30;
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What became of a commit.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The backup's place among those of its instance.
    pub number: u64,
    /// What did not work though the backup is good.
    pub warnings: Vec<String>,
}

/// What a commit came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Published(Published),
    /// The rename was asked for, under that number, and it can't be seen now what became of it.
    NotKnown {
        number: u64,
        failure: Failure,
    },
}

/// Looks again at a commit that ended as not known. Nothing is written: what was staged may be a published backup by now.
pub(super) fn look_again(staging: &Staging, manifest: &Manifest, number: u64) -> Result<Outcome, Failure> {
    let refused = ShareError::Refused { action: "rename", shown: staging.name.clone(), errno: nix::errno::Errno::EIO };
    match settle(staging, manifest, refused) {
        Settled::Published => Ok(after_the_rename(staging, number, Vec::new())),
        Settled::Not(failure) => Err(failure),
        Settled::NotKnown(failure) => Ok(Outcome::NotKnown { number, failure }),
    }
}

/// Publishes what is in `staging`, as `manifest` describes it. The lease of the instance must be held; it is the `lease`th.
/// An error means that it is not published.
pub(super) fn publish(staging: &Staging, mut manifest: Manifest, lease: u64) -> Result<Outcome, Failure> {
    if manifest.backup_id != staging.backup || manifest.instance_id != staging.instance {
        return Err(Failure::new(Code::Internal, "the manifest is that of another backup than was staged"));
    }
    check_files(staging, &manifest)?;
    let (highest, unreadable) = highest_number(&staging.parent, staging.instance)?;
    manifest.number = highest.saturating_add(1);
    if unreadable.is_some() {
        // One that can't be read may have had a higher number, but none higher than its lease, as each lease publishes once.
        manifest.number = manifest.number.max(lease);
    }
    let mut warnings: Vec<_> = unreadable.into_iter().collect();
    if manifest.number > NUMBER_MAX {
        let text = format!("a backup of instance `{}` has the highest number that there is", staging.instance);
        return Err(Failure::new(Code::RepositoryUnsafe, text));
    }
    write_manifest(staging, &manifest)?;
    if !staging.dir.sync()? {
        warnings.push(no_directory_fsync(&staging.dir));
    }
    let name = staging.backup.to_string();
    if let Err(error) = staging.parent.rename_new(&staging.name, &name) {
        match settle(staging, &manifest, error) {
            Settled::Published => {}
            Settled::Not(failure) => return Err(failure),
            Settled::NotKnown(failure) => return Ok(Outcome::NotKnown { number: manifest.number, failure }),
        }
    }
    Ok(after_the_rename(staging, manifest.number, warnings))
}

/// From here on the backup is published, so nothing is an error any more.
fn after_the_rename(staging: &Staging, number: u64, mut warnings: Vec<String>) -> Outcome {
    match staging.parent.sync() {
        Ok(true) => {}
        Ok(false) => warnings.push(no_directory_fsync(&staging.parent)),
        Err(error) => warnings.push(format!("{:#}", Failure::from(error))),
    }
    Outcome::Published(Published { number, warnings })
}

/// The manifest of a published backup; `backup_not_found` for none, `repository_identity_mismatch` for one that was put here from
/// another repository.
pub(super) fn find(root: &Dir, instance: InstanceId, backup: BackupId) -> Result<Manifest, Failure> {
    open(root, instance, backup).map(|(manifest, _)| manifest)
}

/// Likewise, with the backup's directory.
pub(super) fn open(root: &Dir, instance: InstanceId, backup: BackupId) -> Result<(Manifest, Dir), Failure> {
    let missing = || Failure::new(Code::BackupNotFound, format!("backup `{backup}` is not published"));
    let parent = published_parent(root, instance, backup)?.ok_or_else(missing)?;
    let manifest = read_manifest(&parent, instance, backup)?;
    let repository = read_identity(root)?.repository_id;
    if manifest.repository_id != repository {
        let whose = format!("backup `{backup}` belongs to repository `{}`", manifest.repository_id);
        return Err(Failure::new(Code::RepositoryIdentityMismatch, format!("{whose}, and this one is `{repository}`")));
    }
    Ok((manifest, parent.open_dir(backup.to_string())?))
}

/// Finds out whether this very attempt published its backup before: after a crash, or after an answer that nobody heard.
pub(super) fn published_before(root: &Dir, manifest: &Manifest) -> Result<Option<Published>, Failure> {
    let Some(parent) = published_parent(root, manifest.instance_id, manifest.backup_id)? else { return Ok(None) };
    let found = read_manifest(&parent, manifest.instance_id, manifest.backup_id)?;
    Ok(same_attempt(&found, manifest).then(|| Published { number: found.number, warnings: Vec::new() }))
}

/// The instance's directory, if there is a backup of that name in it.
fn published_parent(root: &Dir, instance: InstanceId, backup: BackupId) -> Result<Option<Dir>, Failure> {
    let found = root
        .open_dir(INSTANCES)
        .and_then(|instances| instances.open_dir(instance.to_string()))
        .and_then(|parent| parent.stat(backup.to_string()).map(|status| status.map(|_| parent)));
    match found {
        Ok(parent) => Ok(parent),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every file that the manifest names is there with the length that it names.
fn check_files(staging: &Staging, manifest: &Manifest) -> Result<(), Failure> {
    let images = manifest.disks.iter().map(|disk| (&disk.file, Some(disk.file_bytes)));
    let blocks = manifest.disks.iter().map(|disk| (&disk.blocks_file, None));
    let records = manifest.records.iter().map(|record| (&record.file, Some(record.bytes)));
    for (file, wanted) in images.chain(blocks).chain(records) {
        let found = staging.dir.file_bytes(file)?;
        if found.is_none() || wanted.is_some_and(|wanted| found != Some(wanted)) {
            let text = format!(
                "`{}` in the staging directory is not as the manifest says: {found:?} bytes instead of {wanted:?}",
                file.escape_debug()
            );
            return Err(Failure::new(Code::RepositoryIo, text));
        }
    }
    Ok(())
}

/// Writes the restore instructions and the manifest, and reads both back from the storage.
fn write_manifest(staging: &Staging, manifest: &Manifest) -> Result<(), Failure> {
    let content = encoded(manifest)?;
    // An earlier try in this staging directory may have left any of the three.
    for file in [README, MANIFEST_TEMPORARY, Manifest::FILE] {
        staging.dir.remove_file(file)?;
    }
    let readme = restore_readme(manifest).into_bytes();
    staging.dir.write_new(README, &readme)?;
    staging.dir.write_new(MANIFEST_TEMPORARY, &content)?;
    staging.dir.rename_new(MANIFEST_TEMPORARY, Manifest::FILE)?;
    // Without its manifest nothing of the backup is of use to anybody.
    must_be_stored(&staging.dir, Manifest::FILE, &Sent::of(&content))?;
    must_be_stored(&staging.dir, README, &Sent::of(&readme))
}

/// A manifest, or one with more in it than this version knows, as it stands in its file.
pub(super) fn encoded(manifest: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut content = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Failure::new(Code::Internal, "cannot write the manifest").because(&error))?;
    content.push(b'\n');
    if content.len() as u64 > MANIFEST_BYTES_MAX {
        let text = format!("the manifest has {} bytes where {MANIFEST_BYTES_MAX} are allowed", content.len());
        return Err(Failure::new(Code::Internal, text));
    }
    Ok(content)
}

/// What a rename whose answer was an error has come to.
enum Settled {
    Published,
    /// It did not happen, or somebody else's is there.
    Not(Failure),
    /// It can't be seen now.
    NotKnown(Failure),
}

/// The rename answered an error, which says nothing about whether it happened: a server's answer may have been lost and
/// the repeated request refused. So does an error while looking: it is never taken for a "no".
fn settle(staging: &Staging, manifest: &Manifest, error: ShareError) -> Settled {
    let looked = look(staging).and_then(|seen| match seen {
        Seen { ours: false, staged: false, named: true } => {
            Ok((seen, Some(read_manifest(&staging.parent, staging.instance, staging.backup)?)))
        }
        seen => Ok((seen, None)),
    });
    match looked {
        Ok((Seen { ours: true, .. }, _)) => Settled::Published,
        Ok((_, Some(found))) if same_attempt(&found, manifest) => Settled::Published,
        Ok((Seen { named: true, .. }, _)) => Settled::Not(exists(staging)),
        Ok((Seen { staged: true, .. }, _)) => Settled::Not(error.into()),
        Ok(_) => {
            let text = format!("the staging directory of backup `{}` was taken away", staging.backup);
            Settled::Not(Failure::new(Code::LeaseLost, text).because(&error))
        }
        // What is there is not ours, and is damaged.
        Err(failure) if failure.code == Code::RepositoryUnsafe => Settled::Not(exists(staging).because(&failure)),
        Err(failure) => {
            let text = format!("it can't be seen whether backup `{}` was published", staging.backup);
            Settled::NotKnown(Failure::new(Code::RepositoryIo, text).because(&error).because_of(&failure))
        }
    }
}

/// What has the two names.
struct Seen {
    /// The backup's name leads to the very directory that was staged.
    ours: bool,
    /// The staging directory's name is there.
    staged: bool,
    /// The backup's name is there.
    named: bool,
}

fn look(staging: &Staging) -> Result<Seen, Failure> {
    let once = || -> Result<Seen, ShareError> {
        let named = staging.parent.stat(staging.backup.to_string())?;
        let staged = staging.parent.stat(&staging.name)?.is_some();
        let own = staging.dir.device_and_inode()?;
        let ours = named.as_ref().is_some_and(|status| (status.st_dev, status.st_ino) == own);
        Ok(Seen { ours, staged, named: named.is_some() })
    };
    let mut looks = 0;
    loop {
        looks += 1;
        match once() {
            Ok(seen) => return Ok(seen),
            Err(error) if looks == LOOKS_MAX => return Err(error.into()),
            Err(_) => std::thread::sleep(LOOK_PAUSE),
        }
    }
}

fn same_attempt(found: &Manifest, ours: &Manifest) -> bool {
    found.job_id == ours.job_id && found.run == ours.run && found.attempt == ours.attempt
}

fn exists(staging: &Staging) -> Failure {
    let text = format!("backup `{}` of instance `{}` was published by somebody else", staging.backup, staging.instance);
    Failure::new(Code::BackupExists, text)
}

fn no_directory_fsync(dir: &Dir) -> String {
    format!("the file system of `{}` has no fsync for directories", dir.path().display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::mover::share::{self, Listed};
    use crate::mover::testing;

    /// Under the first lease; what comes of it must be known.
    fn publish(staging: &Staging, manifest: Manifest) -> Result<Published, Failure> {
        match super::publish(staging, manifest, 1)? {
            Outcome::Published(published) => Ok(published),
            Outcome::NotKnown { failure, .. } => panic!("not known: {failure:#}"),
        }
    }

    struct Share {
        directory: tempfile::TempDir,
        root: Dir,
    }

    impl Share {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            share::init(directory.path()).unwrap();
            let root = Dir::open_root(directory.path()).unwrap();
            Self { directory, root }
        }

        fn stage(&self, manifest: &Manifest, suffix: &str) -> Staging {
            let staging = Staging::make(&self.root, manifest.instance_id, manifest.backup_id, suffix).unwrap();
            testing::fill(manifest, |file, content| staging.record(file, content).unwrap());
            staging
        }
    }

    #[test]
    fn a_published_backup_is_listed_found_and_numbered() {
        let share = Share::new();
        let first = testing::manifest(&["vda"]);
        let mut second = Manifest { backup_id: BackupId::draw(), ..first.clone() };
        assert_eq!(publish(&share.stage(&first, "a.1"), first.clone()).unwrap().number, 1);
        assert_eq!(publish(&share.stage(&second, "a.1"), second.clone()).unwrap().number, 2);
        second.number = 2;
        let listed = share::list_backups(share.directory.path()).unwrap();
        assert_eq!(listed, [Listed::Backup(Manifest { number: 1, ..first.clone() }), Listed::Backup(second.clone())]);
        assert_eq!(share::find_backup(share.directory.path(), second.backup_id).unwrap(), second);
        let directory = share.directory.path().join(INSTANCES).join(first.instance_id.to_string());
        let readme = std::fs::read_to_string(directory.join(first.backup_id.to_string()).join(README)).unwrap();
        assert!(readme.contains("qemu-img check vda.qcow2"), "{readme}");
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 2, "no staging is left");
    }

    #[test]
    fn a_fenced_staging_directory_cannot_be_published() {
        let share = Share::new();
        let manifest = testing::manifest(&["vda"]);
        let staging = share.stage(&manifest, "a.1");
        staging.parent.rename(&staging.name, ".fenced-x").unwrap();
        assert_eq!(publish(&staging, manifest).unwrap_err().code, Code::LeaseLost);
    }

    #[test]
    fn of_two_attempts_at_one_backup_only_the_first_is_published() {
        let share = Share::new();
        let first = testing::manifest(&["vda"]);
        let second = Manifest { attempt: 2, ..first.clone() };
        let (one, two) = (share.stage(&first, "a.1"), share.stage(&second, "a.2"));
        publish(&one, first.clone()).unwrap();
        assert_eq!(publish(&two, second.clone()).unwrap_err().code, Code::BackupExists);
        assert_eq!(published_before(&share.root, &first).unwrap().unwrap().number, 1);
        assert!(published_before(&share.root, &second).unwrap().is_none());
        two.discard().unwrap();
    }

    #[test]
    fn a_rename_that_happened_though_its_answer_was_an_error_is_gone_forward_from() {
        let share = Share::new();
        let manifest = Manifest { number: 1, ..testing::manifest(&["vda"]) };
        let staging = share.stage(&manifest, "a.1");
        publish(&staging, manifest.clone()).unwrap();
        let error = staging.parent.rename_new(&staging.name, "x").unwrap_err();
        assert!(matches!(settle(&staging, &manifest, error), Settled::Published));
        // Also where the manifest can't be read now: the directory itself is known again.
        let file = staging.parent.path().join(manifest.backup_id.to_string()).join(Manifest::FILE);
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(look_again(&staging, &manifest, 1).unwrap(), Outcome::Published(Published { number: 1, .. })));
    }

    #[test]
    fn what_somebody_else_published_meanwhile_is_not_ours() {
        let share = Share::new();
        let manifest = testing::manifest(&["vda"]);
        let staging = share.stage(&manifest, "a.1");
        staging.parent.rename(&staging.name, ".elsewhere").unwrap();
        staging.parent.create_dir(manifest.backup_id.to_string()).unwrap();
        assert_eq!(look_again(&staging, &manifest, 1).unwrap_err().code, Code::BackupExists);
    }

    #[test]
    fn a_number_is_not_given_again_when_the_newest_backup_is_damaged() {
        let share = Share::new();
        let repository_id = read_identity(&share.root).unwrap().repository_id;
        let first = Manifest { repository_id, ..testing::manifest(&["vda"]) };
        publish(&share.stage(&first, "a.1"), first.clone()).unwrap();
        let second = Manifest { backup_id: BackupId::draw(), ..first.clone() };
        let staging = share.stage(&second, "a.1");
        super::publish(&staging, second.clone(), 2).unwrap();
        std::fs::write(staging.parent.path().join(second.backup_id.to_string()).join(Manifest::FILE), "{").unwrap();
        let third = Manifest { backup_id: BackupId::draw(), ..first };
        let published = super::publish(&share.stage(&third, "a.1"), third.clone(), 3).unwrap();
        assert!(matches!(published, Outcome::Published(Published { number: 3, .. })), "{published:?}");
        assert_eq!(find(&share.root, third.instance_id, third.backup_id).unwrap().number, 3);
        let missing = find(&share.root, third.instance_id, BackupId::draw()).unwrap_err();
        assert_eq!(missing.code, Code::BackupNotFound);
    }

    #[test]
    fn a_file_that_is_missing_or_has_another_length_stops_the_commit() {
        let share = Share::new();
        let manifest = testing::manifest(&["vda"]);
        for (file, content) in [("vda.qcow2", Some("short")), ("domain.xml", Some("other")), ("vda.blocks", None)] {
            let staging = share.stage(&manifest, "a.1");
            staging.dir.remove_file(file).unwrap();
            if let Some(content) = content {
                staging.dir.write_new(file, content.as_bytes()).unwrap();
            }
            assert_eq!(publish(&staging, manifest.clone()).unwrap_err().code, Code::RepositoryIo, "{file}");
        }
        assert!(published_before(&share.root, &manifest).unwrap().is_none());
    }

    #[test]
    fn a_damaged_backup_is_listed_as_damaged_and_does_not_stop_the_next() {
        let share = Share::new();
        let manifest = testing::manifest(&["vda"]);
        let staging = share.stage(&manifest, "a.1");
        let damaged = BackupId::draw().to_string();
        staging.parent.create_dir(&damaged).unwrap();
        std::os::unix::fs::symlink("/etc", staging.parent.path().join(BackupId::draw().to_string())).unwrap();
        std::fs::create_dir(staging.parent.path().join("stray\n")).unwrap();
        let published = publish(&staging, manifest.clone()).unwrap();
        assert_eq!((published.number, published.warnings.len()), (1, 1), "{published:?}");
        let listed = share::list_backups(share.directory.path()).unwrap();
        let bad = listed.iter().filter(|entry| matches!(entry, Listed::Damaged { .. })).count();
        assert_eq!((listed.len(), bad), (4, 3), "{listed:?}");
        let missing = share::find_backup(share.directory.path(), BackupId::draw()).unwrap_err();
        assert_eq!(missing.code, Code::BackupNotFound);
        let unreadable = share::find_backup(share.directory.path(), damaged.parse().unwrap()).unwrap_err();
        assert_eq!(unreadable.code, Code::RepositoryUnsafe);
    }

    #[test]
    fn a_damaged_copy_elsewhere_hides_no_backup() {
        let share = Share::new();
        let manifest = Manifest { number: 1, ..testing::manifest(&["vda"]) };
        publish(&share.stage(&manifest, "a.1"), manifest.clone()).unwrap();
        let instances = share.directory.path().join(INSTANCES);
        let original = instances.join(manifest.instance_id.to_string()).join(manifest.backup_id.to_string());
        // On either side of the original, in whatever order the directory is read.
        for _ in 0..8 {
            let copy = instances.join(InstanceId::draw().to_string()).join(manifest.backup_id.to_string());
            std::fs::create_dir_all(&copy).unwrap();
            std::fs::copy(original.join(Manifest::FILE), copy.join(Manifest::FILE)).unwrap();
        }
        assert_eq!(share::find_backup(share.directory.path(), manifest.backup_id).unwrap(), manifest);
        std::fs::remove_dir_all(original).unwrap();
        let failure = share::find_backup(share.directory.path(), manifest.backup_id).unwrap_err();
        assert_eq!(failure.code, Code::RepositoryUnsafe, "copies are there, and none is good");
    }

    #[test]
    fn a_number_beyond_all_bounds_is_not_taken_for_one_of_ours() {
        for planted in [u64::MAX, NUMBER_MAX + 1] {
            let share = Share::new();
            let first = testing::manifest(&["vda"]);
            let staging = share.stage(&first, "a.1");
            publish(&staging, first.clone()).unwrap();
            let file = staging.parent.path().join(first.backup_id.to_string()).join(Manifest::FILE);
            let lie = serde_json::to_vec(&Manifest { number: planted, ..first.clone() }).unwrap();
            std::fs::write(file, lie).unwrap();
            let failure = share::find_backup(share.directory.path(), first.backup_id).unwrap_err();
            assert_eq!(failure.code, Code::RepositoryUnsafe);
            for number in 1..=2 {
                let next = Manifest { backup_id: BackupId::draw(), ..first.clone() };
                let published = publish(&share.stage(&next, "a.1"), next).unwrap();
                assert_eq!((published.number, published.warnings.len()), (number, 1));
            }
        }
    }

    #[test]
    fn a_backup_that_no_number_is_left_for_is_not_published() {
        let share = Share::new();
        let first = testing::manifest(&["vda"]);
        let staging = share.stage(&first, "a.1");
        publish(&staging, first.clone()).unwrap();
        let file = staging.parent.path().join(first.backup_id.to_string()).join(Manifest::FILE);
        let last = serde_json::to_vec(&Manifest { number: NUMBER_MAX, ..first.clone() }).unwrap();
        std::fs::write(file, last).unwrap();
        let next = Manifest { backup_id: BackupId::draw(), ..first };
        let failure = publish(&share.stage(&next, "a.1"), next).unwrap_err();
        assert_eq!(failure.code, Code::RepositoryUnsafe);
    }

    #[test]
    fn a_manifest_without_bound_is_not_read() {
        let share = Share::new();
        let manifest = testing::manifest(&["vda"]);
        publish(&share.stage(&manifest, "a.1"), manifest.clone()).unwrap();
        let directory = share.directory.path().join(INSTANCES).join(manifest.instance_id.to_string());
        let file = directory.join(manifest.backup_id.to_string()).join(Manifest::FILE);
        std::fs::File::options().write(true).open(file).unwrap().set_len(1 << 40).unwrap();
        let failure = share::find_backup(share.directory.path(), manifest.backup_id).unwrap_err();
        assert_eq!(failure.code, Code::RepositoryUnsafe);
    }
}
