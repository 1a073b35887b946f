//! What backups on a real directory are found to need, whatever of them is damaged.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::model::manifest::Manifest;
use crate::model::pin::Pin;
use crate::mover::image::backing_name;
use crate::mover::share::{INSTANCES, init};
use crate::mover::testing;

/// A backup with an incremental one on top of it.
struct Share {
    root: tempfile::TempDir,
    full: Manifest,
    child: Manifest,
}

impl Share {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        init(root.path()).unwrap();
        let full = testing::published(root.path(), &Manifest { number: 3, ..testing::manifest(&["vda"]) });
        let child = testing::published(root.path(), &testing::child_of(&full));
        Self { root, full, child }
    }

    fn instance(&self) -> PathBuf {
        self.root.path().join(INSTANCES).join(self.full.instance_id.to_string())
    }

    fn of_child(&self, file: &str) -> PathBuf {
        self.instance().join(self.child.backup_id.to_string()).join(file)
    }

    /// What is found of the child.
    fn child(&self) -> Result<Member, Failure> {
        let (instance, found) = members_at(self.root.path(), self.full.backup_id)?;
        assert_eq!((instance, found.len()), (self.full.instance_id, 2));
        Ok(found.into_iter().find(|member| member.backup_id == self.child.backup_id).unwrap())
    }
}

#[test]
fn all_backups_are_members_also_those_whose_manifest_cannot_be_read() {
    let share = Share::new();
    for stray in ["stray", ".staging-x"] {
        std::fs::create_dir(share.instance().join(stray)).unwrap();
    }
    let parent: BTreeSet<_> = [share.full.backup_id].into();
    let found = share.child().unwrap();
    assert_eq!((found.number, &found.based_on, &found.images_on), (Some(4), &parent, &parent));
    assert_eq!((found.bytes, found.pinned, found.unclear), (share.child.stored_bytes(), false, None));
    std::fs::write(share.of_child(Pin::FILE), "").unwrap();
    for damage in ["{", r#"{"format": 2}"#] {
        std::fs::write(share.of_child(Manifest::FILE), damage).unwrap();
        let found = share.child().unwrap();
        assert_eq!((found.number, found.based_on.is_empty(), &found.images_on), (None, true, &parent));
        assert!(found.pinned && found.bytes > 0 && found.unclear.is_none());
    }
    assert_eq!(members_at(share.root.path(), BackupId::draw()).unwrap_err().code, Code::BackupNotFound);
}

#[test]
fn an_image_says_for_itself_what_it_needs() {
    let share = Share::new();
    let other = BackupId::draw();
    for manifest_is_whole in [true, false] {
        if !manifest_is_whole {
            std::fs::write(share.of_child(Manifest::FILE), "{").unwrap();
        }
        let told = if manifest_is_whole { [share.full.backup_id].into() } else { BTreeSet::new() };
        let put = |content: &[u8]| std::fs::write(share.of_child("vda.qcow2"), content).unwrap();
        put(&testing::image_header(Some(&backing_name(other, "vda.qcow2"))));
        let found = share.child().unwrap();
        assert_eq!((found.based_on, found.images_on, found.unclear), (told.clone(), [other].into(), None));
        put(&testing::image_header(None));
        assert!(share.child().unwrap().images_on.is_empty());
        let foreign = testing::image_header(Some("../../elsewhere/x\n.qcow2"));
        let short = testing::image_header(None)[..100].to_vec();
        for content in [foreign, short, b"no image".to_vec()] {
            put(&content);
            let found = share.child().unwrap();
            assert_eq!((found.based_on, found.images_on.len()), (told.clone(), 0));
            let why = found.unclear.unwrap();
            let is_told = why.text.contains("vda.qcow2") && !why.text.contains('\n');
            assert!(is_told && why.code == Code::BackupDamaged, "{why:?}");
        }
        // What is not there needs nothing, nor does what is no file.
        std::fs::remove_file(share.of_child("vda.qcow2")).unwrap();
        let is_nothing = || {
            let found = share.child().unwrap();
            assert_eq!((found.based_on, found.images_on.len(), found.unclear), (told.clone(), 0, None));
        };
        is_nothing();
        symlink("/etc/passwd", share.of_child("vda.qcow2")).unwrap();
        is_nothing();
        std::fs::remove_file(share.of_child("vda.qcow2")).unwrap();
    }
    // Nor what is no directory.
    std::fs::remove_dir_all(share.of_child("")).unwrap();
    std::fs::write(share.instance().join(share.child.backup_id.to_string()), "").unwrap();
    assert_eq!(share.child().unwrap().number, None);
}

#[test]
fn a_manifest_names_no_file_elsewhere() {
    let mut share = Share::new();
    share.child.disks[0].file = "../x".into();
    std::fs::write(share.of_child(Manifest::FILE), serde_json::to_vec(&share.child).unwrap()).unwrap();
    let found = share.child().unwrap();
    assert_eq!((found.images_on.len(), found.unclear), (0, None));
}

#[test]
fn trouble_with_a_file_is_no_answer() {
    // A regular file whose first bytes the kernel refuses to read.
    let directory = Dir::open_root(Path::new("/proc/self")).unwrap();
    let mut member = Share::new().child().unwrap();
    let before = member.clone();
    ask_image(&directory, "mem".as_ref(), &mut member);
    assert_eq!(member.unclear.take().unwrap().code, Code::RepositoryIo);
    assert_eq!(member, before);
}
