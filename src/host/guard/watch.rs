//! A guard's life between being armed and its end: it answers orders, watches the clock and the scratch, and fires.
//! The same code runs in the guard process and, for the fake, as a task beside the fake hypervisor.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::protocol::{Answer, Order};
use super::rescue::rescue;
use super::{GuardDuty, PullDuty};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;

/// How often the scratch files are measured.
const SCRATCH_PERIOD: Duration = Duration::from_millis(500);

/// Part of the scratch limit at which the job is ended, per cent: what is under way in QEMU still has to fit.
const SCRATCH_END_PERCENT: u64 = 80;

/// An order with the way back for its answer.
pub(super) type Asked = (Order, oneshot::Sender<Answer>);

/// Watches until it is disarmed, or until the worker is gone and what it left is cleared up.
pub(super) async fn watch(
    hypervisor: Arc<dyn Hypervisor>,
    duty: GuardDuty,
    mut orders: mpsc::Receiver<Asked>,
) -> Result<(), Failure> {
    let mut post = Post { hypervisor, duty, frozen_until: None, froze: false, fired: None, rescue: None };
    let mut scratch = interval(SCRATCH_PERIOD);
    scratch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            asked = orders.recv() => match asked {
                Some((Order::Disarm, answer)) => {
                    // Whoever asked may be gone by now, which changes nothing.
                    let _ = answer.send(post.answer());
                    post.stand_down();
                    return Ok(());
                }
                Some((order, answer)) => {
                    post.follow(&order);
                    let _ = answer.send(post.answer());
                }
                None => {
                    return post.finish().await;
                }
            },
            () = until(post.frozen_until) => {
                let limit = format!("the guest was not thawed within {:?}", post.duty.freeze_limit);
                post.fire(Code::GuardFired, &limit);
            }
            _ = scratch.tick(), if post.watches_scratch() => post.look_at_scratch().await,
        }
    }
}

/// Sleeps until then, or for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

struct Post {
    hypervisor: Arc<dyn Hypervisor>,
    duty: GuardDuty,
    /// When the guest must be thawed; none when it isn't to be frozen, or after firing.
    frozen_until: Option<Instant>,
    /// The guest may be frozen: a freeze was announced and no thaw confirmed.
    froze: bool,
    fired: Option<Failure>,
    rescue: Option<JoinHandle<()>>,
}

impl Post {
    fn answer(&self) -> Answer {
        Answer { refused: None, fired: self.fired.clone() }
    }

    fn follow(&mut self, order: &Order) {
        match order {
            Order::Freezing if self.fired.is_none() => {
                self.froze = true;
                self.frozen_until = Some(Instant::now() + self.duty.freeze_limit);
            }
            Order::Thawed => {
                self.froze = false;
                self.frozen_until = None;
            }
            Order::Freezing | Order::Fired | Order::Arm { .. } | Order::Disarm => {}
        }
    }

    fn fire(&mut self, code: Code, why: &str) {
        self.frozen_until = None;
        if self.fired.is_some() {
            return;
        }
        let text = format!("the guard of instance `{}` ended the moment or the job: {why}", self.duty.instance);
        self.fired = Some(Failure::new(code, text));
        let (hypervisor, duty, froze) = (Arc::clone(&self.hypervisor), self.duty.clone(), self.froze);
        self.rescue = Some(tokio::spawn(async move {
            // What it could not do is tried again when the worker goes; until then the worker is told that it fired.
            if let Err(failure) = rescue(hypervisor.as_ref(), &duty, froze).await {
                tracing::error!("{failure:#}");
            }
        }));
    }

    /// The rescue of a worker that is gone. One that ran before may have ended before the worker's last call took effect,
    /// so it begins anew.
    async fn finish(mut self) -> Result<(), Failure> {
        self.stand_down();
        rescue(self.hypervisor.as_ref(), &self.duty, self.froze).await
    }

    fn stand_down(&mut self) {
        if let Some(rescue) = self.rescue.take() {
            rescue.abort();
        }
    }

    fn watches_scratch(&self) -> bool {
        self.fired.is_none() && self.duty.pull.is_some()
    }

    async fn look_at_scratch(&mut self) {
        let Some(pull) = self.duty.pull.clone() else { return };
        let limit = pull.scratch_limit_bytes;
        let used = allocated_bytes(pull).await;
        if used >= limit / 100 * SCRATCH_END_PERCENT {
            let why = format!(
                "the scratch holds {used} of {limit} bytes, and the job is given up at {SCRATCH_END_PERCENT} %"
            );
            self.fire(Code::ScratchFull, &why);
        }
    }
}

/// What the scratch files allocate, bytes. A file that isn't there, or not yet, holds nothing.
async fn allocated_bytes(pull: PullDuty) -> u64 {
    let measure = move || pull.scratch.iter().map(file_allocated_bytes).sum();
    // A local disk that hangs must not keep the guard from its clock.
    match tokio::time::timeout(SCRATCH_PERIOD, tokio::task::spawn_blocking(measure)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) | Err(_) => 0,
    }
}

fn file_allocated_bytes(file: &PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// Unit of `st_blocks`, bytes, whatever the file system's own block is.
    const STAT_BLOCK_BYTES: u64 = 512;
    std::fs::symlink_metadata(file).map_or(0, |meta| meta.blocks() * STAT_BLOCK_BYTES)
}
