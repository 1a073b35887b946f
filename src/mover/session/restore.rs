//! The requests of a restore: new volumes from a backup, their exchange with the old ones, and the removal of either.
//!
//! The backup's directory and those of the volumes are bound, by their descriptors, on places of the mover's own, as a staging
//! directory is: the tools find there what was looked at, and follow no link.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::places::{Places, unbind};
use super::{SOCKETS, Session, or_broken_off, out_of_order, reporter};
use crate::failure::{Failure, RbdRemains};
use crate::model::id::{BackupId, InstanceId};
use crate::mover::block_device;
use crate::mover::blocking;
use crate::mover::image::{Backups, Fresh, Original, Planned, RestoredSet, Wanted};
use crate::mover::mount::Pinned;
use crate::mover::protocol::{DeviceNumbers, Reply, RestoredVolume, VolumePlace};
use crate::mover::rbd::{Image, Keys};
use crate::mover::share::Dir;
use crate::mover::volume::device::{Use, claim};
use crate::mover::volume::{self, Outcome, Prepared};

/// What a mover holds of a restore.
#[derive(Default)]
pub(super) struct Restore {
    made: Option<RestoredSet>,
    pinned: Vec<Pinned>,
    /// What is to be written over.
    over: Vec<Over>,
    claimed: Vec<(PathBuf, Arc<File>)>,
}

/// A block device that is to be written over.
struct Over {
    path: PathBuf,
    numbers: DeviceNumbers,
    bytes: u64,
}

/// A restore that can begin.
pub(super) struct Begun {
    pub planned: Vec<Planned>,
    pub pinned: Vec<Pinned>,
    /// What the new volumes have not of the old ones', in a sentence each.
    pub warnings: Vec<String>,
}

impl Session {
    pub(super) async fn restore(
        &mut self,
        instance: InstanceId,
        backup: BackupId,
        volumes: Vec<RestoredVolume>,
        keep_previous: bool,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        let lease = self.lease.as_ref().filter(|lease| lease.instance() == instance);
        lease.ok_or_else(|| out_of_order("restore", "lease"))?.check()?;
        self.leave_restored().await;
        let (own, keys) = (self.directory.clone(), self.keys.clone());
        // Not broken off: what its thread binds after that, nobody would give up.
        let over = volumes.iter().filter_map(over).collect();
        let begun = blocking(move || {
            let backup = (instance, backup);
            begin(&root, backup, &volumes, keep_previous, &own, &keys)
        });
        let begun = begun.await?;
        let restored = self.restore_begun(begun, broken_off).await?;
        self.restored.over = over;
        Ok(restored)
    }

    /// Makes the volumes that can be made.
    pub(super) async fn restore_begun(
        &mut self,
        begun: Begun,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let Begun { planned, pinned, warnings } = begun;
        self.restored.pinned = pinned;
        let (sockets, report) = (self.directory.join(SOCKETS), reporter(&self.progress));
        let restoring = RestoredSet::restore(sockets, planned, &report);
        let (made, disks) = or_broken_off(broken_off, restoring).await?;
        // Only now: what was made in part is not compared.
        self.restored.made = Some(made);
        Ok(Reply::Copied { disks, warnings })
    }

    /// Claims what is to be written over.
    pub(super) async fn claim(&mut self) -> Result<Reply, Failure> {
        if self.restored.made.is_none() || self.restored.over.is_empty() {
            return Err(out_of_order("claim", "restore"));
        }
        let (over, own) = (std::mem::take(&mut self.restored.over), self.directory.clone());
        let claimed = blocking(move || {
            let mut places = Places::of_claimed(&own);
            let claimed = over.into_iter().map(|Over { path, numbers, bytes }| {
                let file = Arc::new(claim(&path, &numbers, bytes, Use::Write)?);
                Ok((places.of_device(&file), file))
            });
            let claimed = claimed.collect::<Result<Vec<_>, Failure>>()?;
            Ok((places.bind()?, claimed))
        });
        let (pinned, claimed) = claimed.await?;
        self.restored.pinned.extend(pinned);
        self.restored.claimed = claimed;
        Ok(Reply::Done)
    }

    /// Writes over what was claimed: once, since nobody knows what happens after that.
    pub(super) async fn overwrite(&mut self, broken_off: &CancellationToken) -> Result<Reply, Failure> {
        let claimed = std::mem::take(&mut self.restored.claimed);
        let report = reporter(&self.progress);
        let made = self.restored.made.as_mut().filter(|_| !claimed.is_empty());
        let made = made.ok_or_else(|| out_of_order("overwrite", "claim"))?;
        or_broken_off(broken_off, made.overwrite(claimed, &report)).await.map(|()| Reply::Done)
    }

    /// None where nothing was restored.
    pub(super) async fn compare_restored(&mut self) -> Option<Result<Reply, Failure>> {
        let made = self.restored.made.as_mut()?;
        let warnings = made.compare(&reporter(&self.progress)).await;
        Some(warnings.map(|warnings| if warnings.is_empty() { Reply::Done } else { Reply::DoneBut { warnings } }))
    }

    pub(super) async fn exchange(&mut self, volumes: Vec<RestoredVolume>, only_go_on: bool) -> Result<Reply, Failure> {
        self.leave_restored().await;
        let keys = self.keys.clone();
        Ok(match blocking(move || volume::exchange(&volumes, only_go_on, &keys)).await? {
            Outcome::Done => Reply::Done,
            Outcome::NotKnown(failure) => Reply::NotKnown { failure },
        })
    }

    pub(super) async fn remove_fresh(&mut self, volumes: Vec<RestoredVolume>) -> Result<Reply, Failure> {
        self.leave_restored().await;
        let keys = self.keys.clone();
        blocking(move || volume::remove_fresh(&volumes, &keys)).await.map(|()| Reply::Done)
    }

    pub(super) async fn remove_previous(&mut self, volumes: Vec<RestoredVolume>) -> Result<Reply, Failure> {
        self.leave_restored().await;
        let keys = self.keys.clone();
        blocking(move || volume::remove_previous(&volumes, &keys)).await.map(|()| Reply::Done)
    }

    /// Ends the tools and gives the bound paths up; the new volumes stay.
    pub(super) async fn leave_restored(&mut self) {
        let Restore { made, pinned, claimed, .. } = std::mem::take(&mut self.restored);
        let leave = move || {
            // Before their places: nothing of it may be open there.
            drop((made, claimed));
            unbind(pinned);
            Ok(())
        };
        if let Err(failure) = blocking(leave).await {
            tracing::warn!(failure = format!("{failure:#}"), "cannot give up the places of a restore");
        }
    }
}

fn over(volume: &RestoredVolume) -> Option<Over> {
    match &volume.place {
        VolumePlace::Device { volume: path, numbers } => {
            Some(Over { path: path.clone(), numbers: *numbers, bytes: volume.virtual_bytes })
        }
        VolumePlace::File { .. } | VolumePlace::Logical { .. } | VolumePlace::Rbd { .. } => None,
    }
}

/// Which of the images are there.
pub(super) async fn look_at_images(images: Vec<RbdRemains>, keys: Keys) -> Result<Reply, Failure> {
    let mut there = Vec::new();
    for RbdRemains { image, access } in images {
        if Image::named(&image, &access, &keys)?.info().await?.is_some() {
            there.push(image);
        }
    }
    Ok(Reply::Images { there })
}

/// What each of those block devices is.
pub(super) async fn look_at_devices(paths: Vec<PathBuf>) -> Result<Reply, Failure> {
    let mut devices = Vec::with_capacity(paths.len());
    for path in paths {
        devices.push(block_device::look(&path).await?);
    }
    Ok(Reply::Devices { devices })
}

/// Looks at everything that can be looked at before a byte is written. Blocks.
fn begin(
    root: &Dir,
    (instance, backup): (InstanceId, BackupId),
    volumes: &[RestoredVolume],
    keep_previous: bool,
    own: &Path,
    keys: &Keys,
) -> Result<Begun, Failure> {
    let mut backups = Backups::new(root, instance);
    let originals: Vec<_> = volumes
        .iter()
        .map(|RestoredVolume { disk, virtual_bytes, content_root, .. }| {
            Original::look(&mut backups, Wanted { backup, disk, virtual_bytes: *virtual_bytes, content_root })
        })
        .collect::<Result<_, _>>()?;
    let data: Vec<_> = originals.iter().map(Original::amount).collect();
    let prepared = volume::prepare(volumes, &data, keep_previous, keys)?;
    let mut places = Places::new(own);
    let (mut planned, mut warnings) = (Vec::with_capacity(volumes.len()), Vec::new());
    for ((wanted, original), prepared) in volumes.iter().zip(originals).zip(prepared) {
        let images = original.links.iter().map(|link| places.of(&link.dir).join(&link.image)).collect();
        let fresh = match prepared {
            Prepared::File { dir, fresh, old } => Fresh::File { path: places.of(&dir).join(fresh), old: Some(old) },
            Prepared::Device { file, blank, warnings: of_this } => {
                let file = Arc::new(file);
                warnings.extend(of_this);
                Fresh::Device { node: places.of_device(&file), file, blank }
            }
            Prepared::Overwritten => Fresh::None,
            Prepared::Rbd { image, settings, warning } => {
                warnings.extend(warning);
                Fresh::Rbd { image, settings }
            }
        };
        planned.push(Planned { disk: wanted.disk.clone(), original, images, format: wanted.format, fresh });
    }
    places.bind().map(|pinned| Begun { planned, pinned, warnings })
}
