//! Halts a worker at a chosen transaction of its journal, from outside (`tests/lab/halt.c`): killed, or held up until it may go on.
#![allow(dead_code)] // Each live target uses its own part.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::lab::eventually;

/// Which side of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing of it is there.
    Before,
    /// It is on the disk, and nobody was told.
    After,
}

impl Place {
    pub fn word(self) -> &'static str {
        match self {
            Place::Before => "before",
            Place::After => "after",
        }
    }
}

/// The folder by which one worker is told.
pub struct Halt(tempfile::TempDir);

impl Halt {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// For [`crate::fleet::Settings::environment`].
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", library().to_owned()), ("LONGSHORE_HALT", self.0.path().to_owned())]
    }

    /// From now on transactions that write a page with `text` in it are counted, and at the one of that number, from 1 on, the worker is
    /// killed. No text is in all of them.
    pub fn kills(&self, place: Place, number: u32, text: &str) {
        self.order(&format!("kill {} {number} {text}", place.word()));
    }

    /// There it is held up.
    pub fn holds(&self, place: Place, number: u32, text: &str) {
        self.order(&format!("hold {} {number} {text}", place.word()));
    }

    /// Nothing happens to it any more, and nothing is known of what did. It is not held up.
    pub fn forget(&self) {
        for name in ["order", "halted", "go"] {
            // What was not ordered is not there.
            let _gone = fs::remove_file(self.0.path().join(name));
        }
    }

    /// It has been killed, or is held up.
    pub fn has_halted(&self) -> bool {
        self.0.path().join("halted").exists()
    }

    pub fn halts_within(&self, limit: Duration) {
        eventually("it is held up there", limit, || self.has_halted());
    }

    /// It goes on, and nothing happens to it any more.
    pub fn let_go(&self) {
        self.forget();
        fs::write(self.0.path().join("go"), "").unwrap();
    }

    fn order(&self, order: &str) {
        self.forget();
        let (new, place) = (self.0.path().join("new"), self.0.path().join("order"));
        fs::write(&new, order).unwrap();
        fs::rename(new, place).unwrap();
    }
}

/// Built once for each process of tests, with the compiler that Rust links with.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/halt.c");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("halt-{}.so", std::process::id()));
        let output =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).output().unwrap();
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        built
    })
}
