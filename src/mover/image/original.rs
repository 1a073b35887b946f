//! What a published backup holds of one disk, looked at before a byte of it is restored.
//!
//! Anybody who can mount the share may have changed it since. So the hashes are taken only where they are those that were asked for,
//! and what the images hold is held against them while it is read.

use std::path::PathBuf;
use std::sync::Arc;

use super::blocks::{BLOCK_BYTES, Blocks, VIRTUAL_BYTES_MAX};
use super::chain::{self, Backups, Link, damaged, unreadable};
use super::server::{Besides, Serve, Server, Sockets};
use super::{blocks_file, hex, target};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget};
use crate::model::manifest::Manifest;
use crate::mover::nbd::Connection;
use crate::mover::share::Dir;
use crate::mover::volume::Amount;

/// What a file of hashes takes besides them, bytes.
const BLOCKS_BYTES_BASE: u64 = 4096;
/// Most bytes that it takes for a block: a hash and a run of its own.
const BLOCKS_BYTES_EACH: u64 = 32 + 9;

/// A disk of a backup.
#[derive(Clone, Debug)]
pub(in crate::mover) struct Original {
    /// Its images, its own first.
    pub links: Vec<Link>,
    /// The hashes that were taken when the backup was made.
    pub blocks: Arc<Blocks>,
    /// Bytes that are stored as data, at most.
    pub data_bytes: u64,
}

/// Which disk it has to be.
#[derive(Clone, Copy, Debug)]
pub(in crate::mover) struct Wanted<'w> {
    /// The backup.
    pub backup: BackupId,
    /// Its disk.
    pub disk: &'w DiskTarget,
    /// The size the guest sees, bytes.
    pub virtual_bytes: u64,
    /// Hash over the block hashes, hex.
    pub content_root: &'w str,
}

impl Original {
    /// Looks at the disk that is `wanted`. Blocks.
    ///
    /// `backup_not_found`, `disk_not_found`: there is no such thing. `backup_damaged`: a file of it, or of a backup that it is based
    /// on, is missing or is not as it was made.
    pub fn look(backups: &mut Backups<'_>, wanted: Wanted<'_>) -> Result<Self, Failure> {
        let links = backups.chain(wanted.backup, wanted.disk)?;
        let blocks = read_blocks(&backups.open(wanted.backup)?.dir, wanted)?;
        let stored = links.iter().fold(0_u64, |stored, link| stored.saturating_add(link.data_bytes));
        let data_bytes = stored.min(wanted.virtual_bytes);
        Ok(Self { links, blocks: Arc::new(blocks), data_bytes })
    }

    /// How much of it is data, and where.
    pub fn amount(&self) -> Amount {
        // What one image of a chain stores another one may hide.
        Amount::of(self.data_bytes, self.links.len() == 1, &self.blocks)
    }

    /// Serves the images, the topmost first, from paths that nobody else can change to lead elsewhere.
    pub(super) async fn serve(
        &self,
        images: &[PathBuf],
        sockets: &mut Sockets,
    ) -> Result<(Server, Connection), Failure> {
        let top = images.first().cloned().unwrap_or_default();
        let serve = Serve {
            key: None,
            node: &chain::node(images)?,
            writable: false,
            cache: target::cache_of(&top).await,
            besides: if images.len() > 1 { Besides::Depth } else { Besides::Nothing },
            device: Code::RepositoryIo,
            shown: format!("`{}`", top.display()),
        };
        let (server, connection) = Server::start(serve, &sockets.next()).await?;
        let size = connection.export().size;
        if size != self.blocks.virtual_bytes() {
            let (top, wanted) = (top.display(), self.blocks.virtual_bytes());
            let text = format!("the image `{top}` is one of {size} bytes and not of {wanted}");
            return Err(Failure::new(Code::BackupDamaged, text));
        }
        Ok((server, connection))
    }
}

fn read_blocks(dir: &Dir, wanted: Wanted<'_>) -> Result<Blocks, Failure> {
    let file = blocks_file(wanted.disk);
    // Before anything is read that is as long as the manifest says: that is the share's word too.
    if wanted.virtual_bytes > VIRTUAL_BYTES_MAX {
        return Err(damaged(dir, Manifest::FILE, &format!("no disk has {} bytes", wanted.virtual_bytes)));
    }
    let blocks = wanted.virtual_bytes.div_ceil(BLOCK_BYTES);
    let bytes_max = blocks.saturating_mul(BLOCKS_BYTES_EACH).saturating_add(BLOCKS_BYTES_BASE);
    let content = dir.read(&file, bytes_max).map_err(|error| unreadable(dir, &file, &error))?;
    let blocks = Blocks::decode(&content).map_err(|error| damaged(dir, &file, "it cannot be read").because(&error))?;
    if blocks.virtual_bytes() != wanted.virtual_bytes || hex(&blocks) != wanted.content_root {
        return Err(damaged(dir, &file, "it is not about the disk that was asked for"));
    }
    Ok(blocks)
}
