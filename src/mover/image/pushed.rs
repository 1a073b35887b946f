//! The images of a push backup: made by us, written by QEMU, and then looked at as if nobody had said that all is well.
//!
//! It promises `structure`: after [`PushedSet::inspect`] and [`PushedSet::check`] each image is the file that was made, a descriptor
//! older than the writing was fsynced without an error, the image has no fault, no leak and no cluster that belongs to nothing,
//! ends where its file ends, and every byte of it was read back from the storage and hashed. It cannot promise that the bytes are
//! the guest's: the source has moved on.
//!
//! Where QEMU wrote only what was written to since an earlier backup, the image is put on top of that backup's when QEMU is done: until then
//! it stands alone, so that QEMU opens nothing on the share but what it writes, and what it writes in full after all needs no other. What
//! was lost of such an image leaves no trace in it, a range that became zeros least of all. So it has to hold as many clusters as QEMU
//! had to write. An image that the share does not let be taken back from QEMU's user is a warning, as that user
//! could still change it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::base::Base;
use super::blocks::Blocks;
use super::copy::{self, Ends};
use super::flusher::Flusher;
use super::overlaid::{self, Overlaid};
use super::server::{Besides, Server, Sockets};
use super::target::{CLUSTER_BYTES, Target};
use super::{Progress, SECTOR_BYTES, blocks_file, check, copied_disk, dense, new_image, of_disk, sole, write_blocks};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::manifest::ChangesFoundBy;
use crate::model::owner::Owner;
use crate::mover::nbd::Connection;
use crate::mover::protocol::CopiedDisk;
use crate::mover::share::Sent;
use crate::mover::writer::{Known, Writer};

/// For its owner alone, whoever that is.
const IMAGE_MODE: u32 = 0o600;

/// A disk that QEMU is going to write.
#[derive(Debug)]
pub(in crate::mover) struct ToPush {
    /// The disk.
    pub disk: DiskTarget,
    /// The size the guest sees, bytes.
    pub virtual_bytes: u64,
    /// What its image is to stand on, if anything: a disk of the same size.
    pub base: Option<Base>,
}

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
    /// Whose it was when it was made: ours, or on some shares whoever's all files there are.
    made_as: Owner,
    /// What it is going to stand on, where QEMU writes only what was written to since.
    base: Option<Base>,
    /// The backing file that its header has to name.
    backing: Option<String>,
    blocks_sent: Option<Sent>,
}

impl PushedSet {
    /// Makes an empty image for each disk below `staging`; `sockets` is a private directory with a short path.
    pub async fn make(staging: PathBuf, sockets: PathBuf, disks: Vec<ToPush>) -> Result<Self, Failure> {
        let mut images = Vec::with_capacity(disks.len());
        for ToPush { disk, virtual_bytes, base } in disks {
            let new = new_image(&staging, &disk, virtual_bytes);
            let made = Target::create(new).await;
            let target = made.map_err(|failure| of_disk(failure, &disk))?;
            let made_as = target.on_held(owner).await?;
            images.push(Image { disk, virtual_bytes, target, made_as, base, backing: None, blocks_sent: None });
        }
        Ok(Self { staging, sockets: Sockets::new(sockets), images, flusher: None })
    }

    /// Gives the images to the user that will write them. A share that knows no owners, or only one, may refuse; whether the user
    /// can write there is for the proof to say.
    pub async fn give_to(&self, writer: &Writer) -> Result<(), Failure> {
        let writer = Owner { user: writer.user.as_raw(), group: writer.group.as_raw() };
        for image in &self.images {
            if let Some(refusal) = image.target.on_held(move |file| own(file, writer)).await? {
                let refusal = &refusal as &dyn std::error::Error;
                tracing::debug!(error = refusal, "the share takes no other owner for an image");
            }
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
    /// `<target>.blocks` for each. Of those disks only what was written to since their bases has been written; that they were to be
    /// written in so many bytes of all disks has to be known then. Answers the disks, and which images could not be taken back.
    pub async fn inspect(
        &mut self,
        changes_of: &[DiskTarget],
        written_bytes: Option<u64>,
        progress: Progress<'_>,
    ) -> Result<(Vec<CopiedDisk>, Vec<String>), Failure> {
        if let Some(flusher) = self.flusher.take() {
            flusher.stop().await?;
        }
        let total = self.images.iter().map(|image| image.virtual_bytes).sum();
        let (mut connections, mut warnings) = (Vec::new(), Vec::new());
        for image in &mut self.images {
            warnings.extend(image.take_back().await?);
            image.target.is_still_ours().await?;
            image.target.sync().await?;
            // Each takes its time, in which no byte is read yet.
            progress(0, total, 0);
            image.is_whole().await.map_err(|failure| of_disk(failure, &image.disk))?;
            let besides = match image.is_put_on_its_base(changes_of).await? {
                true => Besides::Depth,
                false => Besides::Nothing,
            };
            let opened = image.target.serve_from_storage(&mut self.sockets, besides).await?;
            image.has_its_size(opened.1.export().size)?;
            connections.push(opened);
            progress(0, total, 0);
        }
        self.all_was_written(&connections, written_bytes).await?;
        let (mut before, mut data_before, mut copied) = (0, 0, Vec::new());
        for (image, (server, connection)) in self.images.iter_mut().zip(connections) {
            let report = |passed: u64, data: u64| progress(before + passed, total, data_before + data);
            let connection = Arc::new(connection);
            let (blocks, data_bytes) = image.read(&connection, &mut self.sockets, &report).await?;
            sole(connection)?.disconnect().await;
            server.end().await?;
            image.blocks_sent = Some(write_blocks(&self.staging, &image.disk, &blocks).await?);
            let based_on = image.base.as_ref().map(|base| base.by(ChangesFoundBy::Bitmap));
            copied.push(CopiedDisk { based_on, ..copied_disk(&image.disk, &blocks, data_bytes) });
            before += blocks.virtual_bytes();
            data_before += data_bytes;
        }
        progress(before, total, data_before);
        Ok((copied, warnings))
    }

    /// As many clusters are there as QEMU had to write, be they data or zeros. Images that stand alone need no such proof: what was lost of
    /// one has left clusters behind that belong to nothing.
    async fn all_was_written(
        &self,
        connections: &[(Server, Connection)],
        written_bytes: Option<u64>,
    ) -> Result<(), Failure> {
        if self.images.iter().all(|image| image.base.is_none()) {
            return Ok(());
        }
        let Some(wanted) = written_bytes else {
            return Err(Failure::new(Code::Internal, "nobody said how much was to be written of what has changed"));
        };
        let mut found = 0_u64;
        for (image, (_, connection)) in self.images.iter().zip(connections) {
            found += match image.base {
                Some(_) => overlaid::own_bytes(image.disk.as_str(), connection).await?,
                None => connection.export().size.next_multiple_of(copy::position(CLUSTER_BYTES)),
            };
        }
        if found == wanted {
            return Ok(());
        }
        let text = format!("the images hold {found} bytes of the {wanted} that QEMU had to write");
        Err(Failure::new(Code::ImageDamaged, text))
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
    /// Whether it is, which it is where only changes were written to it.
    async fn is_put_on_its_base(&mut self, changes_of: &[DiskTarget]) -> Result<bool, Failure> {
        self.base = self.base.take().filter(|_| changes_of.contains(&self.disk));
        let Some(base) = &self.base else { return Ok(false) };
        let backing = base.backing()?;
        self.backing = Some(backing.name.clone());
        self.target.stand_on(backing).await?;
        Ok(true)
    }

    async fn read(
        &self,
        connection: &Arc<Connection>,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(Blocks, u64), Failure> {
        let Some(base) = &self.base else {
            let ends = Ends {
                source: connection,
                source_device: Code::RepositoryIo,
                target: None,
                base: None,
                since: None,
                expected: None,
                zeros_too: false,
            };
            return copy::copy(self.disk.as_str(), ends, report).await;
        };
        let (server, below) = base.original.serve(&base.images, sockets).await?;
        let hashes = base.original.blocks.clone();
        let overlaid = Overlaid { image: connection.clone(), below: Arc::new(below), hashes };
        let read = overlaid::read(self.disk.as_str(), &overlaid, report).await?;
        sole(overlaid.below)?.disconnect().await;
        server.end().await?;
        Ok(read)
    }

    /// Answers a warning where it is still QEMU's.
    async fn take_back(&self) -> Result<Option<String>, Failure> {
        let made_as = self.made_as;
        let taken = self.target.on_held(move |file| own(file, made_as).and_then(|refusal| Ok((owner(file)?, refusal))));
        let (now, refusal) = taken.await?;
        Ok(still_theirs(made_as, now, refusal).map(|text| format!("disk `{}`: {text}", self.disk)))
    }

    fn has_its_size(&self, found: u64) -> Result<(), Failure> {
        if self.virtual_bytes.checked_next_multiple_of(SECTOR_BYTES) == Some(found) {
            return Ok(());
        }
        let text =
            format!("the image of disk `{}` is one of {found} bytes and not of {}", self.disk, self.virtual_bytes);
        Err(Failure::new(Code::ImageDamaged, text))
    }

    async fn is_whole(&self) -> Result<(), Failure> {
        let backing = self.backing.clone();
        match self.target.on_stored(move |file| dense::fault(file, backing.as_deref())).await? {
            None => check::check(&self.target).await,
            Some(fault) => {
                let text = format!("the image `{}` is not what was written", self.target.path().display());
                Err(Failure::new(Code::ImageDamaged, text).caused_by(fault))
            }
        }
    }
}

/// Answers why the owner was refused, as it is as a rule where all of a share's files belong to one user whoever made them.
fn own(file: &File, Owner { user, group }: Owner) -> io::Result<Option<io::Error>> {
    let refusal = std::os::unix::fs::fchown(file, Some(user), Some(group)).err();
    match file.set_permissions(Permissions::from_mode(IMAGE_MODE)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(refusal),
    }
}

fn owner(file: &File) -> io::Result<Owner> {
    file.metadata().map(|status| Owner { user: status.uid(), group: status.gid() })
}

/// What is to be told of an image that was to belong to `made_as` again. Where a share gives all its files to one user it has never
/// been another's. Pure.
fn still_theirs(made_as: Owner, now: Owner, refusal: Option<io::Error>) -> Option<String> {
    if now == made_as {
        return None;
    }
    let reason = refusal.map_or_else(|| "the share did not say why".to_owned(), |error| error.to_string());
    Some(format!(
        "its image was lent to QEMU and still belongs to user {} of group {}, who can change it: cannot give it back to user {} of \
         group {}: {reason}",
        now.user, now.group, made_as.user, made_as.group
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_an_image_that_was_given_away_and_did_not_come_back_is_told_of() {
        let (us, qemu) = (Owner { user: 0, group: 0 }, Owner { user: 64055, group: 64056 });
        let refused = || Some(io::Error::from_raw_os_error(1));
        assert_eq!(still_theirs(us, us, None), None);
        assert_eq!(still_theirs(us, us, refused()), None, "the share never let it be given away");
        assert_eq!(still_theirs(qemu, qemu, refused()), None, "all files of the share are QEMU's");
        let told = still_theirs(us, qemu, refused()).unwrap();
        assert!(told.contains("belongs to user 64055 of group 64056") && told.contains("not permitted"), "{told}");
        let silent = still_theirs(us, Owner { user: 0, ..qemu }, None).unwrap();
        assert!(silent.contains("group 64056") && silent.contains("did not say why"), "{silent}");
    }
}
