//! What the worker tells of its host, and when it gives way to another.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::topology::EVENTS_EXCHANGE;
use longshore::broker::{Broker, HostSession, SessionState};
use longshore::host::hypervisor::{Hypervisor, Version, Versions};
use longshore::journal::{Draft, Journal, MessageKind, OutboxMessage, StoredMessage, Taken};
use longshore::message::event::{Accepted, HostDetail, Inventory, Online, RunDetail};
use longshore::message::{Encoded, Encoding, Event, RunEvent, encode_event};
use longshore::model::instance::PowerState;
use longshore::model::job::JobKind;
use longshore::shutdown::{self, Stage};
use longshore::worker::{self, WorkerError};
use tokio::time::timeout;

use crate::fleet::{Fleet, PATIENCE, SHARE, encoded, key};

fn onlines(fleet: &Fleet) -> Vec<Online> {
    let online = fleet.events.of_host().into_iter().filter_map(|detail| match detail {
        HostDetail::Online(online) => Some(online),
        _ => None,
    });
    online.collect()
}

fn incarnations(fleet: &Fleet) -> std::collections::BTreeSet<String> {
    let host = fleet.events.once().into_iter().filter_map(|seen| match seen.event {
        Event::Host(event) => Some(event.incarnation.to_string()),
        Event::Run(_) | Event::Letter(_) => None,
    });
    host.collect()
}

#[tokio::test]
async fn each_start_is_told_with_the_same_installation() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.until("the first `worker.online`", |fleet| onlines(fleet).pop()).await;
    fleet.stop().await;
    fleet.start().await;
    fleet.until("the second", |fleet| (onlines(fleet).len() == 2).then_some(())).await;
    let told = onlines(&fleet);
    assert_eq!(told[0], told[1]);
    let read = ["job", "control.cancel", "control.pause", "control.resume", "control.drain", "control.announce"]
        .map(|word| format!("longshore.{word}.v1"));
    assert_eq!((told[0].slots, told[0].message_types.as_slice()), (4, &read[..]));
    assert_eq!(incarnations(&fleet).len(), 2);
    fleet.finish().await;
}

#[tokio::test]
async fn a_call_to_libvirt_that_does_not_come_back_is_named_until_it_does() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.hypervisor.hang("state");
    let instance = fleet.id_of("web");
    assert!(timeout(Duration::from_millis(10), fleet.hypervisor.state(instance)).await.is_err());
    let latest = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
            HostDetail::Heartbeat(heartbeat) => Some(heartbeat.oldest_stuck_calls),
            _ => None,
        })
    };
    let named = fleet.until("it is named", |fleet| latest(fleet).filter(|stuck| !stuck.is_empty())).await;
    assert_eq!((named[0].call.as_str(), named[0].instance_id, named.len()), ("state", Some(instance), 1));
    let done = fleet.publish(&fleet.job("web")).await;
    fleet.hypervisor.let_go("state");
    fleet.until("it is not named any more", |fleet| latest(fleet).filter(Vec::is_empty)).await;
    fleet.completed(done).await;
    fleet.finish().await;
}

#[tokio::test]
async fn heartbeats_list_the_running_job_with_its_progress() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("compare");
    let key = fleet.publish(&fleet.job("web")).await;
    let find = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().find_map(|detail| match detail {
            HostDetail::Heartbeat(heartbeat) => heartbeat.running.into_iter().find(|running| running.total_bytes > 0),
            _ => None,
        })
    };
    let running = fleet.until("a heartbeat with progress", find).await;
    assert_eq!((running.job_id, running.run, running.attempt), (key.job_id, 1, 1));
    assert_eq!((running.step.as_deref(), running.done_bytes, running.total_bytes), (Some("copy"), 1 << 30, 1 << 30));
    fleet.movers.unhang("compare");
    fleet.completed(key).await;
    let idle = |fleet: &Fleet| match fleet.events.of_host().pop() {
        Some(HostDetail::Heartbeat(heartbeat)) => heartbeat.running.is_empty().then_some(()),
        _ => None,
    };
    fleet.until("a heartbeat without it", idle).await;
    fleet.finish().await;
}

fn inventory(fleet: &Fleet) -> Option<Inventory> {
    fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
        HostDetail::Inventory(inventory) => Some(inventory),
        _ => None,
    })
}

#[tokio::test]
async fn the_inventory_has_instances_disks_and_versions() {
    let fleet = Fleet::with(&["web", "db"]).await;
    fleet.hypervisor.set_state(fleet.id_of("db"), PowerState::ShutOff);
    let stopped = |inventory: Inventory| {
        let mut instances = inventory.instances.iter();
        instances.any(|known| known.state == PowerState::ShutOff).then_some(inventory)
    };
    let told = fleet.until("an inventory", |fleet| inventory(fleet).and_then(stopped)).await;
    assert_eq!((told.libvirt.as_deref(), told.qemu.as_deref()), (Some("11.3.0"), Some("10.0.2")));
    assert!(told.scratch_free_bytes > Some(0) && told.instances_left_out == 0);
    assert_eq!(told.instances.len(), 2);
    for instance in &told.instances {
        assert!(instance.agent);
        let disk = &instance.disks[0];
        assert_eq!((disk.target.as_str(), disk.serial.as_deref()), ("vda", Some("serial-vda")));
        assert_eq!(disk.virtual_bytes, Some(1 << 30));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_hypervisor_that_hangs_costs_the_inventory_and_not_the_heartbeats() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    fleet.hypervisor.hang("instances");
    fleet.start().await;
    let beats = |fleet: &Fleet| {
        let beats = fleet.events.of_host().into_iter().filter(|detail| matches!(detail, HostDetail::Heartbeat(_)));
        (beats.count() >= 5).then_some(())
    };
    fleet.until("heartbeats", beats).await;
    assert_eq!(inventory(&fleet), None);
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn on_too_old_a_host_every_backup_of_a_running_instance_says_what_to_upgrade() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let old = Versions { libvirt: Version(6, 10, 0), qemu: Version(4, 2, 0) };
    fleet.hypervisor = fleet.hypervisor.clone().with_versions(old);
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    let failure = fleet.failed(key).await;
    assert_eq!(failure.code, "hypervisor_too_old");
    assert!(failure.text.contains("upgrade libvirt from `6.10.0` to `7.2.0`"), "{}", failure.text);
    assert_eq!(fleet.movers.published(SHARE), []);
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_never_had_its_host_id_ends_and_says_nothing() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.until("`worker.online`", |fleet| onlines(fleet).pop()).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (_switch, shutdown) = shutdown::switch();
    let second = worker::run(fleet.parts(journal), shutdown);
    let error = timeout(PATIENCE, second).await.expect("it stays").unwrap_err();
    assert!(matches!(error, WorkerError::HostIdInUse { .. }), "{error:?}");
    assert!(error.to_string().contains("`kvm-07`"), "{error}");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.stop().await;
    assert_eq!(incarnations(&fleet).len(), 1, "only the first worker has spoken for the host");
    fleet.finish().await;
}

/// It was told to stop before it could know whose host id it is. The host's own worker does not drain.
#[tokio::test]
async fn a_worker_that_is_stopped_before_it_had_its_host_id_says_nothing() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.until("`worker.online`", |fleet| onlines(fleet).pop()).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (switch, shutdown) = shutdown::switch();
    switch.raise(Stage::Drain);
    timeout(PATIENCE, worker::run(fleet.parts(journal), shutdown)).await.expect("it stays").unwrap();
    fleet.stop().await;
    assert_eq!(incarnations(&fleet).len(), 1, "only the host's worker has said that it drains");
    fleet.finish().await;
}

/// As on a host that was cloned with its journal.
#[tokio::test]
async fn a_worker_that_never_had_its_host_id_does_no_job_of_its_journal_and_sends_none_of_its_events() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.until("`worker.online`", |fleet| onlines(fleet).pop()).await;
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let job = fleet.job("web");
    let Encoded { properties, body } = encoded(&job);
    let event = RunEvent::of(&job.check().unwrap(), 0, 1, Timestamp::now(), RunDetail::Accepted(Accepted {}));
    let accepted = Draft::new(move |place| {
        let event = Event::Run(event);
        let encoded = encode_event(&event, place.event_id, Encoding::MessagePack, None).unwrap();
        OutboxMessage {
            kind: MessageKind::State,
            exchange: EVENTS_EXCHANGE.to_owned(),
            routing_key: event.routing_key(),
            properties: serde_json::to_value(encoded.properties).unwrap(),
            body: encoded.body,
        }
    });
    let taken = Taken {
        key: key(&job),
        message: StoredMessage { properties: serde_json::to_value(&properties).unwrap(), body },
        kind: JobKind::Backup,
        instance: "web".to_owned(),
        repository_id: fleet.repository_id(SHARE),
        urgent: false,
        accepted_at: Timestamp::now(),
        rows: vec![accepted],
    };
    journal.take(taken).await.unwrap();
    let (_switch, shutdown) = shutdown::switch();
    let second = worker::run(fleet.parts(journal.clone()), shutdown);
    let error = timeout(PATIENCE, second).await.expect("it stays").unwrap_err();
    assert!(matches!(error, WorkerError::HostIdInUse { .. }), "{error:?}");
    let open = journal.open_runs().await.unwrap();
    assert_eq!(open.iter().map(|run| (run.key, run.attempt)).collect::<Vec<_>>(), [(key(&job), 0)]);
    assert_eq!(journal.outbox_depth().await.unwrap(), 1);
    assert_eq!(fleet.events.of_run(key(&job)), []);
    fleet.stop().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_has_held_its_host_id_stays_and_goes_on_when_it_is_free_again() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    // While it was cut off, another has taken its place.
    fleet.server.go_down();
    let broker: Arc<dyn Broker> = fleet.server.client(Default::default());
    let usurper = usurp(&fleet, broker.as_ref()).await;
    fleet.movers.unhang("copy");
    fleet.completed(running).await;
    let waiting = fleet.publish(&fleet.job("web")).await;
    usurper.close().await;
    fleet.completed(waiting).await;
    fleet.finish().await;
}

/// Takes the control queue in the moment in which the broker is back. The worker is as quick, so it takes some tries.
async fn usurp(fleet: &Fleet, broker: &dyn Broker) -> Box<dyn HostSession> {
    const TRIES_MAX: usize = 100;
    for _ in 0..TRIES_MAX {
        fleet.server.go_down();
        let session = broker.open_host(&fleet.host).await;
        let mut state = session.state();
        let waits =
            |state: &SessionState| matches!(state, SessionState::Connecting { reason } if reason.contains("down"));
        timeout(PATIENCE, state.wait_for(waits)).await.unwrap().unwrap();
        fleet.server.go_up();
        let settled = |state: &SessionState| matches!(state, SessionState::Up | SessionState::HostIdInUse);
        if *timeout(PATIENCE, state.wait_for(settled)).await.unwrap().unwrap() == SessionState::Up {
            return session;
        }
    }
    panic!("the worker is always quicker");
}
