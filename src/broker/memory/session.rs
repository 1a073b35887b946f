//! A host's session: a task keeps the control queue, the caller takes deliveries straight from the queues.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::client::DOWN;
use super::state::{Address, ConsumerId, Stored};
use super::{MemorySettings, Shared};
use crate::broker::topology::{
    PING_COMMAND, QueueType, control_key, control_queue, host_queues, jobs_queue, urgent_jobs_queue,
};
use crate::broker::{BODY_BYTES_KEPT_MAX, Delivery, HostQueue, HostSession, SessionState, Settle};
use crate::model::id::HostId;

/// What the caller's handle and the task share.
struct Hold {
    shared: Arc<Shared>,
    settings: MemorySettings,
    host: HostId,
    /// The consumer that holds the control queue.
    consumer: Mutex<Option<ConsumerId>>,
    wanted: AtomicBool,
    state: watch::Sender<SessionState>,
}

struct MemorySession {
    hold: Arc<Hold>,
    keeper: AbortHandle,
}

/// Opens a session.
pub(super) fn open(shared: Arc<Shared>, settings: MemorySettings, host: HostId) -> Box<dyn HostSession> {
    let state = watch::Sender::new(SessionState::Connecting { reason: "not connected yet".to_owned() });
    let hold =
        Arc::new(Hold { shared, settings, host, consumer: Mutex::new(None), wanted: AtomicBool::new(false), state });
    let keeper = tokio::spawn(keep(Arc::clone(&hold))).abort_handle();
    Box::new(MemorySession { hold, keeper })
}

impl Hold {
    fn consumer(&self) -> Option<ConsumerId> {
        *self.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_consumer(&self, consumer: Option<ConsumerId>) {
        *self.consumer.lock().unwrap_or_else(PoisonError::into_inner) = consumer;
    }

    fn show(&self, state: SessionState) {
        self.state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }

    /// Gives the control queue up, and with it all that is un-acked.
    fn let_go(&self) {
        if let Some(consumer) = self.consumer() {
            self.set_consumer(None);
            self.shared.change(|state| state.release(consumer));
        }
    }

    fn take(&self) -> Option<(HostQueue, Address, Stored)> {
        let consumer = self.consumer()?;
        let mut state = self.shared.look();
        let mut take = |queue, name: String, prefetch| {
            state.take(&name, consumer, prefetch).map(|(address, stored)| (queue, address, stored))
        };
        if let Some(control) = take(HostQueue::Control, control_queue(&self.host), usize::MAX) {
            return Some(control);
        }
        if !self.wanted.load(Ordering::SeqCst) {
            return None;
        }
        let prefetch = self.settings.prefetch;
        take(HostQueue::UrgentJobs, urgent_jobs_queue(&self.host), prefetch)
            .or_else(|| take(HostQueue::Jobs, jobs_queue(&self.host), prefetch))
    }
}

/// Holds the control queue for as long as the session lives.
async fn keep(hold: Arc<Hold>) {
    let mut changes = hold.shared.changes.subscribe();
    let mut refused_since: Option<Instant> = None;
    let mut silent_since: Option<Instant> = None;
    loop {
        changes.mark_unchanged();
        if let Some(consumer) = hold.consumer()
            && !hold.shared.look().knows(consumer)
        {
            hold.set_consumer(None);
        }
        let look_again_at = match (why_down(&hold), hold.consumer()) {
            (Some(reason), _) => {
                hold.show(SessionState::Connecting { reason });
                None
            }
            (None, None) => take_control(&hold, &mut refused_since),
            (None, Some(consumer)) => watch_silence(&hold, consumer, &mut silent_since),
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(look_again_at.unwrap_or_else(Instant::now)), if look_again_at.is_some() => {}
        }
    }
}

fn why_down(hold: &Hold) -> Option<String> {
    (!hold.shared.look().up).then(|| DOWN.to_owned())
}

/// Tries to take the control queue. Gives the time at which to look again.
fn take_control(hold: &Hold, refused_since: &mut Option<Instant>) -> Option<Instant> {
    let queue = control_queue(&hold.host);
    let taken = hold.shared.change(|state| {
        state.declare(host_queues(&hold.host, QueueType::Classic));
        state.consume_exclusively(&queue)
    });
    if taken.is_some() {
        hold.set_consumer(taken);
        *refused_since = None;
        show_held(hold);
        // Whoever waits for a delivery looks again, now that somebody may have one.
        hold.shared.change(|_| ());
        return None;
    }
    let in_use_at = *refused_since.get_or_insert_with(Instant::now) + hold.settings.in_use_after;
    if Instant::now() >= in_use_at {
        hold.show(SessionState::HostIdInUse);
        return None;
    }
    hold.show(SessionState::Connecting { reason: format!("queue `{queue}` is in exclusive use") });
    Some(in_use_at)
}

/// Lets a silent consumer go when it has been silent for long enough, as the ping of the real session would find.
fn watch_silence(hold: &Hold, consumer: ConsumerId, silent_since: &mut Option<Instant>) -> Option<Instant> {
    if !hold.shared.look().is_silent(consumer) {
        *silent_since = None;
        show_held(hold);
        return None;
    }
    let noticed_at = *silent_since.get_or_insert_with(Instant::now) + hold.settings.silence_noticed_after;
    if Instant::now() < noticed_at {
        return Some(noticed_at);
    }
    *silent_since = None;
    hold.show(SessionState::Connecting { reason: "nothing arrives".to_owned() });
    hold.let_go();
    None
}

fn show_held(hold: &Hold) {
    let blocked = hold.shared.look().blocked.clone();
    hold.show(blocked.map_or(SessionState::Up, |reason| SessionState::Blocked { reason }));
}

#[async_trait]
impl HostSession for MemorySession {
    async fn next(&mut self) -> Delivery {
        let mut changes = self.hold.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            while let Some((queue, address, stored)) = self.hold.take() {
                let settle = MemorySettle { shared: Arc::clone(&self.hold.shared), address };
                let message = stored.message;
                if queue == HostQueue::Control && message.routing_key == control_key(&self.hold.host, PING_COMMAND) {
                    settle.settle();
                    continue;
                }
                let mut body = message.body;
                body.truncate(BODY_BYTES_KEPT_MAX);
                return Delivery {
                    queue,
                    routing_key: message.routing_key,
                    redelivered: stored.redelivered,
                    has_cc: message.properties.headers.contains_key("CC"),
                    properties: message.properties,
                    body,
                    settle: Box::new(settle),
                };
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn want_jobs(&self, wanted: bool) {
        self.hold.wanted.store(wanted, Ordering::SeqCst);
        self.hold.shared.change(|_| ());
    }

    fn state(&self) -> watch::Receiver<SessionState> {
        self.hold.state.subscribe()
    }

    async fn close(self: Box<Self>) {}
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        self.keeper.abort();
        self.hold.let_go();
    }
}

struct MemorySettle {
    shared: Arc<Shared>,
    address: Address,
}

impl MemorySettle {
    fn settle(&self) -> bool {
        self.shared.change(|state| state.ack(&self.address))
    }
}

#[async_trait]
impl Settle for MemorySettle {
    async fn ack(self: Box<Self>) -> bool {
        self.settle()
    }
}
