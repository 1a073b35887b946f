//! Volumes on a real disk, for the worlds of real movers.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::contract::Stands;
pub use super::loops::tool;

/// An image with a content of its own in a directory that is made for it.
pub fn volume(folder: &Path, virtual_bytes: u64) -> PathBuf {
    let directory = folder.join("volumes");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("web.qcow2");
    let name = path.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", name, &virtual_bytes.to_string()]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 0x11 0 1M", name]);
    path
}

/// What stands there, where `disk` is the raw disk that was backed up.
pub fn stands(path: &Path, disk: &Path) -> Stands {
    if !path.exists() {
        return Stands::Nothing;
    }
    match is_alike(path, "qcow2", disk) {
        true => Stands::Restored,
        false => Stands::Old,
    }
}

/// The image at `path` holds what the raw disk does.
pub fn is_alike(path: &Path, format: &str, disk: &Path) -> bool {
    let options = ["compare", "-U", "-f", format, "-F", "raw"];
    let compared = Command::new("qemu-img").args(options).args([path, disk]).output().unwrap();
    match compared.status.code() {
        Some(0) => true,
        Some(1) => false,
        _ => panic!("{compared:?}"),
    }
}

/// A process of QEMU's that has an image open to write.
pub struct User(Child);

impl User {
    pub fn of(path: &Path, format: &str) -> Self {
        let program =
            Command::new("qemu-io").args(["-f", format]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut user = Self(program.expect("qemu-io is missing"));
        user.0.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut said = String::new();
        BufReader::new(user.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("MiB"), "it is not open: {said}");
        user
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Inverts one byte.
pub fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}
