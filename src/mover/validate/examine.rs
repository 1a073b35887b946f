//! One disk of one backup, looked at itself: its header, its hashes, its image's structure, its content.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::facts::InstanceFacts;
use super::select::{Measured, is_read};
use super::telling::Telling;
use super::{backup_path, fault, must_be_there, without_root};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::ManifestDisk;
use crate::model::validation::{Finding, FindingCode};
use crate::mover::image::blocks::Blocks;
use crate::mover::image::{Backups, Checked, Examined, Link, Original, Pace, Sockets, Wanted, check_file, examine};
use crate::mover::protocol::WantedValidation;
use crate::mover::share::Dir;

/// Runs of differing blocks of a disk that have a finding of their own; of what is wholly something else one needs no more.
const RUNS_TOLD_MAX: usize = 16;
/// Where the header of an image has the size of its disk, bytes.
const HEADER_SIZE_AT: u64 = 24;
/// How often something is told of an image that is being checked: a check is one call, with a deadline of its own.
const CHECK_TELLS: Duration = Duration::from_secs(5);

/// The disk that is examined.
#[derive(Clone, Debug)]
pub(in crate::mover) struct DiskAt {
    /// Whose.
    pub instance: InstanceId,
    /// Of which backup.
    pub backup: BackupId,
    /// As its manifest has it.
    pub disk: ManifestDisk,
    /// Content roots of the disks that it is based on: one that reads as one of those has lost its own image's part, and is not exchanged.
    pub below: BTreeSet<String>,
    /// What it is based on was read in the same look, and nothing was found.
    pub below_is_read: bool,
}

/// What can be opened of it.
#[derive(Debug)]
pub(in crate::mover) struct Opened {
    /// Its images, its own first.
    pub links: Vec<Link>,
    /// What it has to hold, where its hashes can be believed.
    original: Option<Original>,
    /// What the disk that it is based on has to hold, and was found to hold.
    below: Option<Arc<Blocks>>,
}

/// What the tools need.
#[derive(Clone)]
pub(in crate::mover) struct Tools {
    /// The repository.
    pub root: Arc<Dir>,
    /// What is asked for.
    pub wanted: Arc<WantedValidation>,
    /// Whose content a content root is.
    pub measured: Arc<Measured>,
    /// How far it is.
    pub telling: Arc<Telling>,
}

/// What one disk after another is read with.
#[derive(Debug)]
pub(in crate::mover) struct Means {
    /// How fast.
    pub pace: Pace,
    /// Where servers listen: each at a place of its own, since one that was given up may still be ending.
    pub sockets: Sockets,
}

impl DiskAt {
    fn found(&self, code: FindingCode, file: &str, text: impl AsRef<str>) -> Finding {
        let path = format!("{}/{}", backup_path(self.instance, self.backup), super::read::printable(file));
        Finding::new(code, &path, text).of_instance(self.instance).of_backup(self.backup).of_disk(&self.disk.target)
    }

    fn image(&self, code: FindingCode, text: impl AsRef<str>) -> Finding {
        self.found(code, &self.disk.file, text)
    }

    /// Looks at headers and hashes. None to be opened where the images can't be. Blocks.
    pub fn open(&self, root: &Dir) -> Result<(Vec<Finding>, Option<Opened>), Failure> {
        let mut backups = Backups::new(root, self.instance);
        let links = match backups.chain(self.backup, &self.disk.target) {
            Ok(links) => links,
            Err(failure) => {
                let found = self.of_failure(root, &failure, FindingCode::ImageHeaderDiffers, &self.disk.file)?;
                return Ok((vec![found], None));
            }
        };
        let mut found: Vec<_> = self.size_fault(root, &links).into_iter().collect();
        let ManifestDisk { target, virtual_bytes, content_root, .. } = &self.disk;
        let wanted = Wanted { backup: self.backup, disk: target, virtual_bytes: *virtual_bytes, content_root };
        let original = match Original::look(&mut backups, wanted) {
            Ok(original) => Some(original),
            Err(failure) => {
                found.push(self.of_failure(root, &failure, FindingCode::BlocksDamaged, &self.disk.blocks_file)?);
                None
            }
        };
        let below = self.below_is_read.then(|| self.blocks_below(&mut backups)).flatten();
        Ok((found, Some(Opened { links, original, below })))
    }

    /// None where they can't be had any more: then all is read.
    fn blocks_below(&self, backups: &mut Backups<'_>) -> Option<Arc<Blocks>> {
        let backup = self.disk.based_on.as_ref()?.backup_id;
        let parent = backups.open(backup).ok()?;
        let ManifestDisk { target, virtual_bytes, content_root, .. } =
            parent.manifest.disks.iter().find(|disk| disk.target == self.disk.target)?;
        let wanted = Wanted { backup, disk: target, virtual_bytes: *virtual_bytes, content_root };
        Original::look(backups, wanted).ok().map(|below| below.blocks)
    }

    /// The header's word on the size of the disk.
    fn size_fault(&self, root: &Dir, links: &[Link]) -> Option<Finding> {
        let link = links.first()?;
        let mut bytes = [0; 8];
        let read = link.dir.open_file(&link.image, false).map_err(|error| fault(root, &error).text).and_then(|file| {
            file.read_exact_at(&mut bytes, HEADER_SIZE_AT).map_err(|error| format!("it cannot be read: {error}"))
        });
        let (size, wanted) = (u64::from_be_bytes(bytes), self.disk.virtual_bytes);
        match read {
            Err(text) => Some(self.image(FindingCode::Unreadable, text)),
            Ok(()) if size != wanted => {
                let text = format!("its header says that the disk has {size} bytes, and its manifest says {wanted}");
                Some(self.image(FindingCode::ImageHeaderDiffers, text))
            }
            Ok(()) => None,
        }
    }

    /// What a failure to open or read something of it means: `damage` where it says so itself. An error where the share is gone, or the
    /// host is what is wrong.
    fn of_failure(&self, root: &Dir, failure: &Failure, damage: FindingCode, file: &str) -> Result<Finding, Failure> {
        let code = match failure.code {
            Code::BackupDamaged | Code::BackupNotFound | Code::DiskNotFound | Code::RepositoryUnsafe => damage,
            Code::Interrupted | Code::Internal | Code::HostIo | Code::HostUnfit => return Err(failure.clone()),
            // One image that a tool can't bear, or a directory that is deleted while it is bound, says nothing of the others.
            _ => FindingCode::Unreadable,
        };
        must_be_there(root)?;
        let words = failure.causes.iter().fold(failure.text.clone(), |text, cause| format!("{text}: {cause}"));
        Ok(self.found(code, file, without_root(root, &words)))
    }

    /// Runs the tools on its images, which are at `images`, the topmost first.
    pub async fn examine(
        &self,
        tools: &Tools,
        opened: &Opened,
        images: &[PathBuf],
        means: &mut Means,
    ) -> Result<Vec<Finding>, Failure> {
        let Some(top) = images.first() else { return Ok(Vec::new()) };
        let mut found: Vec<_> = self.check(tools, top).await?.into_iter().collect();
        let harmless = [FindingCode::ImageLeaks, FindingCode::CheckUnfinished];
        let is_whole = found.iter().all(|finding| harmless.contains(&finding.code));
        if let Some(original) = opened.original.as_ref().filter(|_| is_whole && is_read(&tools.wanted, self.backup)) {
            found.extend(self.read(tools, original, opened.below.as_deref(), images, means).await?);
        }
        Ok(found)
    }

    async fn check(&self, tools: &Tools, top: &Path) -> Result<Option<Finding>, Failure> {
        let path = top.to_owned();
        let length = crate::mover::blocking(move || {
            let failed = |error| Failure::new(Code::RepositoryIo, "cannot look at an image").because(&error);
            std::fs::symlink_metadata(&path).map(|status| status.size()).map_err(failed)
        });
        let bytes = match length.await {
            Ok(bytes) => bytes,
            Err(failure) => return self.off_the_thread(tools, failure, FindingCode::Unreadable).await.map(Some),
        };
        let mut checking = std::pin::pin!(check_file(top, bytes));
        let checked = loop {
            tokio::select! {
                checked = &mut checking => break checked,
                () = sleep(CHECK_TELLS) => tools.telling.tell(0),
            }
        };
        let checked = match checked {
            Ok(checked) => checked,
            Err(failure) => return self.off_the_thread(tools, failure, FindingCode::ImageDamaged).await.map(Some),
        };
        Ok(match checked {
            Checked::Whole => None,
            Checked::Leaks(text) => Some(self.image(FindingCode::ImageLeaks, text)),
            Checked::Damaged(text) => Some(self.image(FindingCode::ImageDamaged, without_root(&tools.root, &text))),
            Checked::NotKnown(text) => Some(self.image(FindingCode::CheckUnfinished, without_root(&tools.root, &text))),
        })
    }

    async fn read(
        &self,
        tools: &Tools,
        original: &Original,
        below: Option<&Blocks>,
        images: &[PathBuf],
        means: &mut Means,
    ) -> Result<Vec<Finding>, Failure> {
        let told = AtomicU64::new(0);
        let report = |passed: u64, read: u64| {
            tools.telling.read(read.saturating_sub(told.swap(read, Ordering::Relaxed)));
            tools.telling.tell(self.disk.file_bytes.saturating_add(passed));
        };
        match examine(original, images, below, &mut means.sockets, &mut means.pace, &report).await {
            Ok(examined) => {
                if !examined.unreadable.is_empty() {
                    let root = tools.root.clone();
                    crate::mover::blocking(move || must_be_there(&root)).await?;
                }
                Ok(self.content(&examined, original.links.len(), &tools.measured))
            }
            Err(failure) => {
                self.off_the_thread(tools, failure, FindingCode::ImageHeaderDiffers).await.map(|found| vec![found])
            }
        }
    }

    /// [`DiskAt::of_failure`], for who must not block.
    pub async fn off_the_thread(
        &self,
        tools: &Tools,
        failure: Failure,
        damage: FindingCode,
    ) -> Result<Finding, Failure> {
        let (at, root) = (self.clone(), tools.root.clone());
        crate::mover::blocking(move || at.of_failure(&root, &failure, damage, &at.disk.file)).await
    }

    /// What was read of it.
    fn content(&self, examined: &Examined, images: usize, measured: &Measured) -> Vec<Finding> {
        let root = examined.content_root.as_ref().filter(|root| !self.below.contains(*root));
        let other = root.and_then(|root| measured.roots.get(root));
        if let (Some((start, _)), Some((instance, backup, target))) = (examined.differing.first(), other) {
            let text = format!("it holds disk `{target}` of backup `{backup}` of instance `{instance}`");
            return vec![self.image(FindingCode::FilesExchanged, text).at(*start)];
        }
        let along = if images > 1 { ", read along its chain," } else { "" };
        let mut found = Vec::new();
        for (start, blocks) in examined.differing.iter().take(RUNS_TOLD_MAX) {
            let text =
                format!("{blocks} blocks of 1 MiB from here{along} do not have the hashes of what was backed up");
            found.push(self.image(FindingCode::ContentDiffers, text).at(*start));
        }
        for (start, words) in examined.unreadable.iter().take(RUNS_TOLD_MAX) {
            found.push(self.image(FindingCode::Unreadable, words).at(*start));
        }
        let more = examined.differing.len().saturating_sub(RUNS_TOLD_MAX)
            + examined.unreadable.len().saturating_sub(RUNS_TOLD_MAX);
        if more > 0 {
            let text = format!("there are {more} more such places on this disk");
            found.push(self.image(FindingCode::ContentDiffers, text));
        }
        found
    }
}

/// Images whose length is that of a merge that is not written down yet. Blocks.
pub(in crate::mover) fn merges(root: &Dir, facts: &InstanceFacts, found: Vec<Finding>) -> Vec<Finding> {
    let mut backups = Backups::new(root, facts.instance);
    let merged = |finding: Finding| {
        let of_disk =
            finding.backup_id.zip(finding.disk.as_ref()).filter(|_| finding.code == FindingCode::FileSizeDiffers);
        let Some((backup, target)) = of_disk else { return finding };
        let is_based = facts.disk(backup, target).is_some_and(|disk| disk.based_on.is_some());
        if !is_based || backups.chain(backup, target).is_err() {
            return finding;
        }
        let text = "it leaves the rest to a backup further down its chain than its manifest says";
        Finding {
            disk: finding.disk.clone(),
            instance_id: finding.instance_id,
            backup_id: finding.backup_id,
            ..Finding::new(FindingCode::MergeUnfinished, &finding.path, text)
        }
    };
    found.into_iter().map(merged).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::mover::share;
    use crate::mover::testing;

    fn disk(below: &[&str]) -> DiskAt {
        let disk = testing::manifest(&["vda"]).disks.remove(0);
        let below = below.iter().map(|root| (*root).to_owned()).collect();
        DiskAt { instance: InstanceId::draw(), backup: BackupId::draw(), disk, below, below_is_read: false }
    }

    #[test]
    fn a_disk_that_reads_like_what_it_is_based_on_is_not_called_exchanged() {
        let (other, target) = ((InstanceId::draw(), BackupId::draw()), "vda".parse().unwrap());
        let roots = [("ab".repeat(32), (other.0, other.1, target))].into();
        let measured = Measured { roots, ..Measured::default() };
        let examined =
            Examined { content_root: Some("ab".repeat(32)), differing: vec![(0, 1)], unreadable: Vec::new() };
        let code = |at: DiskAt| at.content(&examined, 2, &measured)[0].code;
        assert_eq!(code(disk(&[])), FindingCode::FilesExchanged);
        assert_eq!(code(disk(&[&"ab".repeat(32)])), FindingCode::ContentDiffers);
    }

    #[test]
    fn what_ails_one_disk_is_a_finding_and_what_ails_the_share_or_the_host_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        share::init(directory.path()).unwrap();
        let root = Dir::open_root(directory.path()).unwrap();
        let at = disk(&[]);
        let of = |code| at.of_failure(&root, &Failure::new(code, "no"), FindingCode::ImageDamaged, "vda.qcow2");
        for code in [Code::ImageToolFailed, Code::MountFailed, Code::RepositoryIo, Code::NbdProtocol] {
            let finding = of(code).unwrap();
            assert_eq!((finding.code, finding.backup_id), (FindingCode::Unreadable, Some(at.backup)), "{code}");
        }
        assert_eq!(of(Code::BackupNotFound).unwrap().code, FindingCode::ImageDamaged);
        for code in [Code::Interrupted, Code::Internal, Code::HostIo] {
            assert_eq!(of(code).unwrap_err().code, code);
        }
        std::fs::remove_dir_all(directory.path()).unwrap();
        assert!(of(Code::ImageToolFailed).is_err(), "the share is gone");
    }
}
