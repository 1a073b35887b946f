//! Directories of the share and of volumes, bound by their descriptors on places of the mover's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::Failure;
use crate::mover::mount::Pinned;
use crate::mover::share::Dir;

/// The beginning of a place's name; a number follows.
const BOUND: &str = "bound";

/// Where directories are to be bound: each once.
pub(super) struct Places<'o> {
    own: &'o Path,
    known: Vec<(Arc<Dir>, PathBuf)>,
}

impl<'o> Places<'o> {
    /// Below the mover's own directory, in which nothing is bound by another of these.
    pub fn new(own: &'o Path) -> Self {
        Self { own, known: Vec::new() }
    }

    /// Where that directory is going to be.
    pub fn of(&mut self, dir: &Arc<Dir>) -> PathBuf {
        if let Some((_, place)) = self.known.iter().find(|(known, _)| Arc::ptr_eq(known, dir)) {
            return place.clone();
        }
        let place = self.own.join(format!("{BOUND}{}", self.known.len()));
        self.known.push((Arc::clone(dir), place.clone()));
        place
    }

    /// All of them are bound, or none is.
    pub fn bind(self) -> Result<Vec<Pinned>, Failure> {
        let mut pinned = Vec::with_capacity(self.known.len());
        for (dir, place) in self.known {
            match Pinned::new(&dir, place) {
                Ok(bound) => pinned.push(bound),
                Err(failure) => {
                    unbind(pinned);
                    return Err(failure);
                }
            }
        }
        Ok(pinned)
    }
}

/// Gives them up. Nothing of ours may be open there.
pub(super) fn unbind(pinned: Vec<Pinned>) {
    for warning in pinned.into_iter().filter_map(Pinned::close) {
        tracing::warn!(warning, "a tool is slow to end");
    }
}
