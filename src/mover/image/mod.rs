//! The images of one backup: copied from their sources, compared with them, checked, durable.
//!
//! It promises that after [`ImageSet::copy`], [`ImageSet::compare`] and [`ImageSet::check`] each image on the share holds,
//! byte for byte, what its source held: read back past this host's cache, with every late write error looked for where it
//! can show (flush, the end of `qemu-nbd` and what it said, fsync on a descriptor older than the writing, close).
//!
//! "Compared" means: every byte that the source, the image or the hashes taken while copying have as data was read again on
//! each side that has it as data, and is the same on both and as hashed. A range that source and image both call zeros, and
//! that was zeros while copying, is not read: there the word of the two NBD servers is taken (`base:allocation`).
//!
//! It deliberately knows nothing of leases, manifests and publishing, and never changes a source. A method that fails leaves
//! files in the staging directory, which its owner removes as a whole. Dropping a method's future cancels it: connections
//! are closed and every process is killed.
//!
//! ```text
//!   source                         this process                       staging directory
//!   pull export ───────┐                                       ┌─► <target>.qcow2 (held open all along)
//!   qemu-nbd -r volume ┴─ NBD ─► read ► BLAKE3 ► write ─ NBD ─► qemu-nbd
//!                                         └─────────────────────► <target>.blocks
//! ```

mod base;
pub mod blocks;
mod chain;
mod check;
mod compare;
mod copy;
mod dense;
mod difference;
mod examined;
mod extent_map;
mod flusher;
mod merged;
mod on_rbd;
mod original;
mod over;
mod overlaid;
mod pace;
mod pipeline;
mod pushed;
mod restored;
mod server;
mod source;
mod target;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;
use crate::mover::nbd::Connection;
use crate::mover::protocol::{CopiedDisk, CopyDisk};
use crate::mover::rbd::Keys;
use crate::mover::share::Sent;

pub use base::ToCopy;
pub(super) use base::{Base, stored_over};
pub(super) use blocks::Blocks;
pub(super) use chain::{Backups, Link, backing_name, damaged, look};
pub(super) use check::{Checked, check_file};
use compare::Sides;
pub(super) use examined::{Examined, examine};
pub(super) use merged::{MergedImage, ToMerge, merge};
pub(super) use original::{Original, Wanted};
pub(super) use pace::Pace;
pub(super) use pushed::{PushedSet, ToPush};
pub(super) use restored::{Fresh, Planned, RestoredSet};
use server::Besides;
pub(super) use server::Sockets;
use source::{Opened, Source};
pub(super) use target::CLUSTER_BYTES;
use target::{New, Target};

/// What QEMU counts disks in, bytes. A size that is no multiple of it cannot be kept by a qcow2 file.
const SECTOR_BYTES: u64 = 512;

/// Where progress goes: bytes of disks passed, zeros included; bytes of disks in all; bytes written as data. Called often; the
/// receiver thins it out.
pub type Progress<'p> = &'p (dyn Fn(u64, u64, u64) + Sync);

/// The disks of one job in its staging directory.
#[derive(Debug)]
pub struct ImageSet {
    staging: PathBuf,
    sockets: Sockets,
    keys: Keys,
    images: Vec<Image>,
}

/// A disk that was copied.
#[derive(Debug)]
struct Image {
    disk: DiskTarget,
    source: Source,
    target: Target,
    /// What the image leaves to others.
    base: Option<Arc<Blocks>>,
    blocks: Blocks,
    blocks_sent: Sent,
    compared: bool,
}

impl ImageSet {
    /// For disks below `staging`, the absolute path of the existing staging directory, with sockets in `sockets`, a private
    /// directory with a short path.
    pub fn new(staging: PathBuf, sockets: PathBuf) -> Self {
        Self { staging, sockets: Sockets::new(sockets), keys: Keys::default(), images: Vec::new() }
    }

    /// With the keys to the storage of the sources.
    #[must_use]
    pub(super) fn with_keys(self, keys: Keys) -> Self {
        Self { keys, ..self }
    }

    /// Copies the disks one after another, writing `<target>.qcow2` and `<target>.blocks` for each. All sources are looked
    /// at and opened before the first byte is copied.
    pub async fn copy(&mut self, disks: Vec<ToCopy>, progress: Progress<'_>) -> Result<Vec<CopiedDisk>, Failure> {
        let mut opened = Vec::new();
        for ToCopy { disk, base } in disks {
            let source = Source::probe(&disk, &self.keys).await.map_err(|failure| of_disk(failure, &disk.target))?;
            let open = self.open(&disk, &source).await.map_err(|failure| of_disk(failure, &disk.target))?;
            let base = base::fitting(base, open.connection.export().size);
            opened.push((disk, base, source, open));
        }
        let total: u64 = opened.iter().map(|(_, _, _, open)| open.connection.export().size).sum();
        let (mut before, mut data_before, mut copied) = (0, 0, Vec::new());
        for (disk, base, source, open) in opened {
            let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
            let (base, full_reason) = base.map_or_else(|reason| (None, Some(reason)), |base| (base, None));
            let based_on = base.as_ref().map(|base| base.as_written(&open.connection));
            let (image, data_bytes) = self.copy_one(&disk, base, source, open, &report).await?;
            let disk = copied_disk(&disk.target, &image.blocks, data_bytes);
            copied.push(CopiedDisk { based_on, full_reason, ..disk });
            before += image.blocks.virtual_bytes();
            data_before += data_bytes;
            self.images.push(image);
        }
        progress(before, total, data_before);
        Ok(copied)
    }

    /// The names of the block hash files, and what was written into each.
    pub(crate) fn blocks_sent(&self) -> impl Iterator<Item = (String, Sent)> {
        self.images.iter().map(|image| (blocks_file(&image.disk), image.blocks_sent.clone()))
    }

    /// Reads every image back from the storage and compares it with its source, which must still stand, and with the hashes
    /// taken while copying.
    pub async fn compare(&mut self, progress: Progress<'_>) -> Result<(), Failure> {
        let total: u64 = self.images.iter().map(|image| image.blocks.virtual_bytes()).sum();
        let mut before = 0;
        for image in &mut self.images {
            let report = |passed: u64| progress(before + passed, total, 0);
            image.compare(&mut self.sockets, &report).await?;
            before += image.blocks.virtual_bytes();
        }
        progress(before, total, 0);
        Ok(())
    }

    /// For volumes of a stopped instance: each file of their chains is as it was before copying began. A volume with a part that
    /// has no times to look at is compared instead, unless it was already.
    pub async fn sources_unchanged(&mut self, progress: Progress<'_>) -> Result<(), Failure> {
        let total: u64 = self.images.iter().map(|image| image.blocks.virtual_bytes()).sum();
        let mut before = 0;
        for image in &mut self.images {
            if let Source::Volume(volume) = &image.source {
                volume.unchanged().await.map_err(|failure| of_disk(failure, &image.disk))?;
                if volume.timeless && !image.compared {
                    let report = |passed: u64| progress(before + passed, total, 0);
                    image.compare(&mut self.sockets, &report).await?;
                }
            }
            before += image.blocks.virtual_bytes();
            progress(before, total, 0);
        }
        Ok(())
    }

    /// Checks every image, makes it durable, and closes it. The last thing that is done with a set. One that failed or was
    /// broken off while checking can be asked for again; while closing it can't, as what closing would have said is lost.
    pub async fn check(&mut self) -> Result<(), Failure> {
        for image in &self.images {
            image.target.is_still_ours().await?;
            image.target.sync().await?;
            check::check(&image.target).await?;
        }
        for image in self.images.drain(..) {
            image.target.close().await?;
        }
        Ok(())
    }

    async fn open(&mut self, disk: &CopyDisk, source: &Source) -> Result<Opened, Failure> {
        let open = source.open(&mut self.sockets).await?;
        let size = open.connection.export().size;
        if !size.is_multiple_of(SECTOR_BYTES) || size > blocks::VIRTUAL_BYTES_MAX {
            return Err(Failure::new(Code::DiskUnsupported, format!("a disk of {size} bytes cannot be kept as qcow2")));
        }
        match disk.virtual_bytes {
            // QEMU's tools round a raw file up to sectors.
            Some(expected) if expected.checked_next_multiple_of(SECTOR_BYTES) != Some(size) => {
                let text = format!("the source has {size} bytes where the guest sees {expected}");
                Err(Failure::new(Code::SourceReadFailed, text))
            }
            _ => Ok(open),
        }
    }

    async fn copy_one(
        &mut self,
        disk: &CopyDisk,
        base: Option<Base>,
        source: Source,
        open: Opened,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(Image, u64), Failure> {
        let name = disk.target.as_str();
        let new = New {
            backing: base.as_ref().map(Base::backing).transpose()?,
            ..new_image(&self.staging, &disk.target, open.connection.export().size)
        };
        let (base, since) = base.map(|base| (base.original.blocks, base.since)).unzip();
        let since = since.flatten();
        let target = Target::create(new).await?;
        let (server, writing) = target.serve_to_write(&mut self.sockets).await?;
        let (reading, writing) = (Arc::new(open.connection), Arc::new(writing));
        let ends = copy::Ends {
            source: &reading,
            source_device: Code::SourceReadFailed,
            target: Some((&writing, Code::RepositoryIo)),
            base: base.as_ref(),
            since: since.as_ref(),
            expected: None,
            zeros_too: false,
        };
        let (blocks, data_bytes) = copy::copy(name, ends, report).await?;
        sole(writing)?.disconnect().await;
        server.end().await?;
        Opened { connection: sole(reading)?, server: open.server }.close().await?;
        target.sync().await?;
        let blocks_sent = write_blocks(&self.staging, &disk.target, &blocks).await?;
        let disk = disk.target.clone();
        Ok((Image { disk, source, target, base, blocks, blocks_sent, compared: false }, data_bytes))
    }
}

impl Image {
    async fn compare(&mut self, sockets: &mut Sockets, report: &(dyn Fn(u64) + Sync)) -> Result<(), Failure> {
        let opened = self.source.open(sockets).await.map_err(|failure| of_disk(failure, &self.disk))?;
        let (server, reading) = self.target.serve_from_storage(sockets, Besides::Nothing).await?;
        let sides = Sides { source: Arc::new(opened.connection), image: Arc::new(reading) };
        compare::compare(self.disk.as_str(), &sides, &self.blocks, self.base.as_deref(), report).await?;
        sole(sides.image)?.disconnect().await;
        server.end().await?;
        Opened { connection: sole(sides.source)?, server: opened.server }.close().await?;
        self.compared = true;
        Ok(())
    }
}

/// The image of a disk in the staging directory.
fn new_image(staging: &Path, disk: &DiskTarget, virtual_bytes: u64) -> New {
    let path = staging.join(image_file(disk));
    New { path, virtual_bytes, format: ImageFormat::Qcow2, backing: None, device: Code::RepositoryIo }
}

/// Writes the hashes of a disk beside its image; answers what was written.
async fn write_blocks(staging: &Path, disk: &DiskTarget, blocks: &Blocks) -> Result<Sent, Failure> {
    let encoded = blocks.encode();
    let sent = Sent::of(&encoded);
    target::write_file(&staging.join(blocks_file(disk)), encoded).await?;
    Ok(sent)
}

fn copied_disk(disk: &DiskTarget, blocks: &Blocks, data_bytes: u64) -> CopiedDisk {
    CopiedDisk {
        target: disk.clone(),
        virtual_bytes: blocks.virtual_bytes(),
        data_bytes,
        content_root: hex(blocks),
        based_on: None,
        full_reason: None,
    }
}

/// The content root as it is written.
fn hex(blocks: &Blocks) -> String {
    blake3::Hash::from_bytes(blocks.root()).to_hex().to_string()
}

fn image_file(disk: &DiskTarget) -> String {
    format!("{disk}.qcow2")
}

fn blocks_file(disk: &DiskTarget) -> String {
    format!("{disk}.blocks")
}

/// The connection itself, once nobody else uses it.
fn sole(connection: Arc<Connection>) -> Result<Connection, Failure> {
    Arc::into_inner(connection).ok_or_else(|| Failure::new(Code::Internal, "a block is under way after the last one"))
}

fn of_disk(mut failure: Failure, disk: &DiskTarget) -> Failure {
    failure.text = format!("disk `{disk}`: {}", failure.text);
    failure
}
