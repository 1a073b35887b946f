//! The images of one backup. For now only the shape that the rest of the mover calls.

use std::path::PathBuf;

use super::protocol::{CopiedDisk, CopyDisk};
use crate::failure::{Code, Failure};

/// All images of a backup.
pub struct ImageSet {
    staging: PathBuf,
}

impl ImageSet {
    /// Images in `staging`, tools' sockets in `_sockets`.
    pub fn new(staging: PathBuf, _sockets: PathBuf) -> Self {
        Self { staging }
    }

    fn refused<T>(&self) -> Result<T, Failure> {
        Err(Failure::new(Code::Internal, format!("cannot copy into `{}` yet", self.staging.display())))
    }

    /// Copies all disks.
    pub async fn copy(
        &mut self,
        _disks: &[CopyDisk],
        _progress: &(dyn Fn(u64, u64, u64) + Sync),
    ) -> Result<Vec<CopiedDisk>, Failure> {
        self.refused()
    }

    /// Compares every image with its source.
    pub async fn compare(&mut self, _progress: &(dyn Fn(u64, u64, u64) + Sync)) -> Result<(), Failure> {
        self.refused()
    }

    /// The sources are unchanged.
    pub async fn sources_unchanged(&mut self) -> Result<(), Failure> {
        self.refused()
    }

    /// The images are whole.
    pub async fn check(&mut self) -> Result<(), Failure> {
        self.refused()
    }
}
