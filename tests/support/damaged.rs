//! A stopped instance whose volumes were damaged after its backup: what a restore in place is for, and by what it is seen whether one was.
#![allow(dead_code)] // Each live target uses its own part.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use longshore::message::event::BackupSummary;

use crate::fleet::Fleet;
use crate::image::qemu_io;
use crate::lab::LabInstance;
use crate::share::Share;

/// The instance, its backup, and the files beside its volumes.
pub struct Damaged {
    pub bare: LabInstance,
    pub backup: BackupSummary,
    files: BTreeSet<PathBuf>,
}

impl Damaged {
    pub fn new(fleet: &Fleet, share: &Share) -> Self {
        let bare = LabInstance::bare();
        bare.stop();
        fs::copy(bare.folder.join("vda.qcow2"), bare.folder.join("vda.reference.qcow2")).unwrap();
        let backup = fleet.completed(fleet.back_up(&bare, share, "off"));
        let files = files_of(&bare.folder);
        let damaged = Self { bare, backup, files };
        damaged.damage();
        damaged
    }

    /// Damages the volumes, again where they have been restored.
    pub fn damage(&self) {
        for (volume, format, _) in self.volumes() {
            qemu_io(&volume, format, &["write -P 0xee 1M 3M"]);
        }
        assert!(!self.is_as_at_the_backup());
    }

    pub fn volumes(&self) -> [(PathBuf, &'static str, PathBuf); 2] {
        let at = |name: &str| self.bare.folder.join(name);
        [(at("vda.qcow2"), "qcow2", at("vda.reference.qcow2")), (at("vdb.raw"), "raw", at("vdb.reference.raw"))]
    }

    /// Looked at past the code under test.
    pub fn is_as_at_the_backup(&self) -> bool {
        self.volumes().iter().all(|(volume, format, reference)| same(volume, reference, format))
    }

    pub fn has_no_other_files(&self) {
        assert_eq!(files_of(&self.bare.folder), self.files);
    }

    /// Every volume as it was after the damage, by what the damage left there.
    pub fn is_still_damaged(&self) {
        for (volume, format, _) in self.volumes() {
            qemu_io(&volume, format, &["read -P 0xee 1M 3M"]);
        }
        self.has_no_other_files();
    }
}

fn files_of(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn same(one: &Path, other: &Path, format: &str) -> bool {
    let (one, other) = (one.to_str().unwrap(), other.to_str().unwrap());
    let compare = ["compare", "-q", "-f", format, "-F", format, one, other];
    match std::process::Command::new("qemu-img").args(compare).status().unwrap().code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("qemu-img compare: {other:?}"),
    }
}
