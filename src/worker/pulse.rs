//! Signs of life: heartbeats and inventories. Best effort, straight to the broker: the next one makes each worthless, so
//! none waits in the outbox while the broker is away. None is told before the host id was first ours: until then they may be
//! those of a worker beside the host's real one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::admit::Names;
use super::left_over;
use super::shared::Shared;
use crate::broker::topology::EVENTS_EXCHANGE;
use crate::broker::{Outgoing, PublishError, Publisher, SessionState};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{InstanceSummary, StuckCall};
use crate::message::event::{
    Heartbeat, HostDetail, INVENTORY_INSTANCES_MAX, Inventory, InventoryInstance, LeftOver, OverdueCall,
};
use crate::message::{Encoding, encode_event};
use crate::model::id::EventId;
use crate::shutdown::{Shutdown, Stage};

/// Longest time that one sign of life may take to be published; the next one is due soon anyway.
const PUBLISH_MAX: Duration = Duration::from_secs(10);
/// Longest time for the local file system to say how much room it has.
const ROOM_MAX: Duration = Duration::from_secs(5);
/// Calls that are told by name; all are counted.
const STUCK_CALLS_MAX: usize = 16;
/// Bytes of what a left-over is, and of why it is there, that are told: of as many as are kept they fit into a message.
const LEFT_OVER_BYTES_MAX: usize = 1000;
/// Pause before a libvirt that did not tell the names of its instances is asked for them again.
const NAMES_PAUSE: Duration = Duration::from_secs(5);

/// Tells heartbeats until the worker's work is over.
pub async fn beat(
    shared: Arc<Shared>,
    publisher: Arc<dyn Publisher>,
    session: watch::Receiver<SessionState>,
    over: Shutdown,
) {
    let beating = async {
        held(session).await;
        let mut ticks = Ticks::new(&shared, shared.settings.heartbeat);
        loop {
            ticks.next().await;
            let heartbeat = heartbeat(&shared).await;
            tell(&shared, publisher.as_ref(), HostDetail::Heartbeat(heartbeat)).await;
        }
    };
    tokio::select! {
        () = beating => {}
        () = over.reached(Stage::Now) => {}
    }
}

/// Tells inventories until the worker's work is over. A task of its own: a slow libvirt must not hold up the heartbeats.
pub async fn take_inventory(
    shared: Arc<Shared>,
    publisher: Arc<dyn Publisher>,
    session: watch::Receiver<SessionState>,
    over: Shutdown,
) {
    let taking = async {
        learn_names(&shared).await;
        check_versions(&shared).await;
        let mut ticks = Ticks::new(&shared, shared.settings.inventory);
        loop {
            ticks.next().await;
            match inventory(&shared).await {
                Ok(inventory) => {
                    held(session.clone()).await;
                    tell(&shared, publisher.as_ref(), HostDetail::Inventory(inventory)).await;
                }
                Err(failure) => tracing::warn!(failure = format!("{failure:#}"), "no inventory this time"),
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = over.reached(Stage::Now) => {}
    }
}

/// Waits until the host id is known to be ours; for ever if it never is. Afterwards the session may be lost again: publishing finds
/// that out.
pub async fn held(mut session: watch::Receiver<SessionState>) {
    if session.wait_for(is_held).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether the state says that the host id is ours. That the broker does not read from us for now it only says to one that
/// holds the host's queues.
pub fn is_held(state: &SessionState) -> bool {
    matches!(state, SessionState::Up | SessionState::Blocked { .. })
}

/// Asks for the names of the instances until libvirt has told them once: the first job waits for them, for a while.
async fn learn_names(shared: &Shared) {
    let mut again = ticks(NAMES_PAUSE);
    loop {
        again.tick().await;
        match shared.hypervisor.instances().await {
            Ok(summaries) => return shared.learn_names(names_of(&summaries)),
            Err(failure) => {
                tracing::warn!(failure = format!("{failure:#}"), "cannot ask for the names of the instances")
            }
        }
    }
}

fn names_of(summaries: &[InstanceSummary]) -> Names {
    summaries.iter().map(|summary| (summary.name.clone(), summary.id)).collect()
}

/// Says at start what has to be upgraded. The worker stays: each job finds out for itself what its host can do, since what is asked
/// may be upgraded under a running worker.
async fn check_versions(shared: &Shared) {
    match shared.hypervisor.versions().await.and_then(|versions| versions.allow_full()) {
        Ok(()) => {}
        Err(failure) if failure.code == Code::HypervisorTooOld => {
            tracing::error!(failure = format!("{failure:#}"), "running instances cannot be backed up");
        }
        Err(failure) => {
            tracing::warn!(failure = format!("{failure:#}"), "cannot ask for libvirt's and QEMU's versions")
        }
    }
}

/// When a sign of life is due: in its time, and at once where it was asked for, however often that was while the last one was told.
struct Ticks {
    every: Interval,
    asked_for: watch::Receiver<u64>,
}

impl Ticks {
    fn new(shared: &Shared, every: Duration) -> Self {
        Self { every: ticks(every), asked_for: shared.announcements.subscribe() }
    }

    async fn next(&mut self) {
        tokio::select! {
            _due = self.every.tick() => {}
            Ok(()) = self.asked_for.changed() => self.every.reset(),
        }
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Publishes an event of the host now or not at all.
pub async fn tell(shared: &Shared, publisher: &dyn Publisher, detail: HostDetail) {
    let event = shared.voice.event(detail);
    let routing_key = event.routing_key();
    let encoded = match encode_event(&event, EventId::draw(), Encoding::MessagePack, None) {
        Ok(encoded) => encoded,
        Err(failure) => {
            return tracing::error!(%routing_key, failure = format!("{failure:#}"), "cannot encode an event");
        }
    };
    let outgoing = Outgoing {
        exchange: EVENTS_EXCHANGE,
        routing_key: routing_key.clone(),
        properties: encoded.properties,
        body: encoded.body,
    };
    match timeout(PUBLISH_MAX, publisher.publish(outgoing)).await {
        // Nobody has to listen for these.
        Ok(Ok(()) | Err(PublishError::Unroutable { .. })) => {}
        Ok(Err(error)) => tracing::debug!(%routing_key, %error, "an event of the host was not told"),
        Err(_) => tracing::debug!(%routing_key, "an event of the host was not told in time"),
    }
}

async fn heartbeat(shared: &Arc<Shared>) -> Heartbeat {
    left_over::look(shared).await;
    let now = shared.status.snapshot();
    let outbox_depth = shared.journal.outbox_depth().await.unwrap_or_default();
    let stuck = shared.hypervisor.stuck_calls();
    Heartbeat {
        installation: shared.journal.installation(),
        running: now.running,
        slots: small(shared.settings.slots.host),
        waiting: small(now.waiting),
        outbox_depth: u32::try_from(outbox_depth).unwrap_or(u32::MAX),
        stuck_calls: small(stuck.len()),
        oldest_stuck_calls: oldest(stuck),
        unroutable_events: shared.counters.unroutable_events.load(Ordering::Relaxed),
        unroutable_letters: shared.counters.unroutable_letters.load(Ordering::Relaxed),
        left_overs: now.left_overs.into_iter().map(cut).collect(),
        paused: shared.pauses.now(),
        failing_repositories: shared.circuits.borrow().told(),
    }
}

/// Whole they are in the journal. Too long a heartbeat would not be told at all.
fn cut(left_over: LeftOver) -> LeftOver {
    let cut = |words: String| match words.len() > LEFT_OVER_BYTES_MAX {
        true => {
            let begins = (0..=LEFT_OVER_BYTES_MAX).rev().find_map(|end| words.get(..end));
            format!("{}…", begins.unwrap_or_default())
        }
        false => words,
    };
    LeftOver { what: cut(left_over.what), reason: cut(left_over.reason), ..left_over }
}

/// Those that are told by name: where more are stuck, the oldest say why.
fn oldest(mut stuck: Vec<StuckCall>) -> Vec<OverdueCall> {
    stuck.sort_by_key(|call| call.since);
    stuck.truncate(STUCK_CALLS_MAX);
    let told =
        |StuckCall { call, instance, since }| OverdueCall { call: call.to_owned(), instance_id: instance, since };
    stuck.into_iter().map(told).collect()
}

/// What is on the host. An instance that cannot be read (gone meanwhile, or a libvirt that hangs) is left out and counted.
///
/// # Errors
/// When libvirt cannot say which instances there are: no inventory is better than one of an empty host.
async fn inventory(shared: &Shared) -> Result<Inventory, Failure> {
    let begun = Instant::now();
    let versions = shared.hypervisor.versions().await.ok();
    let summaries = shared.hypervisor.instances().await?;
    shared.learn_names(names_of(&summaries));
    let mut instances = Vec::new();
    for summary in summaries.iter().take(INVENTORY_INSTANCES_MAX) {
        if begun.elapsed() > shared.settings.inventory {
            break;
        }
        if let Ok(instance) = shared.hypervisor.survey(summary.id).await {
            instances.push(InventoryInstance::from(&instance));
        }
    }
    Inventory {
        libvirt: versions.map(|versions| versions.libvirt.to_string()),
        qemu: versions.map(|versions| versions.qemu.to_string()),
        scratch_free_bytes: free_bytes(shared.settings.scratch_dir.clone()).await,
        instances_left_out: small(summaries.len() - instances.len()),
        instances,
    }
    .fit()
}

async fn free_bytes(directory: PathBuf) -> Option<u64> {
    let asked = tokio::task::spawn_blocking(move || {
        statvfs(&directory).map(|room| room.blocks_available() * room.fragment_size())
    });
    match timeout(ROOM_MAX, asked).await {
        Ok(Ok(Ok(bytes))) => Some(bytes),
        _ => None,
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_about_a_left_over_are_cut_between_characters() {
        let told = |what: String| cut(LeftOver { what, reason: "why".to_owned(), job_id: None });
        assert_eq!(told("x".repeat(LEFT_OVER_BYTES_MAX)).what, "x".repeat(LEFT_OVER_BYTES_MAX));
        assert_eq!(told("€".repeat(LEFT_OVER_BYTES_MAX)).what, format!("{}…", "€".repeat(LEFT_OVER_BYTES_MAX / 3)));
        assert_eq!(told("x".repeat(9000)).reason, "why");
    }
}
