//! A host's session: a task keeps the control queue; jobs that are wanted are handed over up to the prefetch, ahead of the caller,
//! as a real broker does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::client::DOWN;
use super::state::{Address, ConsumerId, State, Stored};
use super::{MemorySettings, Shared};
use crate::broker::topology::{
    PING_COMMAND, QueueType, control_key, control_queue, host_queues, jobs_queue, urgent_jobs_queue,
};
use crate::broker::{BODY_BYTES_KEPT_MAX, Delivery, HostQueue, HostSession, SessionState, Settle, WantedJobs};
use crate::model::id::HostId;

/// What the caller's handle and the task share.
struct Hold {
    shared: Arc<Shared>,
    settings: MemorySettings,
    host: HostId,
    /// The consumer that holds the control queue.
    consumer: Mutex<Option<ConsumerId>>,
    jobs: Mutex<Jobs>,
    state: watch::Sender<SessionState>,
}

/// Jobs on their way to the caller.
#[derive(Default)]
struct Jobs {
    wanted: WantedJobs,
    urgent: Line,
    normal: Line,
}

/// What was handed over of one job queue and not taken yet.
#[derive(Default)]
struct Line {
    handed_over: VecDeque<(Address, Stored)>,
    /// The queue was not wanted for a while, and some of what came before waits still: nothing more comes until it is taken.
    paused: bool,
}

impl Line {
    /// Hands over what may be, and forgets what was given back with its consumer.
    fn fill(&mut self, wanted: bool, state: &mut State, queue: &str, consumer: ConsumerId, prefetch: usize) {
        self.handed_over.retain(|(address, _)| state.holds(address));
        self.paused = !wanted || (self.paused && !self.handed_over.is_empty());
        while !self.paused
            && let Some(handed_over) = state.take(queue, consumer, prefetch)
        {
            self.handed_over.push_back(handed_over);
        }
    }
}

struct MemorySession {
    hold: Arc<Hold>,
    keeper: AbortHandle,
}

/// Opens a session.
pub(super) fn open(shared: Arc<Shared>, settings: MemorySettings, host: HostId) -> Box<dyn HostSession> {
    let state = watch::Sender::new(SessionState::Connecting { reason: "not connected yet".to_owned() });
    let hold = Arc::new(Hold { shared, settings, host, consumer: Mutex::new(None), jobs: Mutex::default(), state });
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
        let control = self.shared.look().take(&control_queue(&self.host), consumer, usize::MAX);
        if let Some((address, stored)) = control {
            return Some((HostQueue::Control, address, stored));
        }
        let mut jobs = self.jobs();
        self.fill(&mut jobs);
        let taken =
            |queue, line: &mut Line| line.handed_over.pop_front().map(|(address, stored)| (queue, address, stored));
        let Jobs { urgent, normal, .. } = &mut *jobs;
        taken(HostQueue::UrgentJobs, urgent).or_else(|| taken(HostQueue::Jobs, normal))
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the broker hand over what is wanted.
    fn fill(&self, jobs: &mut Jobs) {
        let Some(consumer) = self.consumer() else { return };
        let Jobs { wanted, urgent, normal } = jobs;
        let (prefetch, state) = (self.settings.prefetch, &mut *self.shared.look());
        let from_urgent = wanted.takes_from(HostQueue::UrgentJobs);
        urgent.fill(from_urgent, state, &urgent_jobs_queue(&self.host), consumer, prefetch);
        normal.fill(wanted.takes_from(HostQueue::Jobs), state, &jobs_queue(&self.host), consumer, prefetch);
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
                    has_cc: message.has_cc,
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

    fn want_jobs(&self, wanted: WantedJobs) {
        let mut jobs = self.hold.jobs();
        if jobs.wanted == wanted {
            return;
        }
        // What came while it was wanted has been handed over, whether the caller has asked for it or not.
        self.hold.fill(&mut jobs);
        jobs.wanted = wanted;
        self.hold.fill(&mut jobs);
        drop(jobs);
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

/// Acks at the server.
pub(super) struct MemorySettle {
    pub(super) shared: Arc<Shared>,
    pub(super) address: Address,
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
