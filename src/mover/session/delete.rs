//! The requests of a deletion: what is based on what, images that a child takes over, and the backups that go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::places::{Places, unbind};
use super::{SOCKETS, Session, or_broken_off, out_of_order, reporter};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::{Manifest, ManifestDisk};
use crate::mover::blocking;
use crate::mover::delete::{Deletion, Merging, instance_dir, members, remove_deleted};
use crate::mover::image::{self, Backups, Base, Link, Original, ToMerge, Wanted, stored_over};
use crate::mover::lease::Lease;
use crate::mover::mount::Pinned;
use crate::mover::protocol::{Merger, Reply};
use crate::mover::share::{Dir, ENTRIES_MAX, MERGING_PREFIX, plain_file_name};

/// Room wanted over what the merged images hold, for their tables, bytes.
const ROOM_MARGIN_BYTES: u64 = 16 * 1024 * 1024;

/// What a mover holds of a merge.
#[derive(Default)]
pub(super) struct Merge {
    pinned: Vec<Pinned>,
    /// The instance's directory, and the beginning of the names of all files that were made in it.
    files: Option<(Arc<Dir>, String)>,
    proven: Option<Merging>,
}

/// A merge that can begin.
struct Begun {
    wanted: Vec<ToMerge>,
    /// What the images take now whose places will be taken, bytes.
    replaced_bytes: u64,
    pinned: Vec<Pinned>,
    parent: Arc<Dir>,
}

impl Session {
    pub(super) async fn chains(&self, instance: InstanceId) -> Result<Reply, Failure> {
        let root = self.root()?;
        let found = blocking(move || match instance_dir(&root, instance) {
            Ok(parent) => members(&parent, instance),
            Err(none) if none.code == Code::BackupNotFound => Ok(Vec::new()),
            Err(failure) => Err(failure),
        });
        Ok(Reply::Chains { members: found.await? })
    }

    pub(super) async fn merge(
        &mut self,
        instance: InstanceId,
        merger: Merger,
        suffix: String,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        self.lease_of("merge", instance)?.check()?;
        if !plain_file_name(&suffix) {
            return Err(Failure::new(Code::Internal, format!("`{suffix}` cannot be part of a file's name")));
        }
        self.discard_merged().await?;
        let (own, prefix) = (self.directory.clone(), format!("{MERGING_PREFIX}{}.{suffix}.", merger.child));
        let name = prefix.clone();
        // Not broken off: what its thread binds after that, nobody would give up.
        let begun = blocking(move || begin(&root, instance, merger, &name, &own)).await?;
        let Some(Begun { wanted, replaced_bytes, pinned, parent }) = begun else {
            return Ok(Reply::Merged { bytes: 0, replaced_bytes: 0 });
        };
        self.merge.pinned = pinned;
        // Known before anything is made, so that `discard` finds it.
        self.merge.files = Some((parent, prefix.clone()));
        let images = {
            let (sockets, report) = (self.directory.join(SOCKETS), reporter(&self.progress));
            or_broken_off(broken_off, image::merge(sockets, wanted, &report)).await?
        };
        let bytes = images.iter().map(|image| image.file_bytes).sum();
        self.merge.proven = Some(Merging { merger, prefix, images });
        self.leave_merge().await;
        Ok(Reply::Merged { bytes, replaced_bytes })
    }

    /// Not broken off: what is begun is brought to an end.
    pub(super) async fn delete(
        &mut self,
        instance: InstanceId,
        merger: Option<Merger>,
        backups: Vec<BackupId>,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        self.lease_of("delete", instance)?.check()?;
        // On CIFS nothing can be renamed while it is open.
        self.leave_merge().await;
        let proven = self.merge.proven.clone();
        let begin = move || Deletion::begin(&root, instance, merger, proven.as_ref(), &backups);
        let deletion = Arc::new(blocking(begin).await?);
        let lease = self.lease_of("delete", instance)?;
        let (going_on, number) = (deletion.clone(), lease.number());
        let done = match lease.confirm().await {
            Ok(()) => blocking(move || going_on.go_on(number)).await,
            lost => lost,
        };
        if let Err(failure) = done {
            give_up(deletion, lease).await;
            return Err(failure);
        }
        // All that was merged is in its place.
        self.merge = Merge::default();
        Ok(Reply::Done)
    }

    pub(super) async fn remove_deleted(&mut self, instance: InstanceId) -> Result<Reply, Failure> {
        let root = self.root()?;
        self.lease_of("remove", instance)?.confirm().await?;
        blocking(move || remove_deleted(&root, instance)).await.map(|()| Reply::Done)
    }

    /// Removes what was merged and has taken no place.
    pub(super) async fn discard_merged(&mut self) -> Result<(), Failure> {
        self.leave_merge().await;
        self.merge.proven = None;
        if let Some((parent, prefix)) = self.merge.files.clone() {
            blocking(move || remove_files(&parent, &prefix)).await?;
            self.merge.files = None;
        }
        Ok(())
    }

    /// Gives the bound paths up; the files stay.
    pub(super) async fn leave_merge(&mut self) {
        let pinned = std::mem::take(&mut self.merge.pinned);
        let left = blocking(move || {
            unbind(pinned);
            Ok(())
        });
        if let Err(failure) = left.await {
            tracing::warn!(failure = format!("{failure:#}"), "cannot give up the places of a merge");
        }
    }

    fn lease_of(&self, asked: &str, instance: InstanceId) -> Result<&Lease, Failure> {
        let lease = self.lease.as_ref().filter(|lease| lease.instance() == instance);
        lease.ok_or_else(|| out_of_order(asked, "lease"))
    }
}

/// What a deletion that failed has made is removed, unless the lease is lost: the next who takes it does that.
async fn give_up(deletion: Arc<Deletion>, lease: &Lease) {
    let given_up = match lease.confirm().await {
        Ok(()) => blocking(move || deletion.give_up()).await,
        lost => lost,
    };
    if let Err(stays) = given_up {
        tracing::warn!(failure = format!("{stays:#}"), "what a deletion that failed has taken away stays");
    }
}

fn remove_files(parent: &Dir, prefix: &str) -> Result<(), Failure> {
    for entry in parent.list(ENTRIES_MAX)? {
        if entry.name.to_str().is_some_and(|name| name.starts_with(prefix)) {
            parent.remove_file(&entry.name)?;
        }
    }
    Ok(())
}

/// Looks at everything that can be looked at before a byte is written; none where the child does not need the other backup any more.
/// Blocks.
fn begin(root: &Dir, instance: InstanceId, merger: Merger, prefix: &str, own: &Path) -> Result<Option<Begun>, Failure> {
    let mut backups = Backups::new(root, instance);
    let (child, from) = (backups.open(merger.child)?, backups.open(merger.from)?);
    if child.manifest.parent() != Some(merger.from) {
        return Ok(None);
    }
    let parent = Arc::new(instance_dir(root, instance)?);
    let mut places = Places::new(own);
    let (mut wanted, mut need_bytes, mut replaced_bytes) = (Vec::new(), 0_u64, 0_u64);
    for disk in child.manifest.disks.iter().filter(|disk| disk.based_on.is_some()) {
        let original = Original::look(&mut backups, as_backed_up(&child.manifest, disk))?;
        replaced_bytes = replaced_bytes.saturating_add(disk.file_bytes);
        let is_in_place = original.links.get(1).is_none_or(|below| !Arc::ptr_eq(&below.dir, &from.dir));
        let base = if is_in_place { None } else { base(&mut backups, &from.manifest, disk, &mut places)? };
        if !is_in_place {
            let stored_bytes = stored_over(base.as_ref(), &original);
            need_bytes = need_bytes.saturating_add(stored_bytes).saturating_add(ROOM_MARGIN_BYTES);
        }
        let fresh = (!is_in_place).then(|| places.of(&parent).join(format!("{prefix}{}", disk.file)));
        let images = paths(&mut places, &original.links);
        wanted.push(ToMerge { disk: disk.target.clone(), original, images, base, fresh });
    }
    let free_bytes = parent.free_bytes()?;
    if free_bytes < need_bytes {
        let text = format!(
            "merging backup `{}` into `{}` may take {need_bytes} bytes where the repository has {free_bytes} free",
            merger.from, merger.child
        );
        return Err(Failure::new(Code::RepositoryFull, text));
    }
    Ok(Some(Begun { wanted, replaced_bytes, pinned: places.bind()?, parent }))
}

/// What the merged image of a disk is left on: what the image of the backup that goes is.
fn base(
    backups: &mut Backups<'_>,
    from: &Manifest,
    disk: &ManifestDisk,
    places: &mut Places<'_>,
) -> Result<Option<Base>, Failure> {
    let below = from.disks.iter().find(|below| below.target == disk.target);
    let Some(based_on) = below.and_then(|below| below.based_on.as_ref()) else { return Ok(None) };
    let backup = backups.open(based_on.backup_id)?;
    let stays = backup.manifest.disks.iter().find(|stays| stays.target == disk.target);
    let Some(stays) = stays else {
        let text = format!("backup `{}` has no disk `{}`", based_on.backup_id, disk.target);
        return Err(Failure::new(Code::BackupDamaged, text));
    };
    let original = Original::look(backups, as_backed_up(&backup.manifest, stays))?;
    let images = paths(places, &original.links);
    Ok(Some(Base { backup: based_on.backup_id, images, original, since: None }))
}

fn as_backed_up<'m>(manifest: &Manifest, disk: &'m ManifestDisk) -> Wanted<'m> {
    let (virtual_bytes, content_root) = (disk.virtual_bytes, &disk.content_root);
    Wanted { backup: manifest.backup_id, disk: &disk.target, virtual_bytes, content_root }
}

fn paths(places: &mut Places<'_>, links: &[Link]) -> Vec<PathBuf> {
    links.iter().map(|link| places.of(&link.dir).join(&link.image)).collect()
}
