//! Directories of the share and of volumes, and block devices, bound by their descriptors on places of the mover's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::Failure;
use crate::mover::mount::Pinned;
use crate::mover::share::Dir;

/// The beginning of a place's name; a number follows.
const BOUND: &str = "bound";
/// Likewise, where a block device is.
const DEVICE: &str = "device";
/// Likewise, where one is that is written over.
const CLAIMED: &str = "claimed";

/// Where directories are to be bound: each once.
pub(super) struct Places<'o> {
    own: &'o Path,
    known: Vec<(Arc<Dir>, PathBuf)>,
    devices: Vec<(Arc<File>, PathBuf)>,
    /// The beginning of a device's name.
    word: &'static str,
}

impl<'o> Places<'o> {
    /// Below the mover's own directory, in which nothing is bound by another of these.
    pub fn new(own: &'o Path) -> Self {
        Self { own, known: Vec::new(), devices: Vec::new(), word: DEVICE }
    }

    /// Likewise, for what is bound while another of these still is.
    pub fn of_claimed(own: &'o Path) -> Self {
        Self { word: CLAIMED, ..Self::new(own) }
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

    /// Where that open block device is going to be.
    pub fn of_device(&mut self, device: &Arc<File>) -> PathBuf {
        let place = self.own.join(format!("{}{}", self.word, self.devices.len()));
        self.devices.push((Arc::clone(device), place.clone()));
        place
    }

    /// All of them are bound, or none is.
    pub fn bind(self) -> Result<Vec<Pinned>, Failure> {
        let mut pinned = Vec::with_capacity(self.known.len() + self.devices.len());
        let directories = self.known.into_iter().map(|(dir, place)| Pinned::new(&dir, place));
        let devices = self.devices.into_iter().map(|(device, place)| Pinned::device(&device, place));
        for bound in directories.chain(devices) {
            match bound {
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
