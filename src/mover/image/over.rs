//! Writing over block devices: what was read and found good before is read again, written, zeros included, and read back.
//!
//! Nothing that lies beyond the end of the backup's disk is touched.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::restored::{Restored, RestoredSet, Unwritten, pass};
use super::target::Target;
use super::{Progress, of_disk};
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;

impl RestoredSet {
    /// Writes what is not written yet over these devices, one for each, in their order; a second time there is nothing left. A failure
    /// leaves a part of each in them.
    pub async fn overwrite(
        &mut self,
        devices: Vec<(PathBuf, Arc<File>)>,
        progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let unwritten = std::mem::take(&mut self.unwritten);
        if unwritten.len() != devices.len() {
            let text = format!("{} volumes were to be written over {} devices", unwritten.len(), devices.len());
            return Err(Failure::new(Code::Internal, text));
        }
        // Each is written and then read.
        let total: u64 = unwritten.iter().map(|one| 2 * one.original.blocks.virtual_bytes()).sum();
        let (mut before, mut data_before) = (0, 0);
        for (Unwritten { disk, original, images }, (node, file)) in unwritten.into_iter().zip(devices) {
            let virtual_bytes = original.blocks.virtual_bytes();
            let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
            let served = original.serve(&images, &mut self.sockets).await;
            let served = served.map_err(|failure| of_disk(failure, &disk))?;
            let target = Target::device(node, file, virtual_bytes, false).await?;
            let writer = target.serve_to_write(&mut self.sockets).await?;
            let (_, data) = pass(&disk, &original, served, Some(writer), true, &report).await?;
            target.sync().await?;
            before += virtual_bytes;
            data_before += data;
            let report = |passed: u64, _: u64| progress(before + passed, total, data_before);
            let written = Restored { disk, format: ImageFormat::Raw, original, target };
            written.compare(&mut self.sockets, &report).await?;
            before += virtual_bytes;
        }
        progress(before, total, data_before);
        Ok(())
    }
}
