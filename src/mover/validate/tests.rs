//! What is read of a share in any state, and what that means: names, manifests, files and chains. No image is opened here.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::facts::InstanceFacts;
use super::judge::judge;
use super::known::{Judged, judge_instance};
use super::read::{Depth, instance};
use super::superseded::take_back;
use super::telling::Telling;
use super::{backup_path, links};
use crate::failure::Code;
use crate::model::id::{BackupId, InstanceId, RepositoryId};
use crate::model::manifest::{BasedOn, ChangesFoundBy, Manifest};
use crate::model::validation::{Finding, FindingCode, Severity};
use crate::mover::share::{self, Dir, INSTANCES, LOCKS, README};
use crate::mover::testing;

struct Share {
    directory: tempfile::TempDir,
    repository: RepositoryId,
    instance: InstanceId,
}

impl Share {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = share::init(directory.path()).unwrap();
        Self { directory, repository, instance: InstanceId::draw() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn of(&self, backup: BackupId) -> PathBuf {
        self.at(&backup_path(self.instance, backup))
    }

    /// A backup of that number, based on that one.
    fn manifest(&self, number: u64, parent: Option<&Manifest>) -> Manifest {
        let mut manifest = testing::manifest(&["vda", "vdb"]);
        manifest.repository_id = self.repository;
        (manifest.instance_id, manifest.number) = (self.instance, number);
        for disk in &mut manifest.disks {
            disk.content_root = format!("{number:02}").repeat(32);
            disk.based_on = parent.map(|parent| BasedOn {
                backup_id: parent.backup_id,
                content_root: parent.disks[0].content_root.clone(),
                found_by: ChangesFoundBy::Hashes,
            });
        }
        manifest
    }

    fn write(&self, manifest: &Manifest) {
        let directory = self.of(manifest.backup_id);
        fs::create_dir_all(&directory).unwrap();
        testing::fill(manifest, |name, content| fs::write(directory.join(name), content).unwrap());
        fs::write(directory.join(README), "").unwrap();
        fs::write(directory.join(Manifest::FILE), serde_json::to_vec(manifest).unwrap()).unwrap();
    }

    fn publish(&self, number: u64, parent: Option<&Manifest>) -> Manifest {
        let manifest = self.manifest(number, parent);
        self.write(&manifest);
        manifest
    }

    fn root(&self) -> Dir {
        Dir::open_root(self.directory.path()).unwrap()
    }

    fn facts(&self) -> InstanceFacts {
        let root = self.root();
        let instances = root.open_dir(INSTANCES).unwrap();
        instance(&root, &instances, self.instance, Depth::Records, &telling()).unwrap().unwrap()
    }

    fn found(&self) -> Vec<Finding> {
        judge(self.repository, &self.facts(), now())
    }

    /// Codes and paths, the paths relative to the instance.
    fn codes(&self) -> Vec<(FindingCode, String)> {
        let above = format!("{INSTANCES}/{}/", self.instance);
        let found = self.found().into_iter();
        let mut codes: Vec<_> = found.map(|finding| (finding.code, finding.path.replace(&above, ""))).collect();
        codes.sort();
        codes
    }
}

mod bounds;

fn telling() -> Telling {
    Telling::new(watch::channel(None).0, CancellationToken::new())
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn in_backup(manifest: &Manifest, file: &str) -> String {
    format!("{}/{file}", manifest.backup_id)
}

#[test]
fn whole_backups_and_chains_have_no_findings() {
    let share = Share::new();
    let full = share.publish(1, None);
    let child = share.publish(2, Some(&full));
    share.publish(3, Some(&child));
    share.publish(7, None);
    assert_eq!(share.codes(), []);
}

/// What is done to the directory of a backup.
type Damage = fn(&std::path::Path);

#[test]
fn each_damage_of_a_backup_is_named_where_it_is() {
    let damages: [(FindingCode, &str, Damage); 10] = [
        (FindingCode::FileMissing, "vda.qcow2", |dir| fs::remove_file(dir.join("vda.qcow2")).unwrap()),
        (FindingCode::FileMissing, "vdb.blocks", |dir| fs::remove_file(dir.join("vdb.blocks")).unwrap()),
        (FindingCode::FileSizeDiffers, "vdb.qcow2", |dir| fs::write(dir.join("vdb.qcow2"), "short").unwrap()),
        (FindingCode::FileSizeDiffers, "domain.xml", |dir| fs::write(dir.join("domain.xml"), "").unwrap()),
        (FindingCode::RecordChanged, "domain.xml", |dir| fs::write(dir.join("domain.xml"), "<domaim/>").unwrap()),
        (FindingCode::ReadmeMissing, README, |dir| fs::remove_file(dir.join(README)).unwrap()),
        (FindingCode::ForeignFile, "stray", |dir| fs::create_dir(dir.join("stray")).unwrap()),
        (FindingCode::ManifestUnreadable, Manifest::FILE, |dir| fs::write(dir.join(Manifest::FILE), "{").unwrap()),
        (FindingCode::NotWhatItSays, "vda.qcow2", |dir| {
            fs::remove_file(dir.join("vda.qcow2")).unwrap();
            symlink("/etc/passwd", dir.join("vda.qcow2")).unwrap();
        }),
        (FindingCode::NotWhatItSays, "domain.xml", |dir| {
            fs::remove_file(dir.join("domain.xml")).unwrap();
            nix::unistd::mkfifo(&dir.join("domain.xml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
    ];
    for (code, file, damage) in damages {
        let share = Share::new();
        let manifest = share.publish(1, None);
        share.publish(2, None);
        damage(&share.of(manifest.backup_id));
        assert_eq!(share.codes(), [(code, in_backup(&manifest, file))]);
        let finding = &share.found()[0];
        assert_eq!((finding.instance_id, finding.backup_id), (Some(share.instance), Some(manifest.backup_id)));
        assert!(!finding.remedy.is_empty());
    }
}

#[test]
fn a_manifest_that_is_missing_or_of_another_place_is_named() {
    let share = Share::new();
    let manifest = share.publish(1, None);
    fs::remove_file(share.of(manifest.backup_id).join(Manifest::FILE)).unwrap();
    assert_eq!(share.codes(), [(FindingCode::ManifestMissing, manifest.backup_id.to_string())]);

    let share = Share::new();
    let foreign = Manifest { repository_id: RepositoryId::draw(), ..share.manifest(1, None) };
    share.write(&foreign);
    let file = |manifest: &Manifest| in_backup(manifest, Manifest::FILE);
    assert_eq!(share.codes(), [(FindingCode::ManifestForeign, file(&foreign))]);

    let share = Share::new();
    let manifest = share.publish(1, None);
    let moved = BackupId::draw();
    fs::rename(share.of(manifest.backup_id), share.of(moved)).unwrap();
    assert_eq!(share.codes(), [(FindingCode::ManifestMisplaced, format!("{moved}/{}", Manifest::FILE))]);
}

#[test]
fn two_images_that_were_exchanged_are_known_by_their_lengths() {
    let share = Share::new();
    let mut manifest = share.manifest(1, None);
    manifest.disks[1].file_bytes = 7;
    share.write(&manifest);
    fs::write(share.of(manifest.backup_id).join("vdb.qcow2"), "7 bytes").unwrap();
    assert_eq!(share.codes(), []);
    let [one, other] = ["vda.qcow2", "vdb.qcow2"].map(|name| share.of(manifest.backup_id).join(name));
    let between = share.at("between");
    fs::rename(&one, &between).unwrap();
    fs::rename(&other, &one).unwrap();
    fs::rename(&between, &other).unwrap();
    let exchanged = |name: &str| (FindingCode::FilesExchanged, in_backup(&manifest, name));
    assert_eq!(share.codes(), [exchanged("vda.qcow2"), exchanged("vdb.qcow2")]);
}

#[test]
fn a_link_that_is_missing_or_leads_elsewhere_is_named_and_who_needs_it_too() {
    let share = Share::new();
    let full = share.publish(1, None);
    let child = share.publish(2, Some(&full));
    let grandchild = share.publish(3, Some(&child));
    fs::remove_dir_all(share.of(full.backup_id)).unwrap();
    let of = |code, manifest: &Manifest| ["vda.qcow2", "vdb.qcow2"].map(|name| (code, in_backup(manifest, name)));
    assert_eq!(share.codes(), of(FindingCode::ParentMissing, &child));
    let facts = share.facts();
    let heirs = links::heirs(&facts, &links::damaged(&share.found()));
    assert!(heirs.iter().all(|finding| finding.code == FindingCode::AncestorDamaged));
    let of_heirs: Vec<_> = heirs.iter().map(|finding| finding.backup_id).collect();
    assert_eq!(of_heirs, [Some(grandchild.backup_id); 2]);

    let share = Share::new();
    let full = share.publish(1, None);
    let mut child = share.manifest(2, Some(&full));
    child.disks[0].based_on.as_mut().unwrap().content_root = "ab".repeat(32);
    share.write(&child);
    assert_eq!(share.codes(), [(FindingCode::ParentDiffers, in_backup(&child, "vda.qcow2"))]);
}

#[test]
fn chains_that_lead_in_a_circle_or_have_no_end_end_here() {
    let share = Share::new();
    let (mut one, mut other) = (share.manifest(1, None), share.manifest(2, None));
    let based_on = |parent: &Manifest| {
        let content_root = parent.disks[0].content_root.clone();
        Some(BasedOn { backup_id: parent.backup_id, content_root, found_by: ChangesFoundBy::Bitmap })
    };
    one.disks[0].based_on = based_on(&other);
    other.disks[0].based_on = based_on(&one);
    share.write(&one);
    share.write(&other);
    assert_eq!(share.codes(), [(FindingCode::ChainImpossible, in_backup(&one, "vda.qcow2"))]);

    let share = Share::new();
    let mut last = share.publish(1, None);
    for number in 2..=21 {
        last = share.publish(number, Some(&last));
    }
    let too_long = ["vda.qcow2", "vdb.qcow2"].map(|name| (FindingCode::ChainTooLong, in_backup(&last, name)));
    assert_eq!(share.codes(), too_long);
}

#[test]
fn two_backups_with_one_number_are_told() {
    let share = Share::new();
    share.publish(1, None);
    share.publish(1, None);
    let codes: Vec<_> = share.codes().into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes, [FindingCode::NumberRepeated]);
}

#[test]
fn left_overs_are_told_from_what_is_being_written() {
    let share = Share::new();
    let backup = BackupId::draw();
    for name in [format!(".staging-{backup}.a.1"), ".fenced-x".to_owned(), ".deleting-y".to_owned()] {
        fs::create_dir_all(share.at(&format!("{INSTANCES}/{}/{name}", share.instance))).unwrap();
    }
    fs::write(share.at(&format!("{INSTANCES}/{}/.hidden", share.instance)), "").unwrap();
    let codes = |share: &Share| share.codes().into_iter().map(|(code, _)| code).collect::<Vec<_>>();
    let dead = [
        FindingCode::StagingLeftOver,
        FindingCode::FencedLeftOver,
        FindingCode::DeletingLeftOver,
        FindingCode::ForeignFile,
    ];
    assert_eq!(codes(&share), dead);
    let lease = share.at(&format!("{LOCKS}/{}/1", share.instance));
    fs::create_dir_all(&lease).unwrap();
    fs::write(lease.join("counter"), "1").unwrap();
    let alive =
        [FindingCode::StagingInUse, FindingCode::StagingInUse, FindingCode::FencedLeftOver, FindingCode::ForeignFile];
    assert_eq!(codes(&share), alive);
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(lease.join("counter")).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(codes(&share), dead, "its holder is dead");
    fs::write(lease.join("counter"), "2").unwrap();
    fs::write(lease.join("released"), "").unwrap();
    assert_eq!(codes(&share), dead, "its holder has let go");
}

#[test]
fn what_changed_meanwhile_is_superseded_and_what_did_not_is_damage() {
    let share = Share::new();
    let full = share.publish(1, None);
    let child = share.publish(2, Some(&full));
    fs::remove_file(share.of(full.backup_id).join("vda.qcow2")).unwrap();
    fs::remove_file(share.of(child.backup_id).join("vda.qcow2")).unwrap();
    let (facts, found) = (share.facts(), share.found());
    let back = |found: &[Finding]| take_back(&share.root(), &facts, found.to_vec(), &telling()).unwrap().found;
    assert_eq!(back(&found), found);

    // The child was merged with what it was based on, which was then deleted.
    share.write(&Manifest { disks: share.manifest(2, None).disks, ..child.clone() });
    fs::remove_dir_all(share.of(full.backup_id)).unwrap();
    let left = back(&found);
    let codes: Vec<_> = left.iter().map(|finding| (finding.code, finding.severity)).collect();
    assert_eq!(codes, [(FindingCode::Superseded, Severity::Note); 2]);
}

#[test]
fn a_share_that_goes_away_is_a_failure_and_no_clean_look() {
    let share = Share::new();
    let first = share.publish(1, None);
    let (root, facts) = (share.root(), share.facts());
    let judged = |id| judge_instance(&root, share.repository, id, now(), &telling());
    assert!(matches!(judged(share.instance), Ok(Judged::Known(_, found)) if found.is_empty()));
    // As far as there is a share: an instance that is gone is no damage.
    assert!(matches!(judged(InstanceId::draw()), Ok(Judged::Gone)));
    let code = FindingCode::Unreadable;
    let unreadable = Finding::new(code, "x", "").of_instance(share.instance).of_backup(first.backup_id);
    let back = |found: &Finding| take_back(&root, &facts, vec![found.clone()], &telling()).map(|kept| kept.found);
    assert_eq!(back(&unreadable).unwrap(), std::slice::from_ref(&unreadable));

    // It can be listed yet, and is no repository any more.
    fs::remove_file(share.at("longshore.json")).unwrap();
    assert_eq!(back(&unreadable).unwrap_err().code, Code::RepositoryNotFound);
    for entry in fs::read_dir(share.directory.path()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    for id in [share.instance, InstanceId::draw()] {
        assert_eq!(judged(id).err().unwrap().code, Code::RepositoryNotFound);
    }
    let damage = Finding { code: FindingCode::FileMissing, ..unreadable };
    assert_eq!(back(&damage).unwrap_err().code, Code::RepositoryNotFound, "nor was all of it deleted");
}

#[test]
fn a_hostile_directory_is_read_to_a_bound_and_leads_nowhere() {
    let share = Share::new();
    let manifest = share.publish(1, None);
    let parent = share.at(&format!("{INSTANCES}/{}", share.instance));
    symlink("/", parent.join(BackupId::draw().to_string())).unwrap();
    let mut deep = parent.join(BackupId::draw().to_string());
    for _ in 0..60 {
        deep = deep.join("down");
    }
    fs::create_dir_all(deep).unwrap();
    let huge = fs::File::create(share.of(manifest.backup_id).join("huge")).unwrap();
    huge.set_len(1 << 42).unwrap();
    for number in 0..5000 {
        fs::write(share.of(manifest.backup_id).join(format!("many-{number:05}")), "").unwrap();
    }
    let mut liar = share.manifest(2, None);
    liar.disks[0].file = "../../../../etc/passwd".to_owned();
    liar.records[0].bytes = u64::MAX;
    share.write(&Manifest { disks: share.manifest(2, None).disks, ..liar.clone() });
    fs::write(share.of(liar.backup_id).join(Manifest::FILE), serde_json::to_vec(&liar).unwrap()).unwrap();
    let codes: std::collections::BTreeSet<_> = share.codes().into_iter().map(|(code, _)| code).collect();
    for code in [
        FindingCode::NotWhatItSays,
        FindingCode::ManifestMissing,
        FindingCode::TooMany,
        FindingCode::FileMissing,
        FindingCode::FileSizeDiffers,
        FindingCode::ForeignFile,
    ] {
        assert!(codes.contains(&code), "{code:?} is not in {codes:?}");
    }
}

#[test]
fn a_look_that_nobody_waits_for_ends() {
    let share = Share::new();
    share.publish(1, None);
    let broken_off = CancellationToken::new();
    broken_off.cancel();
    let root = share.root();
    let telling = Telling::new(watch::channel(None).0, broken_off);
    let instances = root.open_dir(INSTANCES).unwrap();
    let failure = instance(&root, &instances, share.instance, Depth::Names, &telling).unwrap_err();
    assert_eq!(failure.code, Code::Interrupted);
}
