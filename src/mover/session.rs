//! What one mover holds for its job, and what each request does to it.
//!
//! Nothing here decides what comes next: the worker's plan does. A request out of its order is refused as `internal`.
//! While a backup is written its staging directory is bound, by its descriptor, on a place of the mover's own, and the
//! tools find their files there: a share whose directories are exchanged for links leads nobody anywhere.

mod copy;
mod delete;
mod left_overs;
mod new_files;
mod places;
mod push;
mod restore;
mod validate;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::image::{ImageSet, PushedSet};
use super::lease::{self, Lease, LeaseTimes, Seat};
use super::mount::{Mounted, Pinned, Place};
use super::protocol::{CredentialPlaces, Notice, Reply, Request};
use super::rbd::Keys;
use super::share::{Dir, Staging, latest_chain};
use super::{blocking, publish, seal};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::Manifest;
use crate::model::owner::Owner;
use crate::model::repository::Repository;

/// The directory of the mover in which the repository is mounted.
const SHARE: &str = "share";
/// The directory of the mover in which tools make their sockets.
pub(super) const SOCKETS: &str = "sockets";
/// The directory of the mover on which the staging directory is bound.
const STAGING: &str = "staging";

/// Where on the host a mover is at home.
#[derive(Debug)]
pub(super) struct Places {
    /// Its own directory.
    pub directory: PathBuf,
    /// Where credentials come from.
    pub credentials: CredentialPlaces,
    /// The host's mount namespace.
    pub host: OwnedFd,
    /// What process a lease is held by; none where it can't be told.
    pub seat: Option<Seat>,
}

/// The mover's side of one job.
pub(super) struct Session {
    directory: PathBuf,
    credentials: CredentialPlaces,
    keys: Keys,
    host: Arc<OwnedFd>,
    seat: Option<Seat>,
    notices: mpsc::Sender<Notice>,
    progress: watch::Sender<Option<Notice>>,
    images: Option<ImageSet>,
    pushed: Option<PushedSet>,
    pinned: Option<Pinned>,
    /// Where the backups are that the images are based on.
    bases: Vec<Pinned>,
    staging: Option<Arc<Staging>>,
    restored: restore::Restore,
    /// Directories of backups that are bound on places for the tools of a validation.
    looked: Vec<Pinned>,
    merge: delete::Merge,
    /// The number under which what is staged was to be published, when it isn't known what came of it.
    not_known: Option<u64>,
    lost: Option<AbortOnDropHandle<()>>,
    lease: Option<Lease>,
    mounted: Option<Mounted>,
}

impl Session {
    /// Nothing is mounted or held yet. Progress goes into `progress`, the loss of the lease into `notices`.
    pub fn new(places: Places, notices: mpsc::Sender<Notice>, progress: watch::Sender<Option<Notice>>) -> Self {
        Self {
            keys: Keys::new(places.directory.clone()),
            directory: places.directory,
            credentials: places.credentials,
            host: Arc::new(places.host),
            seat: places.seat,
            notices,
            progress,
            images: None,
            pushed: None,
            pinned: None,
            bases: Vec::new(),
            staging: None,
            restored: restore::Restore::default(),
            looked: Vec::new(),
            merge: delete::Merge::default(),
            not_known: None,
            lost: None,
            lease: None,
            mounted: None,
        }
    }

    /// Does what is asked. `broken_off` ends a copy, a comparison, a writing over, a merge, a sealing, a validation and a watch of somebody else's lease.
    pub async fn serve(&mut self, request: Request, broken_off: &CancellationToken) -> Result<Reply, Failure> {
        let under_the_lease = is_work_under_the_lease(&request);
        let served = self.answer(request, broken_off).await;
        // Whoever has taken it over moves and removes what is worked on, which looks like a broken share or a damaged backup.
        match (served, self.lease.as_ref().map(Lease::check)) {
            (Err(failure), Some(Err(lost))) if under_the_lease && failure.code != lost.code => {
                Err(lost.because_of(&failure))
            }
            (served, _) => served,
        }
    }

    async fn answer(&mut self, request: Request, broken_off: &CancellationToken) -> Result<Reply, Failure> {
        match request {
            Request::Open { repository, same_device_ok, need_bytes, writer } => {
                self.open(repository, same_device_ok, need_bytes, writer).await
            }
            Request::OpenToLook { repository, same_device_ok } => self.open_to_look(repository, same_device_ok).await,
            Request::Keys { keys } => {
                self.keys.replace(keys);
                Ok(Reply::Done)
            }
            Request::Lease { instance, holder } => {
                let root = self.root()?;
                if self.lease.as_ref().is_none_or(|lease| lease.instance() != instance) {
                    let times = LeaseTimes::STANDARD;
                    let taken =
                        lease::take(root.clone(), instance, (holder, self.seat.clone()), times, broken_off).await?;
                    self.hold(taken);
                }
                self.fence(root).await
            }
            Request::Stage { instance, backup, suffix } => self.stage(instance, backup, suffix).await,
            Request::Record { file, content } => {
                let staging = self.staging()?;
                blocking(move || staging.record(&file, &content)).await.map(|()| Reply::Done)
            }
            Request::Copy { disks } => self.copy(disks, broken_off).await,
            Request::Expose { place, disks, writer } => {
                or_broken_off(broken_off, self.expose(place, disks, writer)).await
            }
            Request::Inspect { changes_of, written_bytes } => {
                or_broken_off(broken_off, self.inspect(changes_of, written_bytes)).await
            }
            Request::Compare => or_broken_off(broken_off, self.compare()).await,
            Request::SourcesUnchanged => or_broken_off(broken_off, self.sources_unchanged()).await,
            Request::Seal => self.seal(broken_off).await,
            Request::Find { instance, backup } => {
                let root = self.root()?;
                let found = blocking(move || publish::find(&root, instance, backup)).await?;
                Ok(Reply::Found { manifest: Box::new(found) })
            }
            Request::Latest { instance } => {
                let root = self.root()?;
                let (backups, unreadable) = blocking(move || latest_chain(&root, instance)).await?;
                Ok(Reply::Latest { backups, unreadable })
            }
            Request::Publish { manifest } => self.publish(*manifest).await,
            Request::Restore { instance, backup, volumes, keep_previous } => {
                self.restore(instance, backup, volumes, keep_previous, broken_off).await
            }
            Request::LookAtDevices { paths } => restore::look_at_devices(paths).await,
            Request::Claim => self.claim().await,
            Request::Overwrite => self.overwrite(broken_off).await,
            // Neither is broken off: what is begun is brought to an end.
            Request::Exchange { volumes, only_go_on } => self.exchange(volumes, only_go_on).await,
            Request::RemoveFresh { volumes } => self.remove_fresh(volumes).await,
            Request::RemovePrevious { volumes } => self.remove_previous(volumes).await,
            Request::LookAtImages { images } => {
                or_broken_off(broken_off, restore::look_at_images(images, self.keys.clone())).await
            }
            Request::ReadRecord { instance, backup, file } => self.read_record(instance, backup, file).await,
            Request::LookAtNew { new } => new_files::look_at_new(new).await,
            Request::Weigh { wanted } => self.weigh(wanted).await,
            Request::MakeNew { instance, backup, new } => self.make_new(instance, backup, new, broken_off).await,
            // None is broken off: what is begun is brought to an end.
            Request::PlaceNew { new } => self.place_new(new).await,
            Request::TakeBackNew { new } => self.take_back_new(new).await,
            Request::RemoveNew { new } => self.remove_new(new).await,
            Request::Validate { wanted } => self.validate(*wanted, broken_off).await,
            Request::Sweep { instance, holder } => self.sweep(instance, holder, broken_off).await,
            Request::Chains { instance } => self.chains(instance).await,
            Request::Merge { instance, merger, suffix } => self.merge(instance, merger, suffix, broken_off).await,
            Request::Delete { instance, merger, backups } => self.delete(instance, merger, backups).await,
            Request::RemoveDeleted { instance } => self.remove_deleted(instance).await,
            Request::Discard => self.discard().await,
            Request::Release => self.release().await,
            Request::Close => self.close().await,
        }
    }

    async fn open(
        &mut self,
        repository: Repository,
        same_device_ok: bool,
        need_bytes: u64,
        writer: Option<Owner>,
    ) -> Result<Reply, Failure> {
        if self.mounted.is_some() {
            return Err(out_of_order("open", "close"));
        }
        let place = Place {
            mount_point: self.directory.join(SHARE),
            private: self.directory.clone(),
            credentials: self.credentials.clone(),
            same_device_ok,
            writer,
        };
        let (mounted, proof) = Mounted::open(&repository, &place, need_bytes).await?;
        self.mounted = Some(mounted);
        Ok(Reply::Opened { free_bytes: proof.free_bytes, warnings: proof.warnings })
    }

    fn hold(&mut self, lease: Lease) {
        let (lost, notices) = (lease.lost(), self.notices.clone());
        self.lease = Some(lease);
        self.lost = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let failure = lost.await;
            // A loop that ended needs no notice.
            let _ended = notices.send(Notice::LeaseLost { failure }).await;
        })));
    }

    /// The second half of taking a lease. May be asked for again, for as long as nothing of our own is staged.
    async fn fence(&mut self, root: Arc<Dir>) -> Result<Reply, Failure> {
        let lease = self.lease.as_ref().ok_or_else(|| out_of_order("fence", "lease"))?;
        let number = lease.number();
        lease.confirm().await?;
        if self.staging.is_some() {
            return Ok(Reply::Leased { number });
        }
        left_overs::clear(lease, root).await?;
        Ok(Reply::Leased { number })
    }

    async fn stage(&mut self, instance: InstanceId, backup: BackupId, suffix: String) -> Result<Reply, Failure> {
        let root = self.root()?;
        self.lease.as_ref().ok_or_else(|| out_of_order("stage", "lease"))?.check()?;
        self.leave_staging().await?;
        let place = self.directory.join(STAGING);
        let (staging, pinned) = blocking(move || {
            let staging = Staging::make(&root, instance, backup, &suffix)?;
            let pinned = Pinned::new(&staging.dir, place);
            Ok((staging, pinned))
        })
        .await?;
        self.not_known = None;
        // Known before anything else can fail, so that `discard` finds it.
        self.staging = Some(Arc::new(staging));
        self.pinned = Some(pinned?);
        Ok(Reply::Done)
    }

    async fn compare(&mut self) -> Result<Reply, Failure> {
        if let Some(compared) = self.compare_restored().await {
            return compared;
        }
        let images = self.images.as_mut().ok_or_else(|| out_of_order("compare", "copy"))?;
        images.compare(&reporter(&self.progress)).await?;
        Ok(Reply::Done)
    }

    async fn sources_unchanged(&mut self) -> Result<Reply, Failure> {
        let images = self.images.as_mut().ok_or_else(|| out_of_order("compare", "copy"))?;
        images.sources_unchanged(&reporter(&self.progress)).await?;
        Ok(Reply::Done)
    }

    async fn seal(&mut self, broken_off: &CancellationToken) -> Result<Reply, Failure> {
        let staging = self.staging()?;
        // Given back only when all are good: what is broken off half-way is not sealed by asking once more.
        if let Some(pushed) = self.pushed.take() {
            or_broken_off(broken_off, pushed.check()).await?;
        } else {
            let mut images = self.images.take().ok_or_else(|| out_of_order("seal", "copy"))?;
            or_broken_off(broken_off, images.check()).await?;
            self.images = Some(images);
        }
        // Not broken off: its thread would go on in the directory that is to be discarded. The images are long on the disk.
        blocking(move || seal::seal(&staging)).await.map(|files| Reply::Sealed { files })
    }

    async fn publish(&mut self, manifest: Manifest) -> Result<Reply, Failure> {
        let root = self.root()?;
        let Some(staging) = self.staging.clone() else {
            let found = blocking(move || publish::published_before(&root, &manifest)).await?;
            return found.map(published).ok_or_else(|| out_of_order("publish", "stage"));
        };
        let done = if let Some(number) = self.not_known {
            blocking(move || publish::look_again(&staging, &manifest, number)).await
        } else {
            let lease = self.lease.as_ref().ok_or_else(|| out_of_order("publish", "lease"))?;
            lease.confirm().await?;
            let lease = lease.number();
            // On CIFS a directory can't be renamed while anything in it is open.
            self.leave_staging().await?;
            blocking(move || publish::publish(&staging, manifest, lease)).await
        };
        self.not_known = match &done {
            Ok(publish::Outcome::NotKnown { number, .. }) => Some(*number),
            _ => None,
        };
        match done? {
            publish::Outcome::Published(done) => {
                self.staging = None;
                Ok(published(done))
            }
            publish::Outcome::NotKnown { failure, .. } => Ok(Reply::NotKnown { failure }),
        }
    }

    async fn discard(&mut self) -> Result<Reply, Failure> {
        self.discard_merged().await?;
        self.leave_staging().await?;
        if let Some(staging) = self.staging.clone() {
            blocking(move || staging.discard()).await?;
            self.staging = None;
        }
        Ok(Reply::Done)
    }

    async fn release(&mut self) -> Result<Reply, Failure> {
        self.lost = None;
        if let Some(mut lease) = self.lease.take()
            && let Err(failure) = lease.release().await
        {
            self.hold(lease);
            return Err(failure);
        }
        Ok(Reply::Done)
    }

    async fn close(&mut self) -> Result<Reply, Failure> {
        self.leave_staging().await?;
        self.leave_restored().await;
        self.leave_looked().await;
        self.leave_merge().await;
        self.merge = delete::Merge::default();
        self.staging = None;
        self.lost = None;
        if let Some(mut lease) = self.lease.take() {
            lease.stop().await;
        }
        let warnings = match self.mounted.take() {
            Some(mounted) => blocking(move || Ok(mounted.close())).await?.into_iter().collect(),
            None => Vec::new(),
        };
        Ok(Reply::Closed { warnings })
    }

    /// Ends the tools and gives the bound path up; the staging directory itself stays.
    async fn leave_staging(&mut self) -> Result<(), Failure> {
        self.images = None;
        self.pushed = None;
        self.leave_bases().await?;
        if let Some(pinned) = self.pinned.take()
            && let Some(warning) = blocking(move || Ok(pinned.close())).await?
        {
            tracing::warn!(warning, "a tool is slow to end");
        }
        Ok(())
    }

    fn root(&self) -> Result<Arc<Dir>, Failure> {
        self.mounted.as_ref().map(|mounted| mounted.root.clone()).ok_or_else(|| out_of_order("work", "open"))
    }

    fn staging(&self) -> Result<Arc<Staging>, Failure> {
        self.staging.clone().ok_or_else(|| out_of_order("write", "stage"))
    }
}

/// Reads or writes what whoever takes the lease over may move and remove. What commits, undoes or is about volumes alone says for itself what
/// came of it, whosever the lease is.
fn is_work_under_the_lease(request: &Request) -> bool {
    matches!(
        request,
        Request::Stage { .. }
            | Request::Record { .. }
            | Request::Copy { .. }
            | Request::Expose { .. }
            | Request::Inspect { .. }
            | Request::Compare
            | Request::SourcesUnchanged
            | Request::Seal
            | Request::Find { .. }
            | Request::Latest { .. }
            | Request::Restore { .. }
            | Request::ReadRecord { .. }
            | Request::MakeNew { .. }
            | Request::Chains { .. }
            | Request::Merge { .. }
    )
}

/// Nothing of those names is there any more, and what will be is ours.
fn make_room(staging: &Staging, targets: &[DiskTarget]) -> Result<(), Failure> {
    for target in targets {
        let image = format!("{target}.qcow2");
        for file in [&image, &format!("{target}.blocks")] {
            staging.dir.remove_file(file)?;
        }
        staging.note_made(&image, None);
    }
    Ok(())
}

fn published(done: publish::Published) -> Reply {
    Reply::Published { number: done.number, warnings: done.warnings }
}

fn reporter(progress: &watch::Sender<Option<Notice>>) -> impl Fn(u64, u64, u64) + Sync + use<'_> {
    |done_bytes, total_bytes, data_bytes| {
        progress.send_replace(Some(Notice::Progress { done_bytes, total_bytes, data_bytes }));
    }
}

async fn or_broken_off<T>(
    broken_off: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        result = work => result,
        () = broken_off.cancelled() => Err(Failure::new(Code::Interrupted, "the worker asked for something else")),
    }
}

fn out_of_order(asked: &str, missing: &str) -> Failure {
    Failure::new(Code::Internal, format!("the mover was asked to {asked} without `{missing}` before"))
}
