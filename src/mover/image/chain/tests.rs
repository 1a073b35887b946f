//! Chains written by hand: what is opened, and what is refused.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::model::id::RepositoryId;
use crate::model::manifest::ChangesFoundBy;
use crate::mover::share::{self, INSTANCES};
use crate::mover::testing;

/// A repository with backups of one instance, written by hand.
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

    fn backup_dir(&self, backup: BackupId) -> PathBuf {
        self.directory.path().join(INSTANCES).join(self.instance.to_string()).join(backup.to_string())
    }

    /// A backup of `vda` whose manifest says that it is based on `parent`, and whose image names the backing file `backing`.
    fn add(&self, root: &str, parent: Option<&Manifest>, backing: Option<BackupId>) -> Manifest {
        let (repository_id, instance_id) = (self.repository, self.instance);
        let mut manifest = Manifest { repository_id, instance_id, number: 1, ..testing::manifest(&["vda"]) };
        let image = testing::image_header(backing.map(|backup| backing_name(backup, "vda.qcow2")).as_deref());
        let disk = &mut manifest.disks[0];
        disk.content_root = root.into();
        disk.file_bytes = u64::try_from(image.len()).unwrap();
        disk.based_on = parent.map(|parent| BasedOn {
            backup_id: parent.backup_id,
            content_root: parent.disks[0].content_root.clone(),
            found_by: ChangesFoundBy::Hashes,
        });
        let dir = self.backup_dir(manifest.backup_id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("vda.qcow2"), image).unwrap();
        self.write(&manifest);
        manifest
    }

    fn write(&self, manifest: &Manifest) {
        let file = self.backup_dir(manifest.backup_id).join(Manifest::FILE);
        std::fs::write(file, serde_json::to_vec(manifest).unwrap()).unwrap();
    }

    /// A full backup with so many on top of it.
    fn chain_of(&self, above: usize) -> Vec<Manifest> {
        let mut chain = vec![self.add("0", None, None)];
        for index in 1..=above {
            let parent = chain.last().unwrap();
            let next = self.add(&index.to_string(), Some(parent), Some(parent.backup_id));
            chain.push(next);
        }
        chain
    }

    /// The directories of the chain of a backup, by their names.
    fn look(&self, backup: &Manifest) -> Result<Vec<String>, Failure> {
        let root = Dir::open_root(self.directory.path()).unwrap();
        let links = Backups::new(&root, self.instance).chain(backup.backup_id, &"vda".parse().unwrap())?;
        let name = |link: &Link| link.dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        Ok(links.iter().map(name).collect())
    }

    fn fault(&self, backup: &Manifest) -> String {
        let failure = self.look(backup).unwrap_err();
        assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
        failure.text
    }
}

fn names(backups: &[&Manifest]) -> Vec<String> {
    backups.iter().map(|backup| backup.backup_id.to_string()).collect()
}

#[test]
fn a_chain_goes_from_the_backup_to_the_image_that_stands_alone() {
    let share = Share::new();
    let chain = share.chain_of(2);
    assert_eq!(share.look(&chain[2]).unwrap(), names(&[&chain[2], &chain[1], &chain[0]]));
    assert_eq!(share.look(&chain[0]).unwrap(), names(&[&chain[0]]));
    let other = testing::manifest(&["vda"]);
    assert_eq!(share.look(&other).unwrap_err().code, Code::BackupNotFound);
}

#[test]
fn a_link_that_is_missing_or_is_another_one_is_named() {
    let share = Share::new();
    let chain = share.chain_of(2);
    let mut replaced = chain[1].clone();
    replaced.disks[0].content_root = "another".into();
    share.write(&replaced);
    let fault = share.fault(&chain[2]);
    assert!(fault.contains(&format!("backup `{}`, which does not hold", chain[1].backup_id)), "{fault}");
    std::fs::remove_dir_all(share.backup_dir(chain[1].backup_id)).unwrap();
    let fault = share.fault(&chain[2]);
    assert!(fault.contains(&format!("backup `{}`, which cannot be read", chain[1].backup_id)), "{fault}");
}

#[test]
fn an_image_is_not_opened_that_names_another_backing_file_than_its_manifest() {
    let share = Share::new();
    let full = share.add("0", None, None);
    let stranger = share.add("x", None, None);
    assert!(share.fault(&share.add("1", None, Some(full.backup_id))).contains("its header names the backing file"));
    assert!(share.fault(&share.add("1", Some(&full), Some(stranger.backup_id))).contains("its header names"));
    let path = share.backup_dir(full.backup_id).join("vda.qcow2");
    std::fs::write(&path, testing::image_header(Some("/etc/shadow"))).unwrap();
    assert!(share.fault(&full).contains("/etc/shadow"));
}

#[test]
fn an_image_of_another_length_is_damaged() {
    let share = Share::new();
    let chain = share.chain_of(1);
    let path = share.backup_dir(chain[0].backup_id).join("vda.qcow2");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(511).unwrap();
    assert!(share.fault(&chain[1]).contains("511 bytes"));
}

#[test]
fn an_image_may_already_hold_what_a_backup_between_held_that_is_about_to_go() {
    let share = Share::new();
    let chain = share.chain_of(3);
    let merged = share.backup_dir(chain[3].backup_id).join("vda.qcow2");
    let name = backing_name(chain[1].backup_id, "vda.qcow2");
    std::fs::write(&merged, [testing::image_header(Some(&name)), vec![0; 512]].concat()).unwrap();
    assert_eq!(share.look(&chain[3]).unwrap(), names(&[&chain[3], &chain[1], &chain[0]]));
    std::fs::write(&merged, testing::image_header(None)).unwrap();
    assert_eq!(share.look(&chain[3]).unwrap(), names(&[&chain[3]]));
}

#[test]
fn a_chain_that_is_too_long_or_comes_back_to_itself_ends() {
    let share = Share::new();
    let longest = share.chain_of(CHAIN_IMAGES_MAX - 1);
    assert_eq!(share.look(longest.last().unwrap()).unwrap().len(), CHAIN_IMAGES_MAX);
    let parent = longest.last().unwrap();
    let longer = share.add("x", Some(parent), Some(parent.backup_id));
    assert!(share.fault(&longer).contains("based on 20 others"));
    let own = share.add("y", None, None);
    let mut itself = own.clone();
    itself.disks[0].based_on =
        Some(BasedOn { backup_id: own.backup_id, content_root: "y".into(), found_by: ChangesFoundBy::Hashes });
    share.write(&itself);
    assert!(share.fault(&itself).contains("names no backing file"));
}

#[test]
fn the_description_for_qemu_names_every_file_of_the_chain() {
    let node = node(&["/a/vda.qcow2".into(), "/b/vda.qcow2".into()]).unwrap();
    assert_eq!(node["file"]["filename"], "/a/vda.qcow2");
    assert_eq!(node["backing"]["file"]["filename"], "/b/vda.qcow2");
    assert_eq!(node["backing"]["backing"], Value::Null);
    assert!(super::node(&["relative".into()]).is_err());
}
