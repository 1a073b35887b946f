//! On a real file system: names that are taken, links, and a naming that is cut off anywhere.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::failure::Code;
use crate::model::instance::ImageFormat;
use crate::mover::protocol::NewFile;

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("images/fast")).unwrap();
        fs::create_dir_all(folder.path().join("elsewhere")).unwrap();
        Self { folder }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn files(&self, paths: &[&str]) -> NewFiles {
        let file = |path: &&str| {
            let path = self.at(path);
            let fresh = PathBuf::from(format!("{}.new", path.display()));
            let content = NewContent::Disk {
                disk: "vda".parse().unwrap(),
                virtual_bytes: 1 << 20,
                content_root: String::new(),
                format: ImageFormat::Raw,
            };
            NewFile { content, path, fresh, directory: None, made: None }
        };
        NewFiles { roots: vec![self.at("images")], files: paths.iter().map(file).collect(), vacant: Vec::new() }
    }

    fn made(&self, paths: &[&str]) -> NewFiles {
        let new = self.files(paths);
        for file in &new.files {
            fs::write(&file.fresh, "new").unwrap();
        }
        new
    }

    /// As somebody knows them who has journalled what was made.
    fn known(&self, paths: &[&str]) -> NewFiles {
        let mut new = self.files(paths);
        let directories = directories(&new).unwrap();
        new.files.iter().for_each(|file| fs::write(&file.fresh, "new").unwrap());
        let inodes = inodes(&new).unwrap();
        for ((file, directory), made) in new.files.iter_mut().zip(directories).zip(inodes) {
            (file.directory, file.made) = (Some(directory), Some(made));
        }
        new
    }

    fn refused(&self, paths: &[&str]) -> Code {
        let new = self.files(paths);
        let code = prepare(&new, &[0, 0]).unwrap_err().code;
        assert!(remove(&new).is_ok(), "where nothing could be made, nothing is to be removed");
        code
    }
}

fn is_new(path: &Path) -> bool {
    fs::read(path).is_ok_and(|content| content == b"new")
}

fn taken_back(new: &NewFiles) {
    let outcome = take_back(new);
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
}

fn not_known(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NotKnown(failure) if failure.code == Code::VolumeIo)
}

fn done(outcome: Result<Outcome, Failure>) {
    assert!(matches!(outcome, Ok(Outcome::Done)), "{outcome:?}");
}

#[test]
fn new_files_are_below_a_root_and_no_link_leads_out_of_it() {
    let world = World::new();
    prepare(&world.files(&["images/a.raw", "images/fast/b.raw"]), &[0, 0]).unwrap();
    assert_eq!(world.refused(&["elsewhere/a.raw"]), Code::PathNotAllowed);
    assert_eq!(world.refused(&["images/../elsewhere/a.raw"]), Code::PathNotAllowed);
    symlink(world.at("elsewhere"), world.at("images/link")).unwrap();
    assert_eq!(world.refused(&["images/link/a.raw"]), Code::PathNotAllowed);
    symlink(world.at("images/fast"), world.at("images/inner")).unwrap();
    assert_eq!(world.refused(&["images/inner/a.raw"]), Code::PathNotAllowed, "not even one that stays below it");
    assert_eq!(world.refused(&["images/nowhere/a.raw"]), Code::VolumeIo);
    assert_eq!(world.refused(&["images/a.raw", "images/a.raw"]), Code::VolumeExists);
    // The root itself is the operator's.
    symlink(world.at("images"), world.at("pool")).unwrap();
    let mut new = world.files(&["pool/a.raw"]);
    new.roots = vec![world.at("pool")];
    prepare(&new, &[0]).unwrap();
}

#[test]
fn what_is_there_is_refused_and_what_an_earlier_try_left_is_removed() {
    let world = World::new();
    fs::write(world.at("images/a.raw"), "other").unwrap();
    assert_eq!(world.refused(&["images/a.raw"]), Code::VolumeExists);
    symlink("nowhere", world.at("images/b.raw")).unwrap();
    assert_eq!(world.refused(&["images/b.raw"]), Code::VolumeExists, "a link to nothing is something");
    assert_eq!(world.refused(&["images/fast"]), Code::VolumeExists);
    let new = world.made(&["images/c.raw"]);
    prepare(&new, &[0]).unwrap();
    assert!(!new.files[0].fresh.exists());
    let too_much = prepare(&world.files(&["images/d.raw"]), &[u64::MAX / 2]).unwrap_err();
    assert_eq!(too_much.code, Code::VolumeFull);
}

#[test]
fn all_get_their_names_from_wherever_it_was_cut_off() {
    for named in 0..=2 {
        for half in [false, true] {
            let world = World::new();
            let new = world.made(&["images/a.raw", "images/fast/b.raw"]);
            for file in new.files.iter().take(named) {
                fs::hard_link(&file.fresh, &file.path).unwrap();
                if !half {
                    fs::remove_file(&file.fresh).unwrap();
                }
            }
            for _twice in 0..2 {
                done(place(&new));
                assert!(new.files.iter().all(|file| is_new(&file.path) && !file.fresh.exists()));
            }
            remove(&new).unwrap();
            assert!(new.files.iter().all(|file| is_new(&file.path)), "what has its name stays");
            for _twice in 0..2 {
                taken_back(&new);
                assert!(new.files.iter().all(|file| is_new(&file.fresh) && !file.path.exists()));
            }
            remove(&new).unwrap();
            assert!(new.files.iter().all(|file| !file.fresh.exists() && !file.path.exists()));
        }
    }
}

#[test]
fn a_name_that_somebody_takes_meanwhile_is_theirs_and_no_other_is_given() {
    let world = World::new();
    let new = world.made(&["images/a.raw", "images/fast/b.raw"]);
    fs::write(&new.files[1].path, "other").unwrap();
    let failure = place(&new).unwrap_err();
    assert_eq!(failure.code, Code::VolumeExists);
    assert!(is_new(&new.files[0].fresh) && !new.files[0].path.exists());
    assert_eq!(fs::read(&new.files[1].path).unwrap(), b"other");
    taken_back(&new);
    remove(&new).unwrap();
    assert_eq!(fs::read(&new.files[1].path).unwrap(), b"other");
    assert!(!new.files[0].fresh.exists() && !new.files[1].fresh.exists());
}

#[test]
fn a_new_file_that_is_not_seen_may_be_anywhere() {
    let world = World::new();
    let new = world.made(&["images/a.raw", "images/fast/b.raw"]);
    fs::remove_file(&new.files[1].fresh).unwrap();
    assert!(not_known(&place(&new).unwrap()));
    assert!(is_new(&new.files[0].fresh) && !new.files[0].path.exists());
    assert!(not_known(&take_back(&new)), "it may have its name where nobody sees it");
}

/// As at a boot, when what was mounted is not yet.
#[test]
fn what_is_in_a_directory_that_is_not_there_or_another_one_is_neither_taken_back_nor_removed() {
    let world = World::new();
    let new = world.known(&["images/fast/a.raw"]);
    done(place(&new));
    let (mounted, aside) = (world.at("images/fast"), world.at("images/aside"));
    fs::rename(&mounted, &aside).unwrap();
    for another in [false, true] {
        if another {
            fs::create_dir(&mounted).unwrap();
        }
        assert!(not_known(&place(&new).unwrap()), "{another}");
        assert!(not_known(&take_back(&new)), "{another}");
        assert_eq!(remove(&new).unwrap_err().code, Code::VolumeIo, "{another}");
    }
    fs::remove_dir(&mounted).unwrap();
    fs::rename(&aside, &mounted).unwrap();
    done(place(&new));
    taken_back(&new);
    remove(&new).unwrap();
    assert!(!new.files[0].fresh.exists() && !new.files[0].path.exists());
}

#[test]
fn a_file_of_somebody_else_at_the_name_is_not_the_new_one() {
    let world = World::new();
    let new = world.known(&["images/a.raw"]);
    // Kept aside, so that nobody gets its inode.
    fs::rename(&new.files[0].fresh, world.at("elsewhere/a.raw")).unwrap();
    fs::write(&new.files[0].path, "other").unwrap();
    assert!(not_known(&place(&new).unwrap()));
    assert!(not_known(&take_back(&new)));
    remove(&new).unwrap();
    assert_eq!(fs::read(&new.files[0].path).unwrap(), b"other");
}

#[test]
fn variables_that_are_an_image_are_not_written() {
    let world = World::new();
    let prepared = prepare(&world.files(&["images/VARS.fd"]), &[0]).unwrap();
    assert_eq!(write(&prepared[0], b"QFI\xfb and what is below").unwrap_err().code, Code::DefinitionRefused);
    write(&prepared[0], b"variables").unwrap();
    assert_eq!(fs::read(world.at("images/VARS.fd.new")).unwrap(), b"variables");
}

#[test]
fn where_somebody_else_is_to_make_a_file_nothing_is_and_no_link_leads_there() {
    let world = World::new();
    symlink("nowhere", world.at("images/dangling")).unwrap();
    symlink(world.at("elsewhere"), world.at("images/link")).unwrap();
    for (path, expected) in [
        ("images/VARS.fd", None),
        ("images/dangling", Some(Code::VolumeExists)),
        ("images/fast", Some(Code::VolumeExists)),
        ("images/a.raw", Some(Code::VolumeExists)),
        ("images/link/VARS.fd", Some(Code::PathNotAllowed)),
        ("elsewhere/VARS.fd", Some(Code::PathNotAllowed)),
        ("images/nowhere/VARS.fd", Some(Code::VolumeIo)),
    ] {
        let mut new = world.files(&["images/a.raw"]);
        new.vacant = vec![world.at(path)];
        assert_eq!(directories(&new).err().map(|failure| failure.code), expected, "{path}");
    }
}

#[test]
fn a_new_file_that_was_removed_before_any_name_was_given_is_told_at_once() {
    let world = World::new();
    let new = world.known(&["images/a.raw", "images/fast/b.raw"]);
    directories(&new).unwrap();
    // Kept aside, so that nobody gets its inode.
    fs::rename(&new.files[1].fresh, world.at("elsewhere/b.raw")).unwrap();
    assert_eq!(directories(&new).unwrap_err().code, Code::VolumeIo);
    fs::write(&new.files[1].fresh, "other").unwrap();
    assert_eq!(directories(&new).unwrap_err().code, Code::VolumeIo);
}

#[test]
fn what_tries_whether_a_file_can_be_named_leaves_nothing() {
    let world = World::new();
    let new = world.files(&["images/a.raw"]);
    let left = world.at("images/a.raw.ne~");
    fs::write(&left, "of one that was cut off").unwrap();
    prepare(&new, &[0]).unwrap();
    assert!(!left.exists() && !new.files[0].fresh.exists());
    fs::write(&left, "").unwrap();
    remove(&new).unwrap();
    assert!(!left.exists());
}
