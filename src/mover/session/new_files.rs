//! The requests of a restore to elsewhere: files of a backup where nothing is, their names, and their removal.
//!
//! As with a restore in place, directories are bound by their descriptors on places of the mover's own, so that the tools follow no link.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::places::Places;
use super::restore::Begun;
use super::{Session, out_of_order};
use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId};
use crate::mover::blocking;
use crate::mover::image::{Backups, Fresh, Original, Planned, Wanted};
use crate::mover::new_files::{self, Outcome};
use crate::mover::protocol::{NewContent, NewFiles, Reply, ToWeigh};
use crate::mover::share::Dir;
use crate::mover::weigh::weigh;

impl Session {
    pub(super) async fn read_record(
        &mut self,
        instance: InstanceId,
        backup: BackupId,
        file: String,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        let content = blocking(move || new_files::read(&root, instance, backup, &file)).await?;
        Ok(Reply::Record { content })
    }

    pub(super) async fn weigh(&self, wanted: ToWeigh) -> Result<Reply, Failure> {
        let root = self.root()?;
        blocking(move || weigh(&root, &wanted)).await.map(Reply::Weighed)
    }

    pub(super) async fn make_new(
        &mut self,
        instance: InstanceId,
        backup: BackupId,
        new: NewFiles,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        let lease = self.lease.as_ref().filter(|lease| lease.instance() == instance);
        lease.ok_or_else(|| out_of_order("make_new", "lease"))?.check()?;
        self.leave_restored().await;
        let (own, made) = (self.directory.clone(), new.clone());
        // Not broken off: what its thread binds after that, nobody would give up.
        let begun = blocking(move || begin(&root, instance, backup, &new, &own)).await?;
        let disks = match self.restore_begun(begun, broken_off).await? {
            Reply::Copied { disks, .. } => disks,
            other => return Ok(other),
        };
        let inodes = blocking(move || new_files::inodes(&made)).await?;
        Ok(Reply::MadeNew { disks, inodes })
    }

    pub(super) async fn place_new(&mut self, new: NewFiles) -> Result<Reply, Failure> {
        self.leave_restored().await;
        blocking(move || new_files::place(&new)).await.map(reply)
    }

    pub(super) async fn take_back_new(&mut self, new: NewFiles) -> Result<Reply, Failure> {
        blocking(move || Ok(new_files::take_back(&new))).await.map(reply)
    }

    pub(super) async fn remove_new(&mut self, new: NewFiles) -> Result<Reply, Failure> {
        self.leave_restored().await;
        blocking(move || new_files::remove(&new)).await.map(|()| Reply::Done)
    }
}

fn reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Done => Reply::Done,
        Outcome::NotKnown(failure) => Reply::NotKnown { failure },
    }
}

/// Where new files would be.
pub(super) async fn look_at_new(new: NewFiles) -> Result<Reply, Failure> {
    let directories = blocking(move || new_files::directories(&new)).await?;
    Ok(Reply::Places { directories })
}

/// Looks at everything that can be looked at before a byte of a disk is written, and writes what is small. Blocks.
fn begin(root: &Dir, instance: InstanceId, backup: BackupId, new: &NewFiles, own: &Path) -> Result<Begun, Failure> {
    let mut backups = Backups::new(root, instance);
    let mut originals = Vec::new();
    for file in &new.files {
        if let NewContent::Disk { disk, virtual_bytes, content_root, .. } = &file.content {
            let wanted = Wanted { backup, disk, virtual_bytes: *virtual_bytes, content_root };
            originals.push(Original::look(&mut backups, wanted)?);
        }
    }
    let data: Vec<_> = originals.iter().map(|original| original.data_bytes).collect();
    let prepared = new_files::prepare(new, &data)?;
    let mut places = Places::new(own);
    let mut originals = originals.into_iter();
    let mut planned = Vec::with_capacity(new.files.len());
    for (file, prepared) in new.files.iter().zip(prepared) {
        match &file.content {
            NewContent::Record { file } => {
                new_files::write(&prepared, &new_files::read(root, instance, backup, file)?)?;
            }
            NewContent::Disk { disk, format, .. } => {
                let Some(original) = originals.next() else { continue };
                let images = original.links.iter().map(|link| places.of(&link.dir).join(&link.image)).collect();
                let fresh = places.of(&prepared.dir).join(prepared.fresh);
                let fresh = Fresh::File { path: fresh, old: None };
                planned.push(Planned { disk: disk.clone(), original, images, format: *format, fresh });
            }
        }
    }
    places.bind().map(|pinned| Begun { planned, pinned, warnings: Vec::new() })
}
