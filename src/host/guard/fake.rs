//! Guards that are tasks in this process, beside the fake hypervisor: the same watching and the same rescue, without a
//! process. Dropping the worker's end is for them what the worker's death is for the real ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Answer, Order};
use super::watch::{Asked, watch};
use super::{Guard, GuardDuty, Guards};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::fake::FakeHypervisor;

/// Process id that a left fake guard answers; no process on Linux has it.
pub const FAKE_PID: u32 = u32::MAX;

/// Starts fake guards on one fake hypervisor.
#[derive(Clone)]
pub struct FakeGuards {
    hypervisor: FakeHypervisor,
    refuse: Arc<AtomicBool>,
    standing: Arc<AtomicUsize>,
}

impl FakeGuards {
    /// Guards that use `hypervisor`.
    pub fn new(hypervisor: FakeHypervisor) -> Self {
        Self { hypervisor, refuse: Arc::default(), standing: Arc::default() }
    }

    /// From now on, or no more, arming fails as `guard_failed`.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::SeqCst);
    }

    /// How many guards stand or are at work.
    pub fn standing(&self) -> usize {
        self.standing.load(Ordering::SeqCst)
    }
}

struct FakeGuard {
    orders: mpsc::Sender<Asked>,
}

#[async_trait]
impl Guards for FakeGuards {
    async fn arm(&self, duty: &GuardDuty) -> Result<Box<dyn Guard>, Failure> {
        if self.refuse.load(Ordering::SeqCst) {
            return Err(Failure::new(Code::GuardFailed, "the fake was told to refuse"));
        }
        let (orders, given) = mpsc::channel(1);
        let (hypervisor, duty) = (Arc::new(self.hypervisor.clone()), duty.clone());
        self.standing.fetch_add(1, Ordering::SeqCst);
        let standing = Arc::clone(&self.standing);
        tokio::spawn(async move {
            watch(hypervisor, duty, given).await;
            standing.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Box::new(FakeGuard { orders }))
    }
}

impl FakeGuard {
    async fn order(&mut self, order: Order) -> Result<Answer, Failure> {
        let gone = || Failure::new(Code::GuardFailed, "the fake guard is gone");
        let (answer, answered) = oneshot::channel();
        self.orders.send((order, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

#[async_trait]
impl Guard for FakeGuard {
    async fn beginning(&mut self) -> Result<(), Failure> {
        self.order(Order::Beginning).await?.fired.map_or(Ok(()), Err)
    }

    async fn freezing(&mut self) -> Result<(), Failure> {
        self.order(Order::Freezing).await?.fired.map_or(Ok(()), Err)
    }

    async fn thawed(&mut self) -> Result<(), Failure> {
        self.order(Order::Thawed).await?.fired.map_or(Ok(()), Err)
    }

    async fn fired(&mut self) -> Result<Option<Failure>, Failure> {
        Ok(self.order(Order::Fired).await?.fired)
    }

    async fn disarm(mut self: Box<Self>) -> Result<(), Failure> {
        self.order(Order::Disarm).await.map(drop)
    }

    fn leave(mut self: Box<Self>, late: BoxFuture<'static, ()>) -> u32 {
        tokio::spawn(async move {
            // One that is gone has nothing left to do.
            let _ = self.order(Order::Rescue).await;
            late.await;
        });
        FAKE_PID
    }
}
