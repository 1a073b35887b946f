//! Volume groups of LVM, on a disk of their own.
#![allow(dead_code)] // Each live target uses its own part.

use std::path::{Path, PathBuf};

use crate::loops::{Loop, tool, tool_at_the_end};

/// A volume group, removed with all that is in it.
pub struct Group {
    pub name: String,
    disk: Loop,
}

impl Group {
    /// Of so many bytes in a new file, each of which is `fill`.
    pub fn new(file: PathBuf, bytes: u64, fill: u8) -> Self {
        Self::on(Loop::new(file, bytes, fill))
    }

    /// On that disk.
    pub fn on(disk: Loop) -> Self {
        // As no other test has it.
        let name = format!("g{}", disk.path.file_name().unwrap().to_str().unwrap());
        tool("vgcreate", &["--yes", &name, disk.path.to_str().unwrap()]);
        Self { name, disk }
    }

    /// What it is on.
    pub fn disk(&self) -> &Path {
        &self.disk.path
    }

    /// Makes a linear volume, which holds what was there before.
    pub fn linear(&self, name: &str, bytes: u64) {
        let options = ["--yes", "--zero", "n", "--wipesignatures", "n", "--name", name, "--size"];
        tool("lvcreate", &[&options[..], &[&format!("{bytes}b"), &self.name]].concat());
    }

    /// Makes a pool for thin volumes.
    pub fn pool(&self, name: &str, bytes: u64) {
        tool("lvcreate", &["--yes", "--type", "thin-pool", "--size", &format!("{bytes}b"), &self.of(name)]);
    }

    /// Makes a thin volume in it.
    pub fn thin(&self, pool: &str, name: &str, bytes: u64) {
        let options = ["--yes", "--type", "thin", "--virtualsize", &format!("{bytes}b"), "--name", name];
        tool("lvcreate", &[&options[..], &["--thinpool", &self.of(pool)]].concat());
    }

    pub fn path(&self, volume: &str) -> PathBuf {
        Path::new("/dev").join(&self.name).join(volume)
    }

    pub fn rename(&self, from: &Path, to: &Path) {
        tool("lvrename", &[&self.name, &name_of(from), &name_of(to)]);
    }

    pub fn remove(&self, volume: &str) {
        tool("lvremove", &["--yes", &self.of(volume)]);
    }

    /// The names of all volumes.
    pub fn volumes(&self) -> Vec<String> {
        self.report("lv_name")
    }

    /// What is in that column of each volume's row, in alphabetical order.
    pub fn report(&self, column: &str) -> Vec<String> {
        self.chosen(column, "all")
    }

    /// The same, of the volumes that the selection takes. Other tests have groups on this machine as well.
    pub fn chosen(&self, column: &str, selection: &str) -> Vec<String> {
        let said = tool("lvs", &["--noheadings", "--options", column, "--select", selection, &self.name]);
        let mut lines: Vec<_> = said.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    }

    /// What is in those columns of one volume's row.
    pub fn row(&self, columns: &str, volume: &str) -> String {
        tool("lvs", &["--noheadings", "--options", columns, &self.of(volume)]).trim().to_owned()
    }

    /// A volume, as lvm2's tools are told of it.
    pub fn of(&self, volume: &str) -> String {
        format!("{}/{volume}", self.name)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        tool_at_the_end("vgremove", &["--yes", "--force", &self.name]);
    }
}

/// The name of the volume whose device that is.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}
