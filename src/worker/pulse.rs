//! Signs of life: heartbeats and inventories. Best effort, straight to the broker: the next one makes each worthless, so
//! none waits in the outbox while the broker is away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::shared::Shared;
use crate::broker::topology::EVENTS_EXCHANGE;
use crate::broker::{Outgoing, PublishError, Publisher};
use crate::message::event::{Heartbeat, HostDetail, INVENTORY_INSTANCES_MAX, Inventory, InventoryInstance};
use crate::message::{Encoding, encode_event};
use crate::model::id::{EventId, InstanceRef};
use crate::shutdown::{Shutdown, Stage};

/// Longest time that one sign of life may take to be published; the next one is due soon anyway.
const PUBLISH_MAX: Duration = Duration::from_secs(10);
/// Longest time for the local file system to say how much room it has.
const ROOM_MAX: Duration = Duration::from_secs(5);

/// Tells heartbeats until the worker's work is over.
pub async fn beat(shared: Arc<Shared>, publisher: Arc<dyn Publisher>, over: Shutdown) {
    let mut ticks = ticks(shared.settings.heartbeat);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let heartbeat = heartbeat(&shared).await;
                tell(&shared, publisher.as_ref(), HostDetail::Heartbeat(heartbeat)).await;
            }
            () = over.reached(Stage::Now) => return,
        }
    }
}

/// Tells inventories until the worker's work is over. A task of its own: a slow libvirt must not hold up the heartbeats.
pub async fn take_inventory(shared: Arc<Shared>, publisher: Arc<dyn Publisher>, over: Shutdown) {
    let mut ticks = ticks(shared.settings.inventory);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                tokio::select! {
                    inventory = inventory(&shared) => {
                        tell(&shared, publisher.as_ref(), HostDetail::Inventory(inventory)).await;
                    }
                    () = over.reached(Stage::Now) => return,
                }
            }
            () = over.reached(Stage::Now) => return,
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

async fn heartbeat(shared: &Shared) -> Heartbeat {
    shared.status.forget_gone(|process| Path::new(&format!("/proc/{process}")).exists());
    let now = shared.status.snapshot();
    let outbox_depth = shared.journal.outbox_depth().await.unwrap_or_default();
    Heartbeat {
        installation: shared.journal.installation(),
        running: now.running,
        slots: small(shared.settings.slots.host),
        waiting: small(now.waiting),
        outbox_depth: u32::try_from(outbox_depth).unwrap_or(u32::MAX),
        stuck_calls: small(shared.hypervisor.stuck_calls().len()),
        left_overs: now.left_overs,
    }
}

/// What is on the host. An instance that cannot be read (gone meanwhile, or a libvirt that hangs) is left out and counted.
async fn inventory(shared: &Shared) -> Inventory {
    let begun = Instant::now();
    let versions = shared.hypervisor.versions().await.ok();
    let summaries = shared.hypervisor.instances().await.unwrap_or_default();
    let names: BTreeMap<_, _> = summaries.iter().map(|summary| (summary.name.clone(), summary.id)).collect();
    shared.learn_names(names);
    let mut instances = Vec::new();
    for summary in summaries.iter().take(INVENTORY_INSTANCES_MAX) {
        if begun.elapsed() > shared.settings.inventory {
            break;
        }
        if let Ok(instance) = shared.hypervisor.find(&InstanceRef::Id(summary.id)).await {
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
