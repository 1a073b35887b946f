//! A guard's life between being armed and its end: it answers orders, watches the clock and the scratch, and fires.
//! The same code runs in the guard process and, for the fake, as a task beside the fake hypervisor.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::GuardDuty;
use super::protocol::{Answer, Order};
use super::rescue::{Maybe, rescue};
use super::scratch::Scratch;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;

/// An order with the way back for its answer.
pub(super) type Asked = (Order, oneshot::Sender<Answer>);

/// Watches until it is disarmed, or until the worker is gone and what it left is cleared up.
pub(super) async fn watch(hypervisor: Arc<dyn Hypervisor>, duty: GuardDuty, mut orders: mpsc::Receiver<Asked>) {
    let mut scratch = duty.job.as_ref().and_then(|job| job.scratch.clone()).map(Scratch::new);
    let mut post = Post { hypervisor, duty, frozen_until: None, maybe: Maybe::default(), fired: None, rescue: None };
    loop {
        tokio::select! {
            biased;
            asked = orders.recv() => match asked {
                Some((Order::Disarm, answer)) => {
                    // Whoever asked may be gone by now, which changes nothing.
                    let _ = answer.send(post.answer());
                    return;
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
            why = until_full(scratch.as_mut()), if post.fired.is_none() => post.fire(Code::ScratchFull, &why),
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

/// Why the job has to be ended; never, where there is none.
async fn until_full(scratch: Option<&mut Scratch>) -> String {
    match scratch {
        Some(scratch) => scratch.until_full().await,
        None => pending().await,
    }
}

struct Post {
    hypervisor: Arc<dyn Hypervisor>,
    duty: GuardDuty,
    /// When the guest must be thawed; none when it isn't to be frozen, or after firing.
    frozen_until: Option<Instant>,
    /// Frozen from a freeze's announcement to its confirmed thaw, begun from the announcement on.
    maybe: Maybe,
    fired: Option<Failure>,
    rescue: Option<AbortOnDropHandle<()>>,
}

impl Post {
    fn answer(&self) -> Answer {
        Answer { refused: None, fired: self.fired.clone() }
    }

    fn follow(&mut self, order: &Order) {
        match order {
            Order::Freezing if self.fired.is_none() => {
                self.maybe.frozen = true;
                self.frozen_until = Some(Instant::now() + self.duty.freeze_limit);
            }
            Order::Beginning => self.maybe.begun = true,
            Order::Thawed => {
                self.maybe.frozen = false;
                self.frozen_until = None;
                if self.fired.is_some() {
                    // Our job may still come about; the guest is not to be thawed any more.
                    self.start_rescue();
                }
            }
            Order::Rescue => self.fire(Code::GuardFired, "its worker left it to that"),
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
        self.start_rescue();
    }

    /// For as long as the worker doesn't say that it is over: a call of its own may still take effect at any time.
    fn start_rescue(&mut self) {
        let (hypervisor, duty, maybe) = (Arc::clone(&self.hypervisor), self.duty.clone(), self.maybe);
        let rescue = async move {
            loop {
                rescue(hypervisor.as_ref(), &duty, maybe).await;
                if !maybe.frozen && duty.job.is_none() {
                    return;
                }
            }
        };
        self.rescue = Some(AbortOnDropHandle::new(tokio::spawn(rescue)));
    }

    /// The rescue of a worker that is gone. One that ran before may have ended before the worker's last call took effect,
    /// so it begins anew.
    async fn finish(mut self) {
        self.rescue = None;
        rescue(self.hypervisor.as_ref(), &self.duty, self.maybe).await;
    }
}
