//! The images of one disk of one backup: from that backup's own to the one that stands alone. Blocks.
//!
//! Anybody who can mount the share may have changed it since. So nothing is believed because it is there: manifests have to name each
//! other by the content of the disk, and QEMU's tools, which follow what the header of an image says, get none but images as we have
//! them made, and are told the backing file of each.
//!
//! An image may leave the rest to a backup that is further down its chain than its manifest says. That is so for a moment while a backup
//! between the two is deleted: the image that holds what both held takes its place before the manifest that says so.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{dense, target};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::{BasedOn, CHAIN_IMAGES_MAX, Manifest, ManifestDisk};
use crate::mover::publish;
use crate::mover::share::{Dir, ShareError};

/// The published backups of one instance, each opened when it is first asked for.
pub(in crate::mover) struct Backups<'r> {
    root: &'r Dir,
    instance: InstanceId,
    opened: BTreeMap<BackupId, Arc<Published>>,
}

/// A published backup.
#[derive(Debug)]
pub(in crate::mover) struct Published {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its directory.
    pub dir: Arc<Dir>,
}

/// One image of a chain.
#[derive(Clone, Debug)]
pub(in crate::mover) struct Link {
    /// The directory of the backup that it belongs to.
    pub dir: Arc<Dir>,
    /// Plain name of the image in it.
    pub image: String,
    /// Bytes that it stores as data.
    pub data_bytes: u64,
}

impl<'r> Backups<'r> {
    /// Those of that instance in the repository at `root`.
    pub fn new(root: &'r Dir, instance: InstanceId) -> Self {
        Self { root, instance, opened: BTreeMap::new() }
    }

    /// `backup_not_found`: it is not published.
    pub fn open(&mut self, backup: BackupId) -> Result<Arc<Published>, Failure> {
        if let Some(known) = self.opened.get(&backup) {
            return Ok(known.clone());
        }
        let (manifest, dir) = publish::open(self.root, self.instance, backup)?;
        let published = Arc::new(Published { manifest, dir: Arc::new(dir) });
        self.opened.insert(backup, published.clone());
        Ok(published)
    }

    /// The images of a disk of a backup, its own first, the one that stands alone last.
    ///
    /// `backup_not_found`: there is no such backup. `disk_not_found`: it has no such disk. `backup_damaged`: a backup or a file of
    /// the chain is missing, or is not as it was made.
    pub fn chain(&mut self, backup: BackupId, target: &DiskTarget) -> Result<Vec<Link>, Failure> {
        let mut published = self.open(backup)?;
        let text = || format!("backup `{backup}` has no disk `{target}`");
        let mut disk = disk_of(&published.manifest, target).ok_or_else(|| Failure::new(Code::DiskNotFound, text()))?;
        let mut links = Vec::new();
        loop {
            let below = self.below(&published, &disk)?;
            let dir = published.dir.clone();
            links.push(Link { dir, image: disk.file.clone(), data_bytes: disk.data_bytes });
            let Some(next) = below else { return Ok(links) };
            if links.len() == CHAIN_IMAGES_MAX {
                return Err(damaged(&published.dir, &disk.file, &format!("it is based on {CHAIN_IMAGES_MAX} others")));
            }
            (published, disk) = next;
        }
    }

    /// What the image of a disk is based on: the manifest's word and that of the image's header, which have to agree.
    fn below(
        &mut self,
        published: &Published,
        disk: &ManifestDisk,
    ) -> Result<Option<(Arc<Published>, ManifestDisk)>, Failure> {
        let (dir, file) = (&published.dir, &disk.file);
        let (bytes, backing) = look(dir, file)?;
        let told = match &disk.based_on {
            Some(based_on) => Some(self.parent(published, disk, based_on)?),
            None => None,
        };
        let named = |parent: &Option<(Arc<Published>, ManifestDisk)>| {
            parent.as_ref().map(|(parent, disk)| backing_name(parent.manifest.backup_id, &disk.file))
        };
        if named(&told) == backing {
            return match disk.file_bytes == bytes {
                true => Ok(told),
                false => Err(damaged(dir, file, &format!("it has {bytes} bytes and not {}", disk.file_bytes))),
            };
        }
        // Merged already, and its manifest is about to say so; how long the merged one is nobody can tell yet.
        let mut further = told;
        for _ in 0..CHAIN_IMAGES_MAX {
            let Some((parent, of_parent)) = further else { break };
            further = match &of_parent.based_on {
                Some(based_on) => Some(self.parent(&parent, &of_parent, based_on)?),
                None => None,
            };
            if named(&further) == backing {
                return Ok(further);
            }
        }
        let names =
            backing.map_or("no backing file".to_owned(), |name| format!("the backing file `{}`", name.escape_debug()));
        Err(damaged(dir, file, &format!("its header names {names}, which is not what its manifest says")))
    }

    fn parent(
        &mut self,
        child: &Published,
        disk: &ManifestDisk,
        based_on: &BasedOn,
    ) -> Result<(Arc<Published>, ManifestDisk), Failure> {
        let BasedOn { backup_id, content_root, .. } = based_on;
        let broken =
            |how: &str| damaged(&child.dir, &disk.file, &format!("it is based on backup `{backup_id}`, {how}"));
        let parent = self.open(*backup_id).map_err(|failure| match failure.code {
            Code::BackupNotFound | Code::RepositoryUnsafe => broken("which cannot be read").because(&failure),
            _ => failure,
        })?;
        let found = disk_of(&parent.manifest, &disk.target);
        match found.filter(|found| found.content_root == *content_root) {
            Some(found) => Ok((parent, found)),
            None => Err(broken("which does not hold the disk as it was then")),
        }
    }
}

/// How the header of an image names the image of that backup, seen from the directory of another.
pub(in crate::mover) fn backing_name(backup: BackupId, image: &str) -> String {
    format!("../{backup}/{image}")
}

/// QEMU's description of a chain of images at those paths, the topmost first, in which no header decides what is opened.
pub(super) fn node(images: &[PathBuf]) -> Result<Value, Failure> {
    let mut below = Value::Null;
    for path in images.iter().rev() {
        let Some(name) = path.to_str().filter(|_| path.is_absolute()) else {
            return Err(Failure::new(Code::Internal, format!("`{}` is no absolute path in UTF-8", path.display())));
        };
        below = json!({"driver": "qcow2", "backing": below, "file": {"driver": "file", "filename": name}});
    }
    Ok(below)
}

/// Length of an image, and the backing file that its header names.
pub(in crate::mover) fn look(dir: &Dir, image: &str) -> Result<(u64, Option<String>), Failure> {
    let file = dir.open_file(image, false).map_err(|error| unreadable(dir, image, &error))?;
    let failed = |error: std::io::Error| {
        target::io_failure(Code::RepositoryIo, "read the header of", &dir.path().join(image), &error)
    };
    let bytes = file.metadata().map_err(failed)?.size();
    let backing = dense::backing_file(&file).map_err(failed)?;
    backing.map(|backing| (bytes, backing)).map_err(|fault| damaged(dir, image, &fault))
}

fn disk_of(manifest: &Manifest, target: &DiskTarget) -> Option<ManifestDisk> {
    manifest.disks.iter().find(|disk| disk.target == *target).cloned()
}

/// A file of a backup that could not be opened or read.
pub(super) fn unreadable(dir: &Dir, file: &str, error: &ShareError) -> Failure {
    match error {
        error if error.is_missing() => damaged(dir, file, "it is missing"),
        ShareError::TooMuch { .. } => damaged(dir, file, "it is too long").because(error),
        error => error.failure(Code::RepositoryIo),
    }
}

/// A file of a backup that is not as it was made.
pub(in crate::mover) fn damaged(dir: &Dir, file: &str, how: &str) -> Failure {
    let text = format!("`{}` is not what was backed up: {how}", dir.path().join(file).display());
    Failure::new(Code::BackupDamaged, text)
}
