//! The copying of disks into the staging directory, and what the new images are based on.
//!
//! The directories of the backups below are bound on places of the mover's own as long as the images are worked on: each image is
//! opened with its chain described, and no header leads a tool anywhere.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::places::{Places, unbind};
use super::{SOCKETS, Session, make_room, or_broken_off, out_of_order, reporter};
use crate::failure::{Code, Failure};
use crate::model::id::{DiskTarget, InstanceId};
use crate::model::manifest::CHAIN_IMAGES_MAX;
use crate::mover::blocking;
use crate::mover::image::blocks::Blocks;
use crate::mover::image::{Backups, Base, ImageSet, Original, ToCopy, Wanted};
use crate::mover::mount::Pinned;
use crate::mover::protocol::{BaseDisk, CopyDisk, Reply};
use crate::mover::share::Dir;

impl Session {
    pub(super) async fn copy(
        &mut self,
        disks: Vec<CopyDisk>,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let staged = self.staging()?;
        // What an earlier try of this step left is in the way of the next.
        self.images = None;
        self.leave_bases().await?;
        let targets: Vec<_> = disks.iter().map(|disk| disk.target.clone()).collect();
        let (root, staging, own) = (self.root()?, staged.clone(), self.directory.clone());
        let looked = blocking(move || {
            make_room(&staging, &targets)?;
            with_bases(&root, staging.instance, disks, &own)
        });
        // Not broken off: what its thread binds after that, nobody would give up.
        let (disks, bases) = looked.await?;
        self.bases = bases;
        let place = self.pinned.as_ref().ok_or_else(|| out_of_order("copy", "stage"))?.place().to_owned();
        let mut images = ImageSet::new(place, self.directory.join(SOCKETS)).with_keys(self.keys.clone());
        let copied = or_broken_off(broken_off, images.copy(disks, &reporter(&self.progress))).await?;
        for (file, sent) in images.blocks_sent() {
            staged.note_made(&file, Some(sent));
        }
        // Only now: what was copied in part is neither compared nor sealed.
        self.images = Some(images);
        Ok(Reply::Copied { disks: copied, warnings: Vec::new() })
    }

    /// Gives up the places of the backups below. No image may be open.
    pub(super) async fn leave_bases(&mut self) -> Result<(), Failure> {
        let bases = std::mem::take(&mut self.bases);
        blocking(move || {
            unbind(bases);
            Ok(())
        })
        .await
    }
}

/// Looks at what the disks are to be based on. Blocks.
fn with_bases(
    root: &Dir,
    instance: InstanceId,
    disks: Vec<CopyDisk>,
    own: &Path,
) -> Result<(Vec<ToCopy>, Vec<Pinned>), Failure> {
    let (mut backups, mut places) = (Backups::new(root, instance), Places::new(own));
    let mut to_copy = Vec::with_capacity(disks.len());
    for disk in disks {
        let base = match &disk.base {
            Some(wanted) => {
                let base = base(&mut backups, &mut places, &disk.target, wanted)?;
                base.map(|base| Some(Base { since: since(&mut backups, &disk, &base), ..base }))
            }
            None => Ok(None),
        };
        to_copy.push(ToCopy { disk, base });
    }
    Ok((to_copy, places.bind()?))
}

/// What the disk held in the moment since which its source says what was written to; none where that can't be read as it was written.
fn since(backups: &mut Backups<'_>, disk: &CopyDisk, base: &Base) -> Option<Arc<Blocks>> {
    let BaseDisk { backup, virtual_bytes, content_root } = disk.since.as_ref()?;
    if *backup == base.backup {
        return Some(base.original.blocks.clone());
    }
    let wanted = Wanted { backup: *backup, disk: &disk.target, virtual_bytes: *virtual_bytes, content_root };
    let looked = Original::look(backups, wanted);
    let tell = |failure: &Failure| tracing::warn!(failure = format!("{failure:#}"), "a bitmap can't be used");
    looked.inspect_err(tell).ok().map(|original| original.blocks)
}

/// Or why it can be none. Only a share that can't be read at all is a failure: a chain that is damaged gets no longer, and this is
/// a reason to begin another.
pub(super) fn base(
    backups: &mut Backups<'_>,
    places: &mut Places<'_>,
    disk: &DiskTarget,
    BaseDisk { backup, virtual_bytes, content_root }: &BaseDisk,
) -> Result<Result<Base, String>, Failure> {
    let wanted = Wanted { backup: *backup, disk, virtual_bytes: *virtual_bytes, content_root };
    let original = match Original::look(backups, wanted) {
        Ok(original) => original,
        Err(failure) => {
            return match failure.code {
                Code::BackupNotFound | Code::DiskNotFound | Code::BackupDamaged | Code::RepositoryUnsafe => {
                    Ok(Err(format!("{failure:#}")))
                }
                _ => Err(failure),
            };
        }
    };
    if original.links.len() >= CHAIN_IMAGES_MAX {
        return Ok(Err(format!("the chain of backup `{backup}` has {CHAIN_IMAGES_MAX} images already")));
    }
    let images = original.links.iter().map(|link| places.of(&link.dir).join(&link.image)).collect();
    Ok(Ok(Base { backup: *backup, original, images, since: None }))
}
