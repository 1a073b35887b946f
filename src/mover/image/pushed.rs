//! The images of a push backup: made by us, written by QEMU, and then looked at as if nobody had said that all is well.
//!
//! It promises `structure`: after [`PushedSet::inspect`] and [`PushedSet::check`] each image is the file that was made, a descriptor
//! older than the writing was fsynced without an error, the image has no fault, no leak and no cluster that belongs to nothing,
//! ends where its file ends, and every byte of it was read back from the storage and hashed. It cannot promise that the bytes are
//! the guest's: the source has moved on.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::copy::{self, Ends};
use super::flusher::Flusher;
use super::server::Sockets;
use super::target::Target;
use super::{Progress, SECTOR_BYTES, blocks_file, check, copied_disk, dense, of_disk, sole, write_blocks};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::mover::protocol::{CopiedDisk, PushTarget};
use crate::mover::share::Sent;
use crate::mover::writer::{Known, Writer};

/// For its owner alone, whoever that is.
const IMAGE_MODE: u32 = 0o600;

/// The images of one job in its staging directory.
#[derive(Debug)]
pub(in crate::mover) struct PushedSet {
    staging: PathBuf,
    sockets: Sockets,
    images: Vec<Image>,
    flusher: Option<Flusher>,
}

#[derive(Debug)]
struct Image {
    disk: DiskTarget,
    virtual_bytes: u64,
    target: Target,
    blocks_sent: Option<Sent>,
}

impl PushedSet {
    /// Makes an empty image for each disk below `staging`; `sockets` is a private directory with a short path.
    pub async fn make(staging: PathBuf, sockets: PathBuf, disks: &[PushTarget]) -> Result<Self, Failure> {
        let mut images = Vec::with_capacity(disks.len());
        for PushTarget { target: disk, virtual_bytes } in disks {
            let path = staging.join(format!("{disk}.qcow2"));
            let made = Target::create(path, *virtual_bytes).await;
            let target = made.map_err(|failure| of_disk(failure, disk))?;
            images.push(Image { disk: disk.clone(), virtual_bytes: *virtual_bytes, target, blocks_sent: None });
        }
        Ok(Self { staging, sockets: Sockets::new(sockets), images, flusher: None })
    }

    /// Gives the images to the user that will write them. A share that knows no owners, or only one, may refuse; whether the user
    /// can write there is for the proof to say.
    pub async fn give_to(&self, writer: &Writer) -> Result<(), Failure> {
        let (user, group) = (writer.user.as_raw(), writer.group.as_raw());
        for image in &self.images {
            image.target.on_held(move |file| own(file, user, group)).await?;
        }
        Ok(())
    }

    /// From now on what is written goes to the storage as it comes, and not all at once when its writer closes the images.
    pub fn flush_while_written(&mut self) {
        self.flusher = Some(Flusher::start(self.images.iter().map(|image| image.target.held()).collect()));
    }

    /// The files as they were made.
    pub async fn known(&self) -> Result<Vec<Known>, Failure> {
        let mut known = Vec::with_capacity(self.images.len());
        for image in &self.images {
            let identity = |file: &File| file.metadata().map(|status| (status.dev(), status.ino()));
            let identity = image.target.on_held(identity).await?;
            known.push(Known { name: format!("{}.qcow2", image.disk), identity });
        }
        Ok(known)
    }

    /// Once nobody else writes: takes the images back, proves their structure, reads and hashes every byte, and writes
    /// `<target>.blocks` for each.
    pub async fn inspect(&mut self, progress: Progress<'_>) -> Result<Vec<CopiedDisk>, Failure> {
        if let Some(flusher) = self.flusher.take() {
            flusher.stop().await?;
        }
        let us = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let total = self.images.iter().map(|image| image.virtual_bytes).sum();
        let mut connections = Vec::new();
        for image in &self.images {
            image.target.on_held(move |file| own(file, us.0, us.1)).await?;
            image.target.is_still_ours().await?;
            image.target.sync().await?;
            // Each takes its time, in which no byte is read yet.
            progress(0, total, 0);
            image.is_whole().await.map_err(|failure| of_disk(failure, &image.disk))?;
            let opened = image.target.serve_from_storage(&mut self.sockets).await?;
            image.has_its_size(opened.1.export().size)?;
            connections.push(opened);
            progress(0, total, 0);
        }
        let (mut before, mut data_before, mut copied) = (0, 0, Vec::new());
        for (image, (server, connection)) in self.images.iter_mut().zip(connections) {
            let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
            let connection = Arc::new(connection);
            let ends = Ends { source: &connection, source_device: Code::RepositoryIo, target: None };
            let (blocks, data_bytes) = copy::copy(image.disk.as_str(), ends, &report).await?;
            sole(connection)?.disconnect().await;
            server.end().await?;
            image.blocks_sent = Some(write_blocks(&self.staging, &image.disk, &blocks).await?);
            copied.push(copied_disk(&image.disk, &blocks, data_bytes));
            before += blocks.virtual_bytes();
            data_before += data_bytes;
        }
        progress(before, total, data_before);
        Ok(copied)
    }

    /// The names of the block hash files, and what was written into each.
    pub fn blocks_sent(&self) -> impl Iterator<Item = (String, Sent)> {
        self.images.iter().filter_map(|image| Some((blocks_file(&image.disk), image.blocks_sent.clone()?)))
    }

    /// Checks every image once more, makes it durable, and closes it. The last thing that is done with a set.
    pub async fn check(self) -> Result<(), Failure> {
        for image in &self.images {
            image.target.is_still_ours().await?;
            image.target.sync().await?;
            image.is_whole().await.map_err(|failure| of_disk(failure, &image.disk))?;
        }
        for image in self.images {
            image.target.close().await?;
        }
        Ok(())
    }
}

impl Image {
    fn has_its_size(&self, found: u64) -> Result<(), Failure> {
        if self.virtual_bytes.checked_next_multiple_of(SECTOR_BYTES) == Some(found) {
            return Ok(());
        }
        let text =
            format!("the image of disk `{}` is one of {found} bytes and not of {}", self.disk, self.virtual_bytes);
        Err(Failure::new(Code::ImageDamaged, text))
    }

    async fn is_whole(&self) -> Result<(), Failure> {
        match self.target.on_stored(dense::fault).await? {
            None => check::check(&self.target).await,
            Some(fault) => {
                let text = format!("the image `{}` is not what was written", self.target.path().display());
                Err(Failure::new(Code::ImageDamaged, text).caused_by(fault))
            }
        }
    }
}

/// Refused as a rule where all of a share's files belong to one user whoever made them.
fn own(file: &File, user: u32, group: u32) -> std::io::Result<()> {
    if let Err(error) = std::os::unix::fs::fchown(file, Some(user), Some(group)) {
        tracing::debug!(error = &error as &dyn std::error::Error, "the share takes no other owner for an image");
    }
    match file.set_permissions(Permissions::from_mode(IMAGE_MODE)) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}
