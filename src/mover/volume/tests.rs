//! All states of the names of two volumes, and what becomes of them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::model::instance::ImageFormat;

/// A directory with two volumes, `a` and `b`.
struct Storage(tempfile::TempDir);

impl Storage {
    /// `states` say which of its names each volume has: v, f, p.
    fn new(states: [&str; 2]) -> Self {
        let storage = Self(tempfile::tempdir().unwrap());
        for (volume, names) in storage.volumes().iter().zip(states) {
            let moved = !names.contains('v') || (names.contains('p') && !names.contains('f'));
            let VolumePlace::File { volume, fresh, previous } = &volume.place else { unreachable!() };
            for (name, path) in [('v', volume), ('f', fresh), ('p', previous)] {
                let old = name == 'p' || (name == 'v' && !(moved && names.contains('v')));
                if names.contains(name) {
                    fs::write(path, if old { "old" } else { "new" }).unwrap();
                }
            }
        }
        storage
    }

    fn volumes(&self) -> Vec<RestoredVolume> {
        let path = |name: String| self.0.path().join(name);
        let volume = |name: &str| RestoredVolume {
            disk: "vda".parse().unwrap(),
            virtual_bytes: 1,
            content_root: String::new(),
            format: ImageFormat::Raw,
            place: VolumePlace::File {
                volume: path(name.to_owned()),
                fresh: path(format!("{name}.new")),
                previous: path(format!("{name}.old")),
            },
        };
        vec![volume("a"), volume("b")]
    }

    /// The content at each name that is there.
    fn holds(&self) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        found.sort();
        found
    }

    fn must_hold(&self, wanted: &[(&str, &str)]) {
        let found = self.holds();
        let found: Vec<_> = found.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        assert_eq!(found, wanted);
    }

    fn exchange(&self) -> Result<Outcome, Failure> {
        exchange(&self.volumes(), false, &Keys::default())
    }
}

const EXCHANGED: [(&str, &str); 4] = [("a", "new"), ("a.old", "old"), ("b", "new"), ("b.old", "old")];
const OLD: [(&str, &str); 2] = [("a", "old"), ("b", "old")];

/// Of two volumes.
fn data(bytes: u64) -> [Amount; 2] {
    [Amount::anywhere(bytes), Amount::anywhere(bytes)]
}

#[test]
fn an_exchange_goes_on_wherever_it_was_cut_off() {
    let states = ["vf", "fp", "vp"];
    for (one, other) in states.iter().flat_map(|one| states.map(|other| (*one, other))) {
        let storage = Storage::new([one, other]);
        for _twice in 0..2 {
            assert!(matches!(storage.exchange().unwrap(), Outcome::Done), "{one} {other}");
            storage.must_hold(&EXCHANGED);
        }
        remove_fresh(&storage.volumes(), &Keys::default()).unwrap();
        storage.must_hold(&EXCHANGED);
        for _twice in 0..2 {
            remove_previous(&storage.volumes(), &Keys::default()).unwrap();
            storage.must_hold(&[("a", "new"), ("b", "new")]);
        }
        remove_fresh(&storage.volumes(), &Keys::default()).unwrap();
        storage.must_hold(&[("a", "new"), ("b", "new")]);
    }
}

#[test]
fn who_only_goes_on_begins_none() {
    for (states, begun) in [(["vf", "vf"], false), (["fp", "vf"], true), (["vp", "vf"], true), (["vp", "vp"], true)] {
        let storage = Storage::new(states);
        match exchange(&storage.volumes(), true, &Keys::default()) {
            Ok(Outcome::Done) if begun => storage.must_hold(&EXCHANGED),
            Err(failure) if !begun => {
                assert_eq!(failure.code, Code::Interrupted);
                storage.must_hold(&[("a", "old"), ("a.new", "new"), ("b", "old"), ("b.new", "new")]);
            }
            other => panic!("{states:?}: {other:?}"),
        }
    }
}

#[test]
fn what_was_cut_off_can_be_given_up_too() {
    let states = ["vf", "fp", "vp", "v"];
    for (one, other) in states.iter().flat_map(|one| states.map(|other| (*one, other))) {
        let storage = Storage::new([one, other]);
        let over = one.contains('p') && !one.contains('f') && !other.contains('f');
        let over = over || (other.contains('p') && !other.contains('f') && !one.contains('f'));
        if over {
            continue;
        }
        for _twice in 0..2 {
            remove_fresh(&storage.volumes(), &Keys::default()).unwrap();
            storage.must_hold(&OLD);
        }
    }
}

#[test]
fn what_cannot_go_forward_goes_back() {
    for (states, code) in [
        (["vf", "v"], Code::Internal),
        (["fp", "v"], Code::Internal),
        (["fp", "p"], Code::VolumeIo),
        (["vp", "p"], Code::VolumeIo),
        (["vf", "vfp"], Code::VolumeIo),
        (["v", "v"], Code::Internal),
    ] {
        let storage = Storage::new(states);
        assert_eq!(storage.exchange().unwrap_err().code, code, "{states:?}");
        for (volume, content) in OLD {
            assert_eq!(fs::read_to_string(storage.0.path().join(volume)).unwrap(), content, "{states:?}");
        }
    }
    let storage = Storage::new(["vp", "v"]);
    assert!(matches!(storage.exchange().unwrap(), Outcome::Done), "the removal of the previous ones had begun");
}

#[test]
fn an_old_volume_that_is_gone_is_never_taken_for_one_that_is_back() {
    for states in [["vf", "f"], ["fp", "f"], ["fp", ""]] {
        let storage = Storage::new(states);
        let Outcome::NotKnown(failure) = storage.exchange().unwrap() else { panic!("{states:?}") };
        assert!(format!("{failure:#}").contains("is gone"), "{failure:#}");
    }
    let storage = Storage::new(["vf", "f"]);
    assert_eq!(remove_fresh(&storage.volumes(), &Keys::default()).unwrap_err().code, Code::VolumeIo);
    assert!(storage.0.path().join("b.new").exists(), "the only copy stays");
    let storage = Storage::new(["vf", "vf"]);
    let elsewhere = storage.0.path().with_extension("elsewhere");
    fs::rename(storage.0.path(), &elsewhere).unwrap();
    assert!(matches!(storage.exchange().unwrap(), Outcome::NotKnown(_)), "nothing can be seen");
    fs::rename(elsewhere, storage.0.path()).unwrap();
}

#[test]
fn the_previous_ones_stay_until_all_new_ones_are_in_place() {
    for states in [["vp", "fp"], ["vp", "vf"], ["fp", "fp"]] {
        let storage = Storage::new(states);
        let before = storage.holds();
        assert_eq!(remove_previous(&storage.volumes(), &Keys::default()).unwrap_err().code, Code::Internal);
        assert_eq!(storage.holds(), before);
    }
    let storage = Storage::new(["vf", "vf"]);
    remove_previous(&storage.volumes(), &Keys::default()).unwrap();
    assert_eq!(storage.holds().len(), 4);
}

#[test]
fn a_volume_that_somebody_uses_stays_where_it_is() {
    let storage = Storage::new(["vf", "vf"]);
    let theirs = fs::File::open(storage.0.path().join("b")).unwrap();
    assert!(locks::hold(&theirs).unwrap());
    assert_eq!(storage.exchange().unwrap_err().code, Code::InUseElsewhere);
    assert_eq!(prepare(&storage.volumes(), &data(1), false, &Keys::default()).unwrap_err().code, Code::InUseElsewhere);
    storage.must_hold(&[("a", "old"), ("a.new", "new"), ("b", "old"), ("b.new", "new")]);
    drop(theirs);
    assert!(matches!(storage.exchange().unwrap(), Outcome::Done));
    // Opened by force while it was exchanged: it would go on with a file that has no name.
    let theirs = fs::File::open(storage.0.path().join("b.old")).unwrap();
    assert!(locks::hold(&theirs).unwrap());
    assert_eq!(remove_previous(&storage.volumes(), &Keys::default()).unwrap_err().code, Code::InUseElsewhere);
    assert!(storage.0.path().join("b.old").exists());
    drop(theirs);
    remove_previous(&storage.volumes(), &Keys::default()).unwrap();
    storage.must_hold(&[("a", "new"), ("b", "new")]);
}

#[test]
fn an_image_with_snapshots_of_its_own_is_only_replaced_where_it_is_kept() {
    let storage = Storage::new(["v", "v"]);
    let mut header = [0; 104];
    header[..4].copy_from_slice(b"QFI\xfb");
    (header[7], header[63]) = (3, 1);
    fs::write(storage.0.path().join("b"), header).unwrap();
    let volumes: Vec<_> =
        storage.volumes().into_iter().map(|volume| RestoredVolume { format: ImageFormat::Qcow2, ..volume }).collect();
    let refused = prepare(&volumes, &data(1), false, &Keys::default()).unwrap_err();
    assert_eq!(refused.code, Code::DiskUnsupported);
    assert!(refused.text.contains("internal snapshots"), "{refused:#}");
    assert_eq!(prepare(&volumes, &data(1), true, &Keys::default()).unwrap().len(), 2);
}

#[test]
fn a_restore_begins_only_where_the_old_volumes_are_and_there_is_room() {
    let storage = Storage::new(["vf", "v"]);
    assert_eq!(
        prepare(&storage.volumes(), &[Amount::anywhere(1), Amount::anywhere(u64::MAX)], false, &Keys::default())
            .unwrap_err()
            .code,
        Code::VolumeFull
    );
    assert_eq!(prepare(&storage.volumes(), &data(1), false, &Keys::default()).unwrap().len(), 2);
    storage.must_hold(&OLD);
    fs::remove_file(storage.0.path().join("b")).unwrap();
    assert_eq!(prepare(&storage.volumes(), &data(1), false, &Keys::default()).unwrap_err().code, Code::VolumeIo);
    symlink("a", storage.0.path().join("b")).unwrap();
    assert_eq!(prepare(&storage.volumes(), &data(1), false, &Keys::default()).unwrap_err().code, Code::DiskUnsupported);
    let storage = Storage::new(["vp", "vp"]);
    assert_eq!(prepare(&storage.volumes(), &data(1), false, &Keys::default()).unwrap_err().code, Code::Internal);
}

#[test]
fn names_are_absolute_beside_each_other_and_each_is_there_once() {
    let storage = Storage::new(["v", "v"]);
    let good = storage.volumes();
    assert_eq!(names(&good).unwrap().len(), 2);
    let other = |change: &dyn Fn(&mut PathBuf, &mut PathBuf, &mut PathBuf)| {
        let mut volumes = storage.volumes();
        let VolumePlace::File { volume, fresh, previous } = &mut volumes[1].place else { unreachable!() };
        change(volume, fresh, previous);
        names(&volumes).map(|_| ()).unwrap_err().code
    };
    assert_eq!(other(&|volume, _, _| *volume = "b".into()), Code::Internal);
    assert_eq!(other(&|_, fresh, _| *fresh = "/elsewhere/b.new".into()), Code::Internal);
    assert_eq!(other(&|_, fresh, previous| *previous = fresh.clone()), Code::Internal);
    assert_eq!(other(&|volume, _, _| *volume = good[0].place.volume().to_owned()), Code::Internal);
    assert_eq!(other(&|volume, _, previous| *previous = volume.join("..")), Code::Internal);
}
