//! A child that takes over on a real directory, with headers for images.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;

use super::super::{Deletion, members};
use super::*;
use crate::model::deletion::{DeleteMode, plan};
use crate::model::id::BackupId;
use crate::mover::share::{INSTANCES, LeftOvers, init};
use crate::mover::testing;

const PREFIX: &str = ".merging-x.";

/// Three backups, each on top of the one before, with two disks; and what the middle one holds is merged into the last.
struct Share {
    directory: tempfile::TempDir,
    root: Dir,
    chain: [Manifest; 3],
    merging: Merging,
}

impl Share {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository_id = init(directory.path()).unwrap();
        let full = Manifest { repository_id, number: 1, ..testing::manifest(&["vda", "vdb"]) };
        let middle = testing::child_of(&full);
        let chain = [full, middle.clone(), testing::child_of(&middle)];
        chain.iter().for_each(|manifest| drop(testing::published(directory.path(), manifest)));
        let merger = Merger { child: chain[2].backup_id, from: chain[1].backup_id };
        let image = |disk: &ManifestDisk| MergedImage {
            disk: disk.target.clone(),
            file: disk.file.clone(),
            file_bytes: 512,
            data_bytes: 7,
        };
        let images = chain[2].disks.iter().map(image).collect();
        let root = Dir::open_root(directory.path()).unwrap();
        let share = Self { directory, root, chain, merging: Merging { merger, prefix: PREFIX.to_owned(), images } };
        for disk in &share.chain[2].disks {
            let header = testing::image_header(Some(&backing_name(share.chain[0].backup_id, &disk.file)));
            std::fs::write(share.path(&format!("{PREFIX}{}", disk.file)), header).unwrap();
        }
        share
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(INSTANCES).join(self.chain[0].instance_id.to_string()).join(name)
    }

    fn of_child(&self, file: &str) -> PathBuf {
        self.path(&self.chain[2].backup_id.to_string()).join(file)
    }

    fn child(&self) -> Manifest {
        publish::find(&self.root, self.chain[2].instance_id, self.chain[2].backup_id).unwrap()
    }

    fn put(&self, file: &str) {
        std::fs::rename(self.path(&format!("{PREFIX}{file}")), self.of_child(file)).unwrap();
    }

    fn begin(&self) -> Result<Deletion, Failure> {
        self.begin_with(self.merging.merger, &[self.chain[1].backup_id])
    }

    fn begin_with(&self, merger: Merger, backups: &[BackupId]) -> Result<Deletion, Failure> {
        let merging = Some(&self.merging).filter(|merging| merging.merger == merger);
        Deletion::begin(&self.root, self.chain[0].instance_id, Some(merger), merging, backups)
    }

    /// Somebody else takes the lease, and does first what that one does.
    fn taken_over(&self) {
        let mut left = LeftOvers::list(&self.root, self.chain[0].instance_id).unwrap().unwrap();
        left.fence().unwrap();
        while left.remove() {}
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.path("")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn after_the_lease_is_confirmed_there_are_renames_alone_and_none_of_them_works_for_who_has_lost_it() {
    // However many of the images are in their places already.
    for placed in 0..=2 {
        let share = Share::new();
        share.chain[2].disks.iter().take(placed).for_each(|disk| share.put(&disk.file));
        let deletion = share.begin().unwrap();
        let before = |file: &str| std::fs::read(share.of_child(file)).unwrap();
        let files = [Manifest::FILE, "vda.qcow2", "vdb.qcow2"];
        let held = files.map(before);
        share.taken_over();
        assert_eq!(deletion.go_on(1).unwrap_err().code, Code::LeaseLost, "{placed}");
        assert_eq!(files.map(before), held, "{placed}");
        assert!(!share.of_child(README).exists());
        assert_eq!(share.names().len(), 3, "nothing is made anew: {:?}", share.names());
        assert!(share.path(&share.chain[1].backup_id.to_string()).exists());
    }
}

#[test]
fn what_was_merged_takes_its_places_however_far_an_earlier_try_came() {
    for placed in 0..=3 {
        let share = Share::new();
        share.chain[2].disks.iter().take(placed).for_each(|disk| share.put(&disk.file));
        if placed == 3 {
            // Of the earlier try, too.
            drop(share.begin().unwrap());
            share.put(README);
        }
        share.begin().unwrap().go_on(1).unwrap();
        let child = share.child();
        assert!(child.disks.iter().all(|disk| disk.data_bytes == 7 && disk.based_on.is_some()));
        assert_eq!(child.parent(), Some(share.chain[0].backup_id));
        let readme = std::fs::read_to_string(share.of_child(README)).unwrap();
        assert!(readme.contains(&format!("../{}", share.chain[0].backup_id)), "{readme}");
        assert!(!share.path(&share.chain[1].backup_id.to_string()).exists());
        // Whoever comes later finds that nothing is left to be done.
        share.begin_with(share.merging.merger, &[share.chain[1].backup_id]).unwrap().go_on(2).unwrap();
    }
}

#[test]
fn what_an_unfinished_merge_needs_does_not_go() {
    for placed in 1..=2 {
        let share = Share::new();
        share.chain[2].disks.iter().take(placed).for_each(|disk| share.put(&disk.file));
        share.taken_over();
        let [full, middle, _] = &share.chain;
        let merger = Merger { child: middle.backup_id, from: full.backup_id };
        let refusal = share.begin_with(merger, &[full.backup_id]).err().unwrap();
        assert_eq!(refusal.code, Code::BackupHasChildren, "{refusal:#}");
        let parent = Dir::open_root(&share.path("")).unwrap();
        let found = members(&parent, full.instance_id).unwrap();
        for mode in [DeleteMode::Only, DeleteMode::LeafOnly] {
            let refusal = plan(&found, full.backup_id, mode).unwrap_err();
            assert_eq!(refusal.code, Code::BackupHasChildren);
            assert!(refusal.text.contains(&format!("delete `{}` again first", middle.backup_id)), "{refusal}");
        }
        assert_eq!(share.names().len(), 3, "{:?}", share.names());
    }
}

#[test]
fn an_image_that_is_based_on_something_else_is_not_replaced() {
    let share = Share::new();
    let header = testing::image_header(Some(&backing_name(BackupId::draw(), "vdb.qcow2")));
    std::fs::write(share.of_child("vdb.qcow2"), header).unwrap();
    assert_eq!(share.begin().unwrap().go_on(1).unwrap_err().code, Code::BackupDamaged);
    assert_eq!(share.child(), share.chain[2]);
}

#[test]
fn what_a_later_version_has_written_into_a_manifest_stays() {
    let share = Share::new();
    let path = share.of_child(Manifest::FILE);
    let mut later = serde_json::to_value(&share.chain[2]).unwrap();
    later["of_tomorrow"] = "x".into();
    later["disks"][1]["of_tomorrow"] = 7.into();
    std::fs::write(&path, later.to_string()).unwrap();
    share.begin().unwrap().go_on(1).unwrap();
    let found: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // But not what it said of an image that is another one now.
    assert_eq!((&found["of_tomorrow"], &found["disks"][1]["of_tomorrow"]), (&"x".into(), &Value::Null));
    assert_eq!(share.child().parent(), Some(share.chain[0].backup_id));
    assert_eq!(found["disks"][0]["data_bytes"], 7);
    // And what is gone is gone.
    let (child, mut merged) = (&share.chain[2], share.chain[2].clone());
    merged.disks[0].based_on = None;
    let found = rewritten(later.to_string().as_bytes(), child, &merged).unwrap();
    let found: Value = serde_json::from_slice(&found).unwrap();
    assert!(found["disks"][0].get("based_on").is_none() && found["disks"][1].get("based_on").is_some());
}

#[test]
fn nothing_goes_where_one_of_them_may_not() {
    let share = Share::new();
    let [_, middle, leaf] = &share.chain;
    std::fs::write(share.path(&middle.backup_id.to_string()).join(crate::model::pin::Pin::FILE), "").unwrap();
    let all = [leaf.backup_id, middle.backup_id];
    let begun = Deletion::begin(&share.root, leaf.instance_id, None, None, &all);
    assert_eq!(begun.err().unwrap().code, Code::BackupPinned);
    assert!(share.of_child(Manifest::FILE).exists());
    assert!(!share.names().iter().any(|name| name.starts_with(".deleting-")), "{:?}", share.names());
}

#[test]
fn a_deletion_that_fails_gives_up_its_own_ways_out_alone() {
    let share = Share::new();
    let leaf = share.chain[2].backup_id;
    let begin = || Deletion::begin(&share.root, share.chain[2].instance_id, None, None, &[leaf]).unwrap();
    let (stale, fresh) = (begin(), begin());
    stale.give_up().unwrap();
    fresh.go_on(1).unwrap();
    assert!(!share.of_child("").exists());
    assert_eq!(stale.go_on(1).ok(), Some(()), "it is gone already");
}
