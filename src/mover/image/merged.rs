//! Images that take the places of a backup's own, so that it needs the backup between it and its base no more.
//!
//! It promises that each one, read back past this host's cache over the base that it is left on, holds in every block what was hashed when
//! the backup was made; that it passes its check; and that it is durable. Nothing that is there already is changed. A merge that fails or
//! is broken off leaves files behind, which their owner removes.

use std::path::PathBuf;
use std::sync::Arc;

use super::base::Base;
use super::check::{Checked, check_file};
use super::copy::{self, Ends, Expected};
use super::difference::{Difference, State};
use super::original::Original;
use super::server::{Besides, Server, Sockets};
use super::target::{New, Target, io_failure};
use super::{Progress, check, image_file, of_disk, sole};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::instance::ImageFormat;
use crate::mover::nbd::Connection;

/// Bytes of a disk that one question about what is stored is about. A server may say less.
const QUESTION_BYTES: u64 = 1024 * 1024 * 1024;

/// One disk of the backup.
#[derive(Debug)]
pub(in crate::mover) struct ToMerge {
    /// The disk.
    pub disk: DiskTarget,
    /// What the backup holds of it.
    pub original: Original,
    /// Where the images of that are bound, its own first.
    pub images: Vec<PathBuf>,
    /// What the new image leaves the rest to; none where it stands alone.
    pub base: Option<Base>,
    /// Where the new image is made, and nothing is; none where the first of `images` is one already.
    pub fresh: Option<PathBuf>,
}

/// An image that was made.
#[derive(Clone, Debug)]
pub(in crate::mover) struct MergedImage {
    /// The disk.
    pub disk: DiskTarget,
    /// Plain name of the image whose place it takes.
    pub file: String,
    /// Length of the file, bytes.
    pub file_bytes: u64,
    /// Bytes that it stores as data.
    pub data_bytes: u64,
}

/// Makes and proves the images, one after another. `sockets` is a private directory with a short path.
pub(in crate::mover) async fn merge(
    sockets: PathBuf,
    wanted: Vec<ToMerge>,
    progress: Progress<'_>,
) -> Result<Vec<MergedImage>, Failure> {
    let mut sockets = Sockets::new(sockets);
    // Each disk is passed twice: when it is written and when it is read back.
    let total = wanted.iter().map(|one| 2 * one.original.blocks.virtual_bytes()).sum();
    let (mut before, mut data_before, mut merged) = (0, 0, Vec::with_capacity(wanted.len()));
    for one in wanted {
        let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
        let size = one.original.blocks.virtual_bytes();
        let image = one.merge(&mut sockets, &report).await.map_err(|failure| of_disk(failure, &one.disk))?;
        before += 2 * size;
        data_before += image.data_bytes;
        merged.push(image);
    }
    progress(before, total, data_before);
    Ok(merged)
}

impl ToMerge {
    async fn merge(&self, sockets: &mut Sockets, report: &(dyn Fn(u64, u64) + Sync)) -> Result<MergedImage, Failure> {
        let Some(fresh) = self.fresh.clone() else { return self.in_place(sockets, report).await };
        let size = self.original.blocks.virtual_bytes();
        let new = New {
            path: fresh,
            virtual_bytes: size,
            format: ImageFormat::Qcow2,
            backing: self.base.as_ref().map(Base::backing).transpose()?,
            device: Code::RepositoryIo,
        };
        let target = Target::create(new).await?;
        let (server, connection) = target.serve_to_write(sockets).await?;
        let connection = Arc::new(connection);
        let data_bytes = self.write(&connection, sockets, report).await?;
        sole(connection)?.disconnect().await;
        server.end().await?;
        target.is_still_ours().await?;
        self.prove(&target, sockets, &|passed, _| report(size + passed, data_bytes)).await?;
        let file_bytes = target.file_bytes().await?;
        target.close().await?;
        Ok(self.merged(file_bytes, data_bytes))
    }

    /// What an image that has taken its place stores: nobody has written that down yet. That its header leads past the backup that goes is
    /// no proof, as others can write headers too.
    async fn in_place(
        &self,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<MergedImage, Failure> {
        let Some(path) = self.images.first() else {
            return Err(Failure::new(Code::Internal, "an image without a place was to be looked at"));
        };
        let status = tokio::fs::metadata(path).await;
        let failed = |error| io_failure(Code::RepositoryIo, "look at", path, &error);
        let file_bytes = status.map_err(failed)?.len();
        match check_file(path, file_bytes).await? {
            Checked::Whole | Checked::Leaks(_) => {}
            Checked::Damaged(text) | Checked::NotKnown(text) => {
                let failed = format!("`{}` does not pass its check", path.display());
                return Err(Failure::new(Code::BackupDamaged, failed).caused_by(text));
            }
        }
        let (server, connection) = self.original.serve(&self.images, sockets).await?;
        let connection = Arc::new(connection);
        let differs = "what the repository holds there is not what was backed up";
        self.read(&connection, &self.expected(Code::BackupDamaged, differs), report).await?;
        ended(server, connection).await?;
        let (server, alone) = self.original.serve(std::slice::from_ref(path), sockets).await?;
        let (size, mut at, mut data_bytes) = (alone.export().size, 0, 0);
        while at < size {
            let asked = alone.block_status(at, QUESTION_BYTES.min(size - at)).await;
            let failed = || format!("cannot see what `{}` stores", path.display());
            let extents = asked.map_err(|error| error.failure(Code::RepositoryIo, failed()))?;
            let before = at;
            for extent in extents.first().into_iter().flatten() {
                at += extent.length;
                data_bytes += if extent.reads_as_zeros() { 0 } else { extent.length };
            }
            if at == before {
                return Err(Failure::new(Code::NbdProtocol, failed()));
            }
        }
        alone.disconnect().await;
        server.end().await?;
        Ok(self.merged(file_bytes, data_bytes))
    }

    fn merged(&self, file_bytes: u64, data_bytes: u64) -> MergedImage {
        MergedImage { disk: self.disk.clone(), file: image_file(&self.disk), file_bytes, data_bytes }
    }

    async fn write(
        &self,
        target: &Arc<Connection>,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64, Failure> {
        let (server, wanted) = self.original.serve(&self.images, sockets).await?;
        let wanted = Arc::new(wanted);
        let data_bytes = match &self.base {
            Some(base) => self.write_difference(base, &wanted, target, sockets, report).await?,
            None => {
                let differs = "what the repository holds there is not what was backed up";
                let expected = self.expected(Code::BackupDamaged, differs);
                let ends = Ends {
                    source: &wanted,
                    source_device: Code::RepositoryIo,
                    target: Some((target, Code::RepositoryIo)),
                    base: None,
                    since: None,
                    expected: Some(&expected),
                    zeros_too: false,
                };
                copy::copy(self.disk.as_str(), ends, report).await?.1
            }
        };
        ended(server, wanted).await?;
        Ok(data_bytes)
    }

    async fn write_difference(
        &self,
        base: &Base,
        wanted: &Arc<Connection>,
        target: &Arc<Connection>,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64, Failure> {
        let (server, below) = base.original.serve(&base.images, sockets).await?;
        let below = Arc::new(below);
        let state = |connection: &Arc<Connection>, original: &Original| State {
            connection: connection.clone(),
            blocks: original.blocks.clone(),
        };
        let difference = Difference {
            wanted: state(wanted, &self.original),
            base: state(&below, &base.original),
            target: target.clone(),
        };
        let data_bytes = difference.write(self.disk.as_str(), report).await?;
        ended(server, below).await?;
        Ok(data_bytes)
    }

    /// Reads it back from the storage, over what it is left on.
    async fn prove(
        &self,
        target: &Target,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), Failure> {
        let (server, connection) = target.serve_from_storage(sockets, Besides::Nothing).await?;
        let connection = Arc::new(connection);
        let differs = "what was read back of the merged image is not what was merged";
        self.read(&connection, &self.expected(Code::ContentMismatch, differs), report).await?;
        ended(server, connection).await?;
        check::check(target).await
    }

    /// Reads the whole disk, which has to be what is expected.
    async fn read(
        &self,
        source: &Arc<Connection>,
        expected: &Expected,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), Failure> {
        let ends = Ends {
            source,
            source_device: Code::RepositoryIo,
            target: None,
            base: None,
            since: None,
            expected: Some(expected),
            zeros_too: false,
        };
        copy::copy(self.disk.as_str(), ends, report).await.map(drop)
    }

    fn expected(&self, code: Code, differs: &'static str) -> Expected {
        Expected { blocks: self.original.blocks.clone(), code, differs }
    }
}

async fn ended(server: Server, connection: Arc<Connection>) -> Result<(), Failure> {
    sole(connection)?.disconnect().await;
    server.end().await
}
