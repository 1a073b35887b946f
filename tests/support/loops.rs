//! Block devices of the host's own, made of files, and the tools that make them.
#![allow(dead_code)] // Each live target uses its own part.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// Runs a tool to its success, and answers what it said.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// The same when something is dropped: a second panic would end the program, and with it what other tests have to say.
pub fn tool_at_the_end(program: &str, arguments: &[&str]) {
    match std::thread::panicking() {
        true => eprintln!("{program} {arguments:?}: {:?}", Command::new(program).args(arguments).output()),
        false => drop(tool(program, arguments)),
    }
}

/// A block device whose bytes are those of a file.
pub struct Loop {
    pub path: PathBuf,
    pub file: PathBuf,
}

impl Loop {
    /// Of a new file that holds nothing but that byte.
    pub fn new(file: PathBuf, bytes: u64, fill: u8) -> Self {
        fs::write(&file, vec![fill; usize::try_from(bytes).unwrap()]).unwrap();
        Self::of(file)
    }

    /// Of a file that is there.
    pub fn of(file: PathBuf) -> Self {
        Self::with_sectors(file, 512)
    }

    /// The same, of a disk that counts in so many bytes.
    pub fn with_sectors(file: PathBuf, bytes: u32) -> Self {
        let sectors = format!("--sector-size={bytes}");
        let path = tool("losetup", &["--find", "--show", &sectors, file.to_str().unwrap()]).trim().into();
        Self { path, file }
    }

    /// What it holds, past the cache of its own.
    pub fn content(&self) -> Vec<u8> {
        File::open(&self.path).unwrap().sync_all().unwrap();
        fs::read(&self.file).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool_at_the_end("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}
