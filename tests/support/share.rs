//! Repositories for one test: a plain directory, a share that misbehaves when told to (`tests/lab/faulty-share`), or what a server
//! of network shares serves from a directory of this host.
#![allow(dead_code)] // Each live target uses its own part.

use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::message::job::RepositoryPart;

/// The product.
pub const LONGSHORE: &str = env!("CARGO_BIN_EXE_longshore");

/// A repository.
pub struct Share {
    /// Its address, or the directory that it is served from.
    pub path: PathBuf,
    /// Its identity.
    pub id: String,
    faulty: Option<String>,
    served: Option<RepositoryPart>,
}

impl Share {
    /// A directory at `path`.
    pub fn directory(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        Self { id: init(&path), path, faulty: None, served: None }
    }

    /// A file system of its own, on which faults can be ordered.
    pub fn faulty(name: &str) -> Self {
        let path = PathBuf::from(tool(&["up", name]));
        Self { id: init(&path), path, faulty: Some(name.to_owned()), served: None }
    }

    /// What jobs know as `part`, but for its id, served from `path`.
    pub fn served(path: PathBuf, part: RepositoryPart) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        Self { id: init(&path), path, faulty: None, served: Some(part) }
    }

    /// As it stands in jobs.
    pub fn part(&self) -> RepositoryPart {
        let directory = || RepositoryPart {
            id: String::new(),
            repository_type: "directory".to_owned(),
            address: self.path.to_str().unwrap().to_owned(),
            options: String::new(),
            credentials: None,
        };
        RepositoryPart { id: self.id.clone(), ..self.served.clone().unwrap_or_else(directory) }
    }

    /// From now on what `orders` says goes wrong, in the words of `tests/lab/nasfs.py`.
    pub fn order(&self, orders: &str) {
        tool(&["set", self.faulty.as_deref().expect("a faulty share"), orders]);
    }

    /// From now on all is well.
    pub fn heal(&self) {
        self.order("{}");
    }

    /// What was written to it is read from it again and not from this machine's page cache.
    pub fn forget(&self, instance: &impl ToString) {
        let directory = self.path.join("instances").join(instance.to_string());
        let files = Command::new("find").arg(directory).args(["-type", "f", "-name", "*.qcow2"]).output().unwrap();
        assert!(files.status.success() && !files.stdout.is_empty());
        for file in String::from_utf8(files.stdout).unwrap().lines() {
            let status =
                Command::new("dd").args(["iflag=nocache", "count=0", "status=none", &format!("if={file}")]).status();
            assert!(status.unwrap().success());
        }
    }

    /// The directory in which the backups of an instance are, seen past every fault.
    pub fn backups_of(&self, instance: &impl ToString) -> PathBuf {
        let root = if self.faulty.is_some() { self.path.with_extension("backing") } else { self.path.clone() };
        root.join("instances").join(instance.to_string())
    }

    /// Names of all that lies among the backups of an instance: backups, and what should not be there.
    pub fn entries_of(&self, instance: &impl ToString) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.backups_of(instance)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(name) = &self.faulty {
            tool(&["down", name]);
        }
    }
}

fn init(path: &Path) -> String {
    let output = Command::new(LONGSHORE).args(["repository", "init"]).arg(path).output().unwrap();
    assert!(output.status.success(), "repository init: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn tool(arguments: &[&str]) -> String {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/faulty-share");
    let output = Command::new(tool).args(arguments).output().unwrap();
    assert!(output.status.success(), "faulty-share {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
