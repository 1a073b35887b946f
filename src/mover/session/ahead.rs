//! Disks of a validation that are made ready to be read while another one is: headers looked at, directories bound, the image checked, a
//! server started. Of a chain of many small images that is most of the work, and it is not the share that it keeps busy.
//!
//! It promises that never more than [`AHEAD_MAX`] are ahead, that they come in the order in which they were begun, and that whatever was
//! bound for one is given up with it ([`Ready::leave`]). What is found on one that turns out not to be worth a look is not told.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::or_broken_off;
use super::places::{Places, unbind};
use crate::failure::Failure;
use crate::model::id::{BackupId, DiskTarget};
use crate::model::validation::{Finding, FindingCode};
use crate::mover::blocking;
use crate::mover::mount::Pinned;
use crate::mover::validate::examine::{DiskAt, ToRead, Tools};

/// Disks that are ready, or being made so, while another one is read: each has a tool of QEMU's. A check has one request under way, so that
/// all of them ask less of the share than one that is read.
const AHEAD_MAX: usize = 3;

/// Bytes of all disks that are ahead, at most, where it is more than one: the hashes of one take about 60 bytes a MiB.
const AHEAD_BYTES_MAX: u64 = 1 << 40;

/// How often something is told while a disk is waited for: a check is one call, with a deadline of its own.
const WAITING_TELLS: Duration = Duration::from_secs(5);

/// A disk that was made ready.
pub(super) struct Ready {
    /// The disk.
    pub at: DiskAt,
    /// What was found so far.
    pub found: Vec<Finding>,
    /// What there is to be read.
    pub to_read: Option<ToRead>,
    /// Why it is not known what else there is.
    pub failed: Option<Failure>,
    bound: Vec<Pinned>,
}

impl Ready {
    fn new(at: DiskAt) -> Self {
        Self { at, found: Vec::new(), to_read: None, failed: None, bound: Vec::new() }
    }

    async fn make(mut self, tools: Tools, own: PathBuf, number: usize, broken_off: CancellationToken) -> Self {
        self.failed = self.get_ready(&tools, &own, number, &broken_off).await.err();
        self
    }

    async fn get_ready(
        &mut self,
        tools: &Tools,
        own: &Path,
        number: usize,
        broken_off: &CancellationToken,
    ) -> Result<(), Failure> {
        let (root, opening) = (tools.root.clone(), self.at.clone());
        let (found, opened) = or_broken_off(broken_off, blocking(move || opening.open(&root))).await?;
        self.found = found;
        let Some(opened) = opened else { return Ok(()) };
        let own = own.to_owned();
        let links: Vec<_> = opened.links.iter().map(|link| (link.dir.clone(), link.image.clone())).collect();
        // Not broken off: what its thread binds after that, nobody would give up.
        let bound = blocking(move || {
            let mut places = Places::numbered(&own, number);
            let images: Vec<PathBuf> = links.iter().map(|(dir, image)| places.of(dir).join(image)).collect();
            places.bind().map(|bound| (bound, images))
        });
        let images = match bound.await {
            Ok((bound, images)) => {
                self.bound = bound;
                images
            }
            Err(failure) => {
                let finding = self.at.off_the_thread(tools, failure, FindingCode::Unreadable);
                self.found.push(or_broken_off(broken_off, finding).await?);
                return Ok(());
            }
        };
        let (found, to_read) = or_broken_off(broken_off, self.at.check(tools, opened, images)).await?;
        self.found.extend(found);
        self.to_read = to_read;
        Ok(())
    }

    /// Gives up what it holds.
    pub async fn leave(mut self) {
        if let Some(to_read) = self.to_read.take() {
            to_read.give_up().await;
        }
        leave(std::mem::take(&mut self.bound)).await;
    }
}

/// Gives up paths that were bound for tools.
async fn leave(bound: Vec<Pinned>) {
    let unbound = blocking(move || {
        unbind(bound);
        Ok(())
    });
    if let Err(failure) = unbound.await {
        tracing::warn!(failure = format!("{failure:#}"), "cannot give up the places of a validation");
    }
}

/// The disks that are ahead, in order.
pub(super) struct Ahead {
    tools: Tools,
    own: PathBuf,
    broken_off: CancellationToken,
    /// Those that are being made ready, after those that are.
    begun: FuturesOrdered<BoxFuture<'static, Ready>>,
    ready: VecDeque<Ready>,
    /// All of them.
    names: VecDeque<(BackupId, DiskTarget, u64)>,
    numbers: usize,
}

impl Ahead {
    /// None, in the mover's directory `own`.
    pub fn new(tools: Tools, own: PathBuf, broken_off: CancellationToken) -> Self {
        let (begun, ready, names) = Default::default();
        Self { tools, own, broken_off, begun, ready, names, numbers: 0 }
    }

    /// Whether the disk may be begun.
    pub fn has_room_for(&self, virtual_bytes: u64) -> bool {
        let bytes = self.names.iter().fold(virtual_bytes, |sum, (_, _, bytes)| sum.saturating_add(*bytes));
        // Who wants it slow wants one after another.
        let several = self.tools.wanted.max_bytes_per_second.is_none() && bytes <= AHEAD_BYTES_MAX;
        self.names.is_empty() || (several && self.names.len() < AHEAD_MAX)
    }

    /// Begins to make a disk ready.
    pub fn begin(&mut self, at: DiskAt) {
        self.names.push_back((at.backup, at.disk.target.clone(), at.disk.virtual_bytes));
        // One that is read has a number as well.
        let number = self.numbers % (AHEAD_MAX + 1);
        self.numbers += 1;
        let (tools, own, broken_off) = (self.tools.clone(), self.own.clone(), self.broken_off.clone());
        self.begun.push_back(Box::pin(Ready::new(at).make(tools, own, number, broken_off)));
    }

    /// The next one, if it is that disk.
    pub async fn take(&mut self, backup: BackupId, target: &DiskTarget) -> Option<Ready> {
        self.names.front().filter(|(of, name, _)| *of == backup && name == target)?;
        self.names.pop_front();
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            tokio::select! {
                ready = self.begun.next() => return ready,
                () = sleep(WAITING_TELLS) => self.tools.telling.tell(0),
            }
        }
    }

    /// Does the work while those that were begun go on.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(ready) = self.begun.next() => self.ready.push_back(ready),
            }
        }
    }

    /// Gives all of them up, once what they do has come to an end.
    pub async fn leave(mut self) {
        while let Some(ready) = self.begun.next().await {
            self.ready.push_back(ready);
        }
        for ready in self.ready {
            ready.leave().await;
        }
    }
}
