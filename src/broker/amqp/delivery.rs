//! A delivery of lapin as callers see it, and what the broker has not been told about yet.
//!
//! Bodies are cut here, on receipt. lapin holds a body whole until then: the one that is being received on each channel, and those
//! that the session's task has not picked up, which it does at once unless it waits for an answer of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use lapin::Acker;
use lapin::message::Delivery as LapinDelivery;
use lapin::options::BasicAckOptions;
use tokio::sync::{RwLock, RwLockWriteGuard};

use super::convert::{cut, from_lapin};
use super::failure::answer;
use crate::broker::letters::HeldLetter;
use crate::broker::{BODY_BYTES_KEPT_MAX, Delivery, EventMessage, HostQueue, LETTER_BYTES_KEPT_MAX, Settle};

/// The deliveries of one consumer that are not acked.
#[derive(Default)]
pub(super) struct Unsettled {
    count: AtomicUsize,
    /// Acks share it; whoever has it alone lets none pass.
    acks: RwLock<()>,
}

impl Unsettled {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Lets no ack pass until the guard is dropped. Waits for those under way, which have a bound.
    pub(super) async fn hold_acks(&self) -> RwLockWriteGuard<'_, ()> {
        self.acks.write().await
    }
}

/// A delivery as callers see it.
pub(super) fn to_delivery(queue: HostQueue, delivery: LapinDelivery, unsettled: &Arc<Unsettled>) -> Delivery {
    unsettled.count.fetch_add(1, Ordering::SeqCst);
    let (properties, has_cc) = from_lapin(&delivery.properties);
    Delivery {
        queue,
        routing_key: delivery.routing_key.to_string(),
        redelivered: delivery.redelivered,
        has_cc,
        properties,
        body: cut(delivery.data, BODY_BYTES_KEPT_MAX),
        settle: Box::new(LapinSettle { acker: delivery.acker, unsettled: Arc::clone(unsettled) }),
    }
}

/// A dead letter as its reader sees it.
pub(super) fn to_letter(delivery: LapinDelivery, unsettled: &Arc<Unsettled>) -> HeldLetter {
    unsettled.count.fetch_add(1, Ordering::SeqCst);
    let (properties, has_cc) = from_lapin(&delivery.properties);
    let body = cut(delivery.data, LETTER_BYTES_KEPT_MAX);
    HeldLetter {
        message: EventMessage { routing_key: delivery.routing_key.to_string(), has_cc, properties, body },
        settle: Box::new(LapinSettle { acker: delivery.acker, unsettled: Arc::clone(unsettled) }),
    }
}

/// Acks on the channel that delivered.
struct LapinSettle {
    acker: Acker,
    unsettled: Arc<Unsettled>,
}

#[async_trait]
impl Settle for LapinSettle {
    async fn ack(self: Box<Self>) -> bool {
        let _may_pass = self.unsettled.acks.read().await;
        // lapin says `Ok(false)` where the channel is gone: not sent, so it will be delivered again.
        match answer("ack a delivery", self.acker.ack(BasicAckOptions::default())).await {
            Ok(sent) => {
                self.unsettled.count.fetch_sub(1, Ordering::SeqCst);
                sent
            }
            Err(error) => {
                tracing::debug!("it will be delivered again: {}", error.chain());
                false
            }
        }
    }
}
