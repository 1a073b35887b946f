//! Backups that are moved away on a real directory, by whoever holds the lease and by who does not any more.
#![allow(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::*;
use crate::model::id::InstanceId;
use crate::model::manifest::Manifest;
use crate::model::pin::Pin;
use crate::mover::share::{LeftOvers, highest_number};
use crate::mover::testing;

/// Of the lease that is held.
const LEASE: u64 = 12;

struct Share {
    directory: tempfile::TempDir,
    manifest: Manifest,
    parent: Dir,
}

impl Share {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        crate::mover::share::init(directory.path()).unwrap();
        let manifest = Manifest { number: 7, ..testing::manifest(&["vda"]) };
        let manifest = testing::published(directory.path(), &manifest);
        let path = directory.path().join(crate::mover::share::INSTANCES).join(manifest.instance_id.to_string());
        let parent = Dir::open_root(&path).unwrap();
        Self { directory, manifest, parent }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.parent.list(10).unwrap().into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn take_away(&self) -> Result<(), Failure> {
        let way_out = WayOut::make(&self.parent, self.manifest.backup_id)?;
        way_out.take(&self.parent, Some(self.manifest.number), LEASE)
    }

    /// Where a deletion has moved it, if one has.
    fn on_its_way(&self) -> Option<std::path::PathBuf> {
        let name = self.manifest.backup_id.to_string();
        let way_out = self.names().into_iter().find(|one| one.starts_with(&format!("{DELETING_PREFIX}{name}.")))?;
        Some(self.parent.path().join(way_out).join(name))
    }
}

/// What the next holder of the lease does first.
fn taken_over(root: &Dir, instance: InstanceId) {
    let mut left = LeftOvers::list(root, instance).unwrap().unwrap();
    left.fence().unwrap();
    while left.remove() {}
}

#[test]
fn a_backup_goes_in_two_steps_either_of_which_may_be_done_twice() {
    let share = Share::new();
    let backup = share.manifest.backup_id;
    let elsewhere = share.directory.path().join("precious");
    std::fs::write(&elsewhere, "x").unwrap();
    symlink(&elsewhere, share.parent.path().join(backup.to_string()).join("out")).unwrap();
    let way_out = WayOut::make(&share.parent, backup).unwrap();
    for _twice in 0..2 {
        way_out.take(&share.parent, Some(7), LEASE).unwrap();
        assert_eq!(share.names(), [way_out.name.clone(), HIGHEST_NUMBER.to_owned()]);
    }
    assert!(share.on_its_way().unwrap().join(Manifest::FILE).exists());
    for _twice in 0..2 {
        remove_taken(&share.parent).unwrap();
        assert_eq!(share.names(), [HIGHEST_NUMBER]);
    }
    assert!(elsewhere.exists());
}

#[test]
fn a_number_is_not_given_again() {
    let share = Share::new();
    let highest = || highest_number(&share.parent, share.manifest.instance_id).unwrap().0;
    assert_eq!(highest(), 7);
    share.take_away().unwrap();
    assert_eq!(highest(), 7);
    WayOut::make(&share.parent, BackupId::draw()).unwrap().take(&share.parent, Some(9), LEASE).unwrap();
    assert_eq!(highest(), 7, "it never was there");
    for number in [None, Some(3)] {
        let share = Share::new();
        std::fs::write(share.parent.path().join(HIGHEST_NUMBER), "9\n").unwrap();
        let way_out = WayOut::make(&share.parent, share.manifest.backup_id).unwrap();
        way_out.take(&share.parent, number, LEASE).unwrap();
        let highest = highest_number(&share.parent, share.manifest.instance_id).unwrap().0;
        assert_eq!(highest, if number.is_some() { 9 } else { LEASE }, "one that nobody knows may have been high");
    }
}

#[test]
fn what_stands_in_the_place_of_the_highest_number_stops_nothing_and_is_told() {
    let (most, long) = (u64::MAX.to_string(), "9".repeat(65));
    let contents = ["", "x", "-1", "99999999999999999999999", &most, &long];
    for round in 0..contents.len() + 2 {
        let put = |path: &std::path::Path| match contents.get(round) {
            Some(text) => std::fs::write(path, text).unwrap(),
            None if round == contents.len() => std::fs::create_dir_all(path.join("in")).unwrap(),
            None => symlink("/etc/hostname", path).unwrap(),
        };
        let share = Share::new();
        for name in [HIGHEST_NUMBER, HIGHEST_TEMPORARY] {
            put(&share.parent.path().join(name));
        }
        let (highest, warning) = highest_number(&share.parent, share.manifest.instance_id).unwrap();
        assert_eq!(highest, 7, "{round}");
        assert!(warning.unwrap().contains(HIGHEST_NUMBER), "{round}");
        share.take_away().unwrap();
        // What was in it may have been higher.
        let (highest, warning) = highest_number(&share.parent, share.manifest.instance_id).unwrap();
        assert_eq!((highest, warning), (LEASE, None), "{round}");
    }
}

#[test]
fn what_is_pinned_stays() {
    let share = Share::new();
    let backup = share.manifest.backup_id;
    let directory = share.parent.path().join(backup.to_string());
    std::fs::write(directory.join(Pin::FILE), "").unwrap();
    assert_eq!(share.take_away().unwrap_err().code, Code::BackupPinned);
    assert!(share.names().contains(&backup.to_string()));
    remove_taken(&share.parent).unwrap();
    assert_eq!(share.names(), [backup.to_string()]);
    assert!(directory.join(Manifest::FILE).exists());
}

#[test]
fn what_was_pinned_in_time_goes_back_whoever_comes_to_remove_it_and_never_in_part() {
    for fences in [false, true] {
        let share = Share::new();
        let (instance, name) = (share.manifest.instance_id, share.manifest.backup_id.to_string());
        share.take_away().unwrap();
        // As if the deletion had been cut off before its last look.
        let on_its_way = share.on_its_way().unwrap();
        std::fs::write(on_its_way.join(Pin::FILE), "").unwrap();
        match fences {
            false => remove_taken(&share.parent).unwrap(),
            true => {
                let root = Dir::open_root(share.directory.path()).unwrap();
                taken_over(&root, instance);
            }
        }
        assert_eq!(share.names(), [HIGHEST_NUMBER.to_owned(), name.clone()]);
        assert!(share.parent.path().join(&name).join(Manifest::FILE).exists());
        std::fs::remove_file(share.parent.path().join(&name).join(Pin::FILE)).unwrap();
        share.take_away().unwrap();
        // As if its removal had begun.
        let fenced = share.parent.path().join(fenced_name(&name));
        std::fs::rename(share.on_its_way().unwrap(), &fenced).unwrap();
        std::fs::write(fenced.join(Pin::FILE), "").unwrap();
        remove_taken(&share.parent).unwrap();
        assert_eq!(share.names(), [HIGHEST_NUMBER]);
    }
}

#[test]
fn what_was_pinned_too_late_to_be_restorable_does_not_come_back() {
    let share = Share::new();
    let (instance, name) = (share.manifest.instance_id, share.manifest.backup_id.to_string());
    let mut child = share.manifest.clone();
    let based_on = crate::model::manifest::BasedOn {
        backup_id: BackupId::draw(),
        content_root: child.disks[0].content_root.clone(),
        found_by: crate::model::manifest::ChangesFoundBy::Hashes,
    };
    child.disks[0].based_on = Some(based_on);
    let manifest = share.parent.path().join(&name).join(Manifest::FILE);
    std::fs::write(manifest, serde_json::to_vec(&child).unwrap()).unwrap();
    share.take_away().unwrap();
    std::fs::write(share.on_its_way().unwrap().join(Pin::FILE), "").unwrap();
    taken_over(&Dir::open_root(share.directory.path()).unwrap(), instance);
    assert_eq!(share.names(), [HIGHEST_NUMBER], "what it was based on is gone");
}

#[test]
fn what_was_moved_aside_is_back_in_its_place_when_the_lease_is_taken() {
    let share = Share::new();
    let (instance, name) = (share.manifest.instance_id, share.manifest.backup_id.to_string());
    let aside = share.parent.path().join(format!(".replaced-{name}.vda.qcow2"));
    let place = share.parent.path().join(&name).join("vda.qcow2");
    for is_empty in [true, false] {
        let held = std::fs::read(&place).unwrap();
        std::fs::copy(&place, &aside).unwrap();
        if is_empty {
            std::fs::remove_file(&place).unwrap();
        }
        taken_over(&Dir::open_root(share.directory.path()).unwrap(), instance);
        assert_eq!((share.names(), std::fs::read(&place).unwrap()), (vec![name.clone()], held));
    }
}

#[test]
fn what_cannot_be_removed_keeps_nobody_from_the_lease_and_is_removed_when_it_can_be() {
    for fences in [false, true] {
        let share = Share::new();
        // As a file that somebody on this host has open behind a network file system.
        let kept = share.parent.path().join(share.manifest.backup_id.to_string()).join("1/2/3/4/5/6/7/8/9");
        std::fs::create_dir_all(&kept).unwrap();
        share.take_away().unwrap();
        let root = Dir::open_root(share.directory.path()).unwrap();
        match fences {
            false => assert!(remove_taken(&share.parent).is_err(), "it is told"),
            true => taken_over(&root, share.manifest.instance_id),
        }
        let names = share.names();
        let [fenced, _] = &names[..] else { unreachable!("{names:?}") };
        assert!(fenced.starts_with(&format!("{FENCED_PREFIX}{}.", share.manifest.backup_id)), "{fenced}");
        taken_over(&root, share.manifest.instance_id);
        assert_eq!(share.names(), names);
        std::fs::remove_dir_all(share.parent.path().join(fenced).join("1/2")).unwrap();
        remove_taken(&share.parent).unwrap();
        assert_eq!(share.names(), [HIGHEST_NUMBER]);
    }
}

#[test]
fn a_way_out_is_ended_whatever_is_in_it() {
    let share = Share::new();
    let way_out = WayOut::make(&share.parent, share.manifest.backup_id).unwrap();
    let path = way_out.directory.path().to_owned();
    std::fs::write(path.join("file"), "").unwrap();
    symlink(share.directory.path(), path.join("link")).unwrap();
    symlink(share.directory.path(), path.join(share.manifest.backup_id.to_string())).unwrap();
    std::fs::create_dir_all(path.join("directory/in")).unwrap();
    let taken = end(&share.parent, way_out.name.as_ref()).unwrap();
    assert_eq!(taken.len(), 4);
    assert!(way_out.take(&share.parent, Some(7), LEASE).is_err());
    way_out.remove(&share.parent).unwrap();
    remove_taken(&share.parent).unwrap();
    let mut left = share.names();
    left.retain(|name| name != HIGHEST_NUMBER);
    assert_eq!(left, [share.manifest.backup_id.to_string()]);
    std::fs::write(share.parent.path().join(".deleting-file"), "").unwrap();
    symlink(share.directory.path(), share.parent.path().join(".deleting-link")).unwrap();
    taken_over(&Dir::open_root(share.directory.path()).unwrap(), share.manifest.instance_id);
    assert_eq!(share.names().len(), 2);
    assert!(share.directory.path().join(crate::mover::share::INSTANCES).exists());
}

#[test]
fn once_somebody_else_has_the_lease_nothing_is_moved_any_more() {
    let share = Share::new();
    let (instance, backup) = (share.manifest.instance_id, share.manifest.backup_id);
    let way_out = WayOut::make(&share.parent, backup).unwrap();
    let root = Dir::open_root(share.directory.path()).unwrap();
    taken_over(&root, instance);
    // The other one deletes the same backup.
    let others = WayOut::make(&share.parent, backup).unwrap();
    assert_ne!(way_out.name, others.name, "CIFS would find the one for the other");
    assert_eq!(way_out.take(&share.parent, Some(7), LEASE).unwrap_err().code, Code::LeaseLost);
    way_out.remove(&share.parent).unwrap();
    assert!(share.parent.stat(backup.to_string()).unwrap().is_some());
    others.take(&share.parent, Some(7), LEASE).unwrap();
}

#[test]
fn a_link_in_the_place_of_a_backup_is_not_followed() {
    let share = Share::new();
    let backup = BackupId::draw();
    symlink(share.directory.path(), share.parent.path().join(backup.to_string())).unwrap();
    let way_out = WayOut::make(&share.parent, backup).unwrap();
    assert_eq!(way_out.take(&share.parent, None, LEASE).unwrap_err().code, Code::RepositoryUnsafe);
}
