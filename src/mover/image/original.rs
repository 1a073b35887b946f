//! What a published backup holds of one disk, looked at before a byte of it is restored.
//!
//! Anybody who can mount the share may have changed it since. So the hashes are taken only where they are those that were asked for,
//! and QEMU's tools, which follow what the header of an image says, open none but a plain one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::blocks::{BLOCK_BYTES, Blocks, VIRTUAL_BYTES_MAX};
use super::server::{Serve, Server, Sockets};
use super::{blocks_file, dense, image_file, target};
use crate::failure::{Code, Failure};
use crate::model::manifest::Manifest;
use crate::mover::nbd::Connection;
use crate::mover::protocol::RestoredVolume;
use crate::mover::share::{Dir, ShareError};

/// What a file of hashes takes besides them, bytes.
const BLOCKS_BYTES_BASE: u64 = 4096;
/// Most bytes that it takes for a block: a hash and a run of its own.
const BLOCKS_BYTES_EACH: u64 = 32 + 9;

/// A disk of a backup.
#[derive(Clone, Debug)]
pub(in crate::mover) struct Original {
    /// Plain name of its image.
    pub image: String,
    /// The hashes that were taken when the backup was made.
    pub blocks: Arc<Blocks>,
    /// Bytes that are stored as data.
    pub data_bytes: u64,
}

impl Original {
    /// Looks at the disk that is `wanted` of the backup in `dir`. Blocks.
    ///
    /// `disk_not_found`: the backup has no such disk. `backup_damaged`: a file of it is missing, or is not as it was made.
    pub fn look(dir: &Dir, manifest: &Manifest, wanted: &RestoredVolume) -> Result<Self, Failure> {
        let Some(disk) = manifest.disks.iter().find(|disk| disk.target == wanted.disk) else {
            let text = format!("backup `{}` has no disk `{}`", manifest.backup_id, wanted.disk);
            return Err(Failure::new(Code::DiskNotFound, text));
        };
        let blocks = read_blocks(dir, wanted)?;
        let image = image_file(&wanted.disk);
        let file = dir.open_file(&image, false).map_err(|error| unreadable(dir, &image, &error))?;
        let failed = |error: std::io::Error| {
            target::io_failure(Code::RepositoryIo, "read the header of", &dir.path().join(&image), &error)
        };
        let bytes = file.metadata().map_err(failed)?.size();
        if bytes != disk.file_bytes {
            return Err(damaged(dir, &image, &format!("it has {bytes} bytes and not {}", disk.file_bytes)));
        }
        match dense::header_fault(&file).map_err(failed)? {
            Some(fault) => Err(damaged(dir, &image, &fault)),
            None => Ok(Self { image, blocks: Arc::new(blocks), data_bytes: disk.data_bytes }),
        }
    }

    /// Serves the image in `directory`, which nobody else can change to lead elsewhere.
    pub(super) async fn serve(&self, directory: &Path, sockets: &mut Sockets) -> Result<(Server, Connection), Failure> {
        let path = directory.join(&self.image);
        let Some(name) = path.to_str() else {
            return Err(Failure::new(Code::Internal, format!("`{}` is no path in UTF-8", path.display())));
        };
        let node = json!({"driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": name}});
        let serve = Serve {
            node: &node,
            writable: false,
            cache: target::cache_of(&path).await,
            device: Code::RepositoryIo,
            shown: format!("`{}`", path.display()),
        };
        let (server, connection) = Server::start(serve, &sockets.next()).await?;
        let size = connection.export().size;
        if size != self.blocks.virtual_bytes() {
            let text = format!("the image `{name}` is one of {size} bytes and not of {}", self.blocks.virtual_bytes());
            return Err(Failure::new(Code::BackupDamaged, text));
        }
        Ok((server, connection))
    }
}

fn read_blocks(dir: &Dir, wanted: &RestoredVolume) -> Result<Blocks, Failure> {
    let file = blocks_file(&wanted.disk);
    // Before anything is read that is as long as the manifest says: that is the share's word too.
    if wanted.virtual_bytes > VIRTUAL_BYTES_MAX {
        return Err(damaged(dir, Manifest::FILE, &format!("no disk has {} bytes", wanted.virtual_bytes)));
    }
    let blocks = wanted.virtual_bytes.div_ceil(BLOCK_BYTES);
    let bytes_max = blocks.saturating_mul(BLOCKS_BYTES_EACH).saturating_add(BLOCKS_BYTES_BASE);
    let content = dir.read(&file, bytes_max).map_err(|error| unreadable(dir, &file, &error))?;
    let blocks = Blocks::decode(&content).map_err(|error| damaged(dir, &file, "it cannot be read").because(&error))?;
    let root = blake3::Hash::from_bytes(blocks.root()).to_hex();
    if blocks.virtual_bytes() != wanted.virtual_bytes || root.as_str() != wanted.content_root {
        return Err(damaged(dir, &file, "it is not about the disk that was asked for"));
    }
    Ok(blocks)
}

fn unreadable(dir: &Dir, file: &str, error: &ShareError) -> Failure {
    match error {
        error if error.is_missing() => damaged(dir, file, "it is missing"),
        ShareError::TooMuch { .. } => damaged(dir, file, "it is too long").because(error),
        error => error.failure(Code::RepositoryIo),
    }
}

fn damaged(dir: &Dir, file: &str, how: &str) -> Failure {
    let text = format!("`{}` is not what was backed up: {how}", dir.path().join(file).display());
    Failure::new(Code::BackupDamaged, text)
}
