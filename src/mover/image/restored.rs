//! New volumes of one backup: copied from its images, held against the hashes that were taken when it was made, read back.
//!
//! It promises that after [`RestoredSet::restore`] each new file holds, byte for byte, what was hashed while its backup was made, is
//! durable, and belongs to whom the old volume does, if there is one; and after [`RestoredSet::compare`] that the storage gives that back past this
//! host's cache. A block that is not what was hashed is never written. A method that fails leaves files behind, which their
//! owner removes. It knows neither where the new files go from here nor what becomes of the old ones. What is written over is only read by
//! then, and [written later](super::over).

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::blocks::Blocks;
use super::copy::{self, Ends, Expected};
use super::on_rbd::OnRbd;
use super::original::Original;
use super::server::{Besides, Server, Sockets};
use super::target::{New, Target};
use super::{Progress, check, copied_disk, of_disk, sole};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;
use crate::mover::nbd::Connection;
use crate::mover::protocol::CopiedDisk;
use crate::mover::rbd::{Image, Settings};
use crate::mover::volume::likeness;

/// One volume that is to be made.
#[derive(Debug)]
pub(in crate::mover) struct Planned {
    /// The backup's disk.
    pub disk: DiskTarget,
    /// What the backup holds of it.
    pub original: Original,
    /// Where the images of that can be opened, the topmost first.
    pub images: Vec<PathBuf>,
    /// Format of the new file.
    pub format: ImageFormat,
    /// Where it is made.
    pub fresh: Fresh,
}

/// Where a new volume is made.
#[derive(Debug)]
pub(in crate::mover) enum Fresh {
    /// In a file.
    File {
        /// Nothing is there, and no link is followed.
        path: PathBuf,
        /// The file whose owner, mode and label it gets; without one it is ours alone.
        old: Option<File>,
    },
    /// On a block device.
    Device {
        /// Where it can be opened.
        node: PathBuf,
        /// It is open since nobody else could write to it.
        file: Arc<File>,
        /// It reads as zeros; else it holds anything.
        blank: bool,
    },
    /// Nowhere yet: an old one is written over, later.
    None,
    /// In an RBD image.
    Rbd {
        /// It is empty.
        image: Image,
        /// What it is to be given besides.
        settings: Settings,
    },
}

/// The new volumes of one job.
#[derive(Debug)]
pub(in crate::mover) struct RestoredSet {
    pub(super) sockets: Sockets,
    volumes: Vec<Restored>,
    on_rbd: Vec<OnRbd>,
    /// What is to be written over, in the order in which it was asked for.
    pub(super) unwritten: Vec<Unwritten>,
}

/// A volume that was read, and found to be what was backed up, and not written.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub disk: DiskTarget,
    pub original: Original,
    pub images: Vec<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Restored {
    pub disk: DiskTarget,
    pub format: ImageFormat,
    pub original: Original,
    pub target: Target,
}

impl RestoredSet {
    /// Makes all volumes, one after another. All images are opened before the first byte is copied. `sockets` is a private directory
    /// with a short path.
    pub async fn restore(
        sockets: PathBuf,
        planned: Vec<Planned>,
        progress: Progress<'_>,
    ) -> Result<(Self, Vec<CopiedDisk>), Failure> {
        let (volumes, unwritten) = (Vec::with_capacity(planned.len()), Vec::new());
        let mut set = Self { sockets: Sockets::new(sockets), volumes, on_rbd: Vec::new(), unwritten };
        let mut opened = Vec::with_capacity(planned.len());
        for volume in planned {
            let served = volume.original.serve(&volume.images, &mut set.sockets).await;
            let (server, connection) = served.map_err(|failure| of_disk(failure, &volume.disk))?;
            opened.push((volume, server, connection));
        }
        let total = opened.iter().map(|(_, _, connection)| connection.export().size).sum();
        let (mut before, mut data_before, mut copied) = (0, 0, Vec::new());
        for (volume, server, connection) in opened {
            let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
            let (disk, blocks) = (volume.disk.clone(), volume.original.blocks.clone());
            let data_bytes = set.make(volume, server, connection, &report).await?;
            copied.push(copied_disk(&disk, &blocks, data_bytes));
            before += blocks.virtual_bytes();
            data_before += data_bytes;
        }
        progress(before, total, data_before);
        Ok((set, copied))
    }

    /// Reads every new volume back from the storage and holds it against the hashes; an image has to pass its check too. Answers what they
    /// have not of the old ones', in a sentence each.
    pub async fn compare(&mut self, progress: Progress<'_>) -> Result<Vec<String>, Failure> {
        let originals = self.volumes.iter().map(|volume| &volume.original);
        let originals = originals.chain(self.on_rbd.iter().map(|volume| &volume.original));
        let total: u64 = originals.map(|original| original.blocks.virtual_bytes()).sum();
        let (mut before, mut warnings) = (0, Vec::new());
        for volume in &self.volumes {
            let report = |passed: u64, _: u64| progress(before + passed, total, 0);
            volume.compare(&mut self.sockets, &report).await?;
            before += volume.original.blocks.virtual_bytes();
        }
        for volume in &self.on_rbd {
            let report = |passed: u64, _: u64| progress(before + passed, total, 0);
            warnings.extend(volume.compare(&mut self.sockets, &report).await?);
            before += volume.original.blocks.virtual_bytes();
        }
        progress(before, total, 0);
        Ok(warnings)
    }

    async fn make(
        &mut self,
        volume: Planned,
        server: Server,
        connection: Connection,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64, Failure> {
        let Planned { disk, original, format, fresh, images } = volume;
        let virtual_bytes = original.blocks.virtual_bytes();
        let (target, old) = match fresh {
            Fresh::File { path, old } => {
                let new = New { path, virtual_bytes, format, backing: None, device: Code::VolumeIo };
                (Target::create(new).await?, old)
            }
            Fresh::Device { node, file, blank } => (Target::device(node, file, virtual_bytes, blank).await?, None),
            Fresh::Rbd { image, settings } => {
                let made = OnRbd { disk, original, image, settings };
                let data_bytes = made.write((server, connection), &mut self.sockets, report).await?;
                self.on_rbd.push(made);
                return Ok(data_bytes);
            }
            Fresh::None => {
                let (_, data_bytes) = pass(&disk, &original, (server, connection), None, false, report).await?;
                self.unwritten.push(Unwritten { disk, original, images });
                return Ok(data_bytes);
            }
        };
        let (source, writer) = ((server, connection), target.serve_to_write(&mut self.sockets).await?);
        let (_, data_bytes) = pass(&disk, &original, source, Some(writer), target.holds_anything(), report).await?;
        if target.holds_anything() {
            target.zero_beyond(virtual_bytes).await?;
        } else if format == ImageFormat::Raw {
            // QEMU rounds the end of a file up to what the storage writes at once.
            target.has_length(virtual_bytes).await?;
        }
        target.sync().await?;
        target.is_still_ours().await?;
        if let Some(old) = old {
            target.on_held(move |file| likeness::take_over(&old, file)).await?;
            target.sync().await?;
        }
        target.hear_close().await?;
        self.volumes.push(Restored { disk, format, original, target });
        Ok(data_bytes)
    }
}

/// Reads what the backup holds, holds it against its hashes, and writes it where there is somewhere to write it to; zeros as well, where
/// that holds anything.
pub(super) async fn pass(
    disk: &DiskTarget,
    original: &Original,
    (server, connection): (Server, Connection),
    writer: Option<(Server, Connection)>,
    zeros_too: bool,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<(Blocks, u64), Failure> {
    let reading = Arc::new(connection);
    let writer = writer.map(|(writer, writing)| (writer, Arc::new(writing)));
    let expected = Expected {
        blocks: original.blocks.clone(),
        code: Code::BackupDamaged,
        differs: "what the repository holds there is not what was backed up",
    };
    let ends = Ends {
        source: &reading,
        source_device: Code::RepositoryIo,
        target: writer.as_ref().map(|(_, writing)| (writing, Code::VolumeIo)),
        base: None,
        since: None,
        expected: Some(&expected),
        zeros_too,
    };
    let passed = copy::copy(disk.as_str(), ends, report).await?;
    if let Some((writer, writing)) = writer {
        sole(writing)?.disconnect().await;
        writer.end().await?;
    }
    sole(reading)?.disconnect().await;
    server.end().await?;
    Ok(passed)
}

/// Reads all of what is served of a new volume and holds it against the hashes.
pub(super) async fn read_back(
    disk: &DiskTarget,
    blocks: Arc<Blocks>,
    (server, connection): (Server, Connection),
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), Failure> {
    let reading = Arc::new(connection);
    let expected = Expected {
        blocks,
        code: Code::ContentMismatch,
        differs: "what was read back of the new volume is not what was restored",
    };
    let ends = Ends {
        source: &reading,
        source_device: Code::VolumeIo,
        target: None,
        base: None,
        since: None,
        expected: Some(&expected),
        zeros_too: false,
    };
    copy::copy(disk.as_str(), ends, report).await?;
    sole(reading)?.disconnect().await;
    server.end().await
}

impl Restored {
    pub async fn compare(&self, sockets: &mut Sockets, report: &(dyn Fn(u64, u64) + Sync)) -> Result<(), Failure> {
        self.target.is_still_ours().await?;
        let (server, connection) = self.target.serve_from_storage(sockets, Besides::Nothing).await?;
        let blocks = self.original.blocks.clone();
        let size = connection.export().size;
        if size != blocks.virtual_bytes() {
            let text = format!("`{}` is one of {size} bytes now", self.target.path().display());
            return Err(Failure::new(Code::ContentMismatch, text));
        }
        read_back(&self.disk, blocks, (server, connection), report).await?;
        match self.format {
            ImageFormat::Qcow2 => check::check(&self.target).await,
            ImageFormat::Raw => Ok(()),
        }
    }
}
