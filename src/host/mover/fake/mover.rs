//! One fake mover: what each request does to the world.

mod devices;
mod keys;
mod new_files;
mod pushed;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::repository::{FakeFile, FakeRepository};
use super::{FakeMovers, FakeVolume, Mover, MoverName};
use crate::failure::{Code, Failure};
use crate::host::mover::Progress;
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::{BasedOn, ChangesFoundBy, Manifest};
use crate::model::repository::Repository;
use crate::mover::protocol::{
    ByteSource, CopiedDisk, CopyDisk, Merger, PushTarget, Reply, Request, RestoredVolume, SealedFile,
};
use keys::Keys;

/// Size of a disk that nobody gave one.
const VIRTUAL_BYTES: u64 = 64 << 20;
/// Length of every image.
const IMAGE_BYTES: u64 = 256 << 10;

pub(super) struct FakeMover {
    movers: FakeMovers,
    key: u64,
    name: MoverName,
    lost: Option<oneshot::Receiver<Failure>>,
    progress: watch::Sender<Progress>,
    lease: Option<InstanceId>,
    staging: Option<(InstanceId, BackupId, String)>,
    copied_bytes: Option<u64>,
    pushed: Option<Vec<PushTarget>>,
    inspected: bool,
    restored_bytes: Option<u64>,
    over: devices::Over,
    merged: Option<(InstanceId, String)>,
    keys: Keys,
}

impl FakeMover {
    pub fn new(
        movers: FakeMovers,
        key: u64,
        name: MoverName,
        lost: oneshot::Receiver<Failure>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let lost = Some(lost);
        Self {
            movers,
            key,
            name,
            lost,
            progress,
            lease: None,
            staging: None,
            copied_bytes: None,
            pushed: None,
            inspected: false,
            restored_bytes: None,
            over: devices::Over::default(),
            merged: None,
            keys: Keys::default(),
        }
    }

    /// Waits for as long as the request hangs; an error when the mover is killed meanwhile.
    async fn may_go_on(&self, word: &str) -> Result<(), Failure> {
        loop {
            let mut changed = std::pin::pin!(self.movers.changed.notified());
            changed.as_mut().enable();
            {
                let mut world = self.movers.world();
                let hangs = world.hangs.contains(word);
                let Some(alive) = world.movers.get_mut(&self.key) else {
                    let text = format!("mover `{}` ended when it was asked to {word}", self.name);
                    return Err(Failure::new(Code::MoverDied, text));
                };
                alive.hangs_at = hangs.then(|| word.to_owned());
                if !hangs {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn act(&mut self, request: Request) -> Result<Reply, Failure> {
        self.keys.must_do_for(&request)?;
        match request {
            Request::Open { repository, same_device_ok, need_bytes, .. } => {
                self.open(&repository, same_device_ok, need_bytes)
            }
            Request::OpenToLook { repository, same_device_ok } => {
                self.mount(&repository, same_device_ok, |_| Ok(())).map(|()| Reply::Done)
            }
            Request::Keys { keys } => {
                self.keys = Keys(keys);
                Ok(Reply::Done)
            }
            Request::Lease { instance, .. } => {
                let (key, again) = (self.key, self.lease == Some(instance));
                let number =
                    self.share(|share| if again { share.leased(instance, key) } else { share.lease(instance, key) })?;
                self.lease = Some(instance);
                Ok(Reply::Leased { number })
            }
            Request::Stage { instance, backup, suffix } => {
                self.check_lease("stage")?;
                let name = format!(".staging-{backup}.{suffix}");
                self.share(|share| share.stage(instance, backup, &name))?;
                self.staging = Some((instance, backup, name));
                Ok(Reply::Done)
            }
            Request::Record { file, content } => self.write(file, FakeFile::Small(content)),
            Request::Copy { disks } => self.copy(&disks),
            Request::Expose { place, disks, .. } => self.expose(place, disks),
            Request::Inspect { changes_of, written_bytes } => self.inspect(&changes_of, written_bytes),
            Request::Compare => {
                let bytes = self.restored_bytes.or(self.copied_bytes);
                let bytes = bytes.ok_or_else(|| out_of_order("compare", "copy"))?;
                self.report(bytes);
                let warnings = self.movers.warnings_of("compare");
                Ok(if warnings.is_empty() { Reply::Done } else { Reply::DoneBut { warnings } })
            }
            Request::SourcesUnchanged => {
                self.copied_bytes.map(|_| Reply::Done).ok_or_else(|| out_of_order("compare", "copy"))
            }
            Request::Seal => self.seal(),
            Request::Find { instance, backup } => {
                let manifest = Box::new(self.share(|share| share.find(instance, backup))?);
                Ok(Reply::Found { manifest })
            }
            Request::Latest { instance } => {
                let backups = self.share(|share| Ok(share.latest_chain(instance)))?;
                Ok(Reply::Latest { backups, unreadable: 0 })
            }
            Request::Publish { manifest } => self.publish(*manifest),
            Request::Restore { instance, backup, volumes, .. } => self.restore(instance, backup, &volumes),
            Request::LookAtDevices { paths } => self.look_at_devices(&paths),
            Request::Claim => self.claim(),
            Request::Overwrite => self.overwrite(),
            Request::Exchange { volumes, only_go_on } => {
                self.restored_bytes = None;
                self.movers.world().volumes.exchange(&volumes, only_go_on).map(|()| Reply::Done)
            }
            Request::RemoveFresh { volumes } => {
                self.restored_bytes = None;
                self.movers.world().volumes.remove_fresh(&volumes);
                Ok(Reply::Done)
            }
            Request::RemovePrevious { volumes } => {
                self.movers.world().volumes.remove_previous(&volumes).map(|()| Reply::Done)
            }
            Request::LookAtImages { images } => {
                Ok(Reply::Images { there: self.movers.world().volumes.images_there(images) })
            }
            Request::ReadRecord { instance, backup, file } => {
                let content = self.share(|share| share.record(instance, backup, &file))?;
                Ok(Reply::Record { content })
            }
            Request::LookAtNew { new } => self.look_at_new(&new),
            Request::Weigh { wanted } => self.weigh(&wanted),
            Request::MakeNew { instance, backup, new } => self.make_new(instance, backup, &new),
            Request::PlaceNew { new } => self.place_new(&new),
            Request::TakeBackNew { new } => self.take_back_new(&new),
            Request::RemoveNew { new } => self.remove_new(&new),
            Request::Validate { wanted } => {
                let (validation, left_overs) = self.share(|share| share.validate(&wanted))?;
                self.report(validation.bytes_read);
                Ok(Reply::Validated { validation: Box::new(validation), left_overs })
            }
            Request::Sweep { instance, .. } => {
                let key = self.key;
                let removed = self.share(|share| share.sweep(instance, key))?;
                Ok(Reply::Swept { removed })
            }
            Request::Chains { instance } => {
                let members = self.share(|share| Ok(share.members(instance)))?;
                Ok(Reply::Chains { members })
            }
            Request::Merge { instance, merger, suffix } => self.merge(instance, merger, &suffix),
            Request::Delete { instance, merger, backups } => {
                self.check_lease_of("delete", instance)?;
                let merged = self.merged.clone().map(|(_, name)| name);
                self.share(|share| share.delete(instance, merger, merged.as_deref(), &backups))?;
                Ok(Reply::Done)
            }
            Request::RemoveDeleted { instance } => {
                self.check_lease_of("remove", instance)?;
                self.share(|share| {
                    share.remove_deleted(instance);
                    Ok(Reply::Done)
                })
            }
            Request::Discard => {
                self.discard_merged()?;
                if let Some((instance, _, name)) = self.staging.take() {
                    self.share(|share| {
                        share.discard(instance, &name);
                        Ok(())
                    })?;
                }
                self.copied_bytes = None;
                (self.pushed, self.inspected) = (None, false);
                Ok(Reply::Done)
            }
            Request::Release => {
                let key = self.key;
                if let Some(instance) = self.lease.take() {
                    self.share(|share| {
                        share.release(instance, key);
                        Ok(())
                    })?;
                }
                Ok(Reply::Done)
            }
            Request::Close => {
                self.close();
                Ok(Reply::Closed { warnings: Vec::new() })
            }
        }
    }

    fn open(&mut self, wanted: &Repository, same_device_ok: bool, need_bytes: u64) -> Result<Reply, Failure> {
        let address = &wanted.address;
        let free_bytes = self.mount(wanted, same_device_ok, |found| {
            let free_bytes = found.free_bytes;
            if found.read_only {
                return Err(Failure::new(Code::RepositoryReadOnly, format!("`{address}` cannot be written to")));
            }
            if free_bytes < need_bytes {
                return Err(Failure::new(Code::RepositoryFull, format!("`{address}` has {free_bytes} bytes free")));
            }
            Ok(free_bytes)
        })?;
        Ok(Reply::Opened { free_bytes, warnings: Vec::new() })
    }

    fn mount<T>(
        &mut self,
        wanted: &Repository,
        same_device_ok: bool,
        prove: impl FnOnce(&FakeRepository) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let address = &wanted.address;
        let mut world = self.movers.world();
        let Some(found) = world.repositories.get(address) else {
            return Err(Failure::new(Code::RepositoryNotFound, format!("there is no directory `{address}`")));
        };
        if found.same_device && !same_device_ok {
            return Err(Failure::new(Code::RepositoryNotSeparate, format!("nothing is mounted at `{address}`")));
        }
        if found.id != wanted.id {
            let text = format!("`{address}` holds the repository `{}` and not `{}`", found.id, wanted.id);
            return Err(Failure::new(Code::RepositoryIdentityMismatch, text));
        }
        let proof = prove(found)?;
        if let Some(alive) = world.movers.get_mut(&self.key) {
            alive.mounted = Some(address.clone());
        }
        Ok(proof)
    }

    fn copy(&mut self, disks: &[CopyDisk]) -> Result<Reply, Failure> {
        for disk in disks {
            self.write(format!("{}.qcow2", disk.target), FakeFile::Image(IMAGE_BYTES))?;
        }
        let sizes = disks.iter().map(|disk| (disk.target.clone(), disk.virtual_bytes.unwrap_or(VIRTUAL_BYTES)));
        let mut reply = self.record_blocks(sizes.collect())?;
        let (instance, ..) = self.staging.clone().ok_or_else(|| out_of_order("copy", "stage"))?;
        if let Reply::Copied { disks: copied, .. } = &mut reply {
            for (wanted, copied) in disks.iter().zip(copied) {
                let Some(base) = &wanted.base else { continue };
                let (backup_id, content_root) = (base.backup, base.content_root.clone());
                match self.share(|share| share.holds(instance, base, &wanted.target)) {
                    Ok(()) => {
                        let found_by = match &wanted.source {
                            ByteSource::Export { dirty: Some(_), .. } | ByteSource::Volume { bitmap: Some(_), .. } => {
                                ChangesFoundBy::Bitmap
                            }
                            _ => ChangesFoundBy::Hashes,
                        };
                        copied.based_on = Some(BasedOn { backup_id, content_root, found_by });
                    }
                    Err(failure) => copied.full_reason = Some(format!("{failure:#}")),
                }
            }
        }
        Ok(reply)
    }

    fn record_blocks(&mut self, disks: Vec<(DiskTarget, u64)>) -> Result<Reply, Failure> {
        let mut total = 0;
        let mut copied = Vec::new();
        for (target, virtual_bytes) in disks {
            let content_root = blake3::hash(target.as_str().as_bytes()).to_hex().to_string();
            self.write(format!("{target}.blocks"), FakeFile::Small(content_root.clone().into_bytes()))?;
            total += virtual_bytes;
            copied.push(CopiedDisk {
                target,
                virtual_bytes,
                data_bytes: IMAGE_BYTES,
                content_root,
                based_on: None,
                full_reason: None,
            });
        }
        self.report(total);
        self.copied_bytes = Some(total);
        Ok(Reply::Copied { disks: copied, warnings: Vec::new() })
    }

    fn seal(&mut self) -> Result<Reply, Failure> {
        let (instance, _, name) = self.staging.clone().ok_or_else(|| out_of_order("seal", "stage"))?;
        if self.copied_bytes.is_none() && !self.inspected {
            return Err(out_of_order("seal", "copy"));
        }
        let sealed = |(file, content): (&String, &FakeFile)| SealedFile {
            file: file.clone(),
            bytes: content.bytes(),
            blake3: match content {
                FakeFile::Small(content) => Some(blake3::hash(content).to_hex().to_string()),
                FakeFile::Image(_) => None,
            },
        };
        let files = self.share(|share| Ok(share.files(instance, &name)?.iter().map(sealed).collect()))?;
        Ok(Reply::Sealed { files })
    }

    fn publish(&mut self, manifest: Manifest) -> Result<Reply, Failure> {
        let Some((instance, backup, name)) = self.staging.clone() else {
            let found = self.share(|share| Ok(share.published_before(&manifest)))?;
            let number = found.ok_or_else(|| out_of_order("publish", "stage"))?;
            return Ok(Reply::Published { number, warnings: Vec::new() });
        };
        self.check_lease("publish")?;
        if (manifest.instance_id, manifest.backup_id) != (instance, backup) {
            return Err(Failure::new(Code::Internal, "the manifest is that of another backup than was staged"));
        }
        let number = self.share(|share| share.publish(&name, manifest))?;
        (self.staging, self.copied_bytes) = (None, None);
        Ok(Reply::Published { number, warnings: Vec::new() })
    }

    fn restore(
        &mut self,
        instance: InstanceId,
        backup: BackupId,
        volumes: &[RestoredVolume],
    ) -> Result<Reply, Failure> {
        self.check_lease_of("restore", instance)?;
        self.restored_bytes = None;
        let wanted = volumes.iter().map(|volume| (&volume.disk, volume.virtual_bytes, volume.content_root.as_str()));
        let disks = self.share(|share| share.restorable(instance, backup, wanted))?;
        self.movers.world().volumes.restore(volumes, backup)?;
        let total = disks.iter().map(|disk| disk.virtual_bytes).sum();
        self.report(total);
        self.restored_bytes = Some(total);
        self.over = devices::Over::of(volumes, backup);
        Ok(Reply::Copied { disks, warnings: Vec::new() })
    }

    fn merge(&mut self, instance: InstanceId, merger: Merger, suffix: &str) -> Result<Reply, Failure> {
        self.check_lease_of("merge", instance)?;
        self.discard_merged()?;
        let name = format!(".merging-{}.{suffix}", merger.child);
        let (bytes, replaced_bytes) = self.share(|share| share.merge(instance, merger, &name))?;
        self.merged = Some((instance, name));
        self.report(bytes);
        Ok(Reply::Merged { bytes, replaced_bytes })
    }

    fn discard_merged(&mut self) -> Result<(), Failure> {
        match self.merged.take() {
            Some((instance, name)) => self.share(|share| {
                share.discard(instance, &name);
                Ok(())
            }),
            None => Ok(()),
        }
    }

    fn write(&mut self, file: String, content: FakeFile) -> Result<Reply, Failure> {
        let (instance, _, name) = self.staging.clone().ok_or_else(|| out_of_order("write", "stage"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if file.is_empty() || file.starts_with('.') || !file.bytes().all(plain) || file == Manifest::FILE {
            return Err(Failure::new(Code::Internal, format!("`{file}` cannot be the name of a record")));
        }
        self.share(|share| Ok(share.files(instance, &name)?.insert(file, content)))?;
        Ok(Reply::Done)
    }

    fn check_lease(&self, asked: &str) -> Result<(), Failure> {
        let instance = self.lease.ok_or_else(|| out_of_order(asked, "lease"))?;
        self.share(|share| share.check_lease(instance, self.key))
    }

    fn check_lease_of(&self, asked: &str, instance: InstanceId) -> Result<(), Failure> {
        self.share(|_| Ok(()))?;
        self.check_lease(asked)?;
        if self.lease == Some(instance) { Ok(()) } else { Err(out_of_order(asked, "lease")) }
    }

    fn share<T>(&self, work: impl FnOnce(&mut FakeRepository) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut world = self.movers.world();
        let mounted = world.movers.get(&self.key).and_then(|alive| alive.mounted.clone());
        let address = mounted.ok_or_else(|| out_of_order("work", "open"))?;
        let gone = || Failure::new(Code::RepositoryIo, format!("`{address}` is gone"));
        work(world.repositories.get_mut(&address).ok_or_else(gone)?)
    }

    fn report(&self, bytes: u64) {
        self.progress.send_replace(Progress { done_bytes: bytes, total_bytes: bytes, data_bytes: IMAGE_BYTES });
    }

    fn close(&mut self) {
        self.staging = None;
        self.copied_bytes = None;
        (self.pushed, self.inspected, self.restored_bytes, self.merged) = (None, false, None, None);
        let held = self.lease.take();
        let mut world = self.movers.world();
        if held.is_some() {
            // Not given back: it ages, as one whose holder died.
            world.repositories.values_mut().for_each(|repository| repository.holder_died(self.key));
        }
        if let Some(alive) = world.movers.get_mut(&self.key) {
            alive.mounted = None;
        }
    }
}

#[async_trait]
impl Mover for FakeMover {
    async fn ask(&mut self, request: Request, deadline: Duration) -> Result<Reply, Failure> {
        let word = request.word();
        let unresponsive = Failure::new(
            Code::MoverUnresponsive,
            format!("mover `{}` did not answer `{word}` within {} s", self.name, deadline.as_secs()),
        );
        let work = async {
            self.may_go_on(word).await?;
            if let Some(answer) = self.movers.scripted(word, false) {
                return answer;
            }
            let mut done = self.act(request)?;
            if let Some(answer) = self.movers.scripted(word, true) {
                return answer;
            }
            if let Some(warnings) = warnings(&mut done) {
                warnings.extend(self.movers.warnings_of(word));
            }
            Ok(done)
        };
        timeout(deadline, work).await.unwrap_or(Err(unresponsive))
    }

    fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn lost(&mut self) -> Option<oneshot::Receiver<Failure>> {
        self.lost.take()
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        self.may_go_on("stop").await.ok();
        self.movers.must_not_fail("stop")?;
        self.movers.end(self.key);
        Ok(())
    }
}

impl Drop for FakeMover {
    fn drop(&mut self) {
        self.movers.end(self.key);
    }
}

fn warnings(reply: &mut Reply) -> Option<&mut Vec<String>> {
    match reply {
        Reply::Opened { warnings, .. }
        | Reply::Copied { warnings, .. }
        | Reply::Published { warnings, .. }
        | Reply::Closed { warnings } => Some(warnings),
        _ => None,
    }
}

fn out_of_order(asked: &str, missing: &str) -> Failure {
    Failure::new(Code::Internal, format!("the mover was asked to {asked} without `{missing}` before"))
}
