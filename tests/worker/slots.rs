//! How much runs at once, and who comes first.

use longshore::broker::topology::jobs_queue;
use longshore::message::Event;
use longshore::message::event::{HostDetail, RunDetail, RunningJob};
use longshore::message::job::InstancePart;
use longshore::model::job::RunKey;
use longshore::worker::admit::Slots;

use crate::fleet::{Fleet, SHARE};

const OTHER_SHARE: &str = "/other";

fn started(fleet: &Fleet, key: RunKey) -> bool {
    fleet.events.story(key).contains(&(1, "started"))
}

/// The order in which runs were started.
fn order(fleet: &Fleet) -> Vec<RunKey> {
    let started = fleet.events.once().into_iter().filter_map(|seen| match seen.event {
        Event::Run(event) if matches!(event.detail, RunDetail::Started(_)) => {
            Some(RunKey { job_id: event.job_id, run: event.run })
        }
        _ => None,
    });
    started.collect()
}

/// What the newest heartbeat says of these: so many run, so many wait.
async fn heartbeat(fleet: &Fleet, running: usize, waiting: u32) -> Vec<RunningJob> {
    let find = |fleet: &Fleet| match fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
        HostDetail::Heartbeat(heartbeat) => Some(heartbeat),
        _ => None,
    }) {
        Some(heartbeat) if (heartbeat.running.len(), heartbeat.waiting) == (running, waiting) => {
            Some(heartbeat.running)
        }
        _ => None,
    };
    fleet.until(&format!("a heartbeat with {running} running and {waiting} waiting"), find).await
}

#[tokio::test]
async fn an_instance_has_one_job_at_a_time_by_whatever_name() {
    let fleet = Fleet::with(&["web", "db"]).await;
    fleet.movers.hang("copy");
    // The inventory has told which name belongs to which uuid.
    let inventory = |detail: &HostDetail| matches!(detail, HostDetail::Inventory(_));
    fleet.until("an inventory", |fleet| fleet.events.of_host().into_iter().find(inventory)).await;
    let by_name = fleet.publish(&fleet.job("web")).await;
    let mut job = fleet.job("web");
    job.instance = Some(InstancePart { id: Some(fleet.id_of("web").to_string()), name: None });
    let by_id = fleet.publish(&job).await;
    let other = fleet.publish(&fleet.job("db")).await;
    fleet.told(other, 1, "started").await;
    heartbeat(&fleet, 2, 1).await;
    assert!(started(&fleet, by_name) && !started(&fleet, by_id));
    fleet.movers.unhang("copy");
    for key in [by_name, by_id, other] {
        fleet.completed(key).await;
    }
    assert_eq!(fleet.events.story(by_id), [(0, "accepted"), (1, "started"), (1, "completed")], "it met nobody");
    fleet.finish().await;
}

/// The names are asked for anew: at the start of a worker nothing is known of its host.
#[tokio::test]
async fn after_a_restart_an_instance_has_one_job_at_a_time_by_whatever_name() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let by_name = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    let mut job = fleet.job("web");
    job.instance = Some(InstancePart { id: Some(fleet.id_of("web").to_string()), name: None });
    let by_id = fleet.publish(&job).await;
    fleet.told(by_id, 0, "accepted").await;
    fleet.crash().await;
    fleet.start().await;
    let both = [by_name, by_id];
    let began = |fleet: &Fleet| fleet.movers.running().first().cloned();
    fleet.until("the first of them", began).await;
    fleet.until_copying("web").await;
    heartbeat(&fleet, 1, 1).await;
    fleet.movers.unhang("copy");
    for key in both {
        fleet.completed(key).await;
    }
    let failures = fleet.events.once().into_iter().filter(|seen| match &seen.event {
        Event::Run(event) => {
            matches!(&event.detail, RunDetail::Retrying(retrying) if retrying.failure.code != "interrupted")
        }
        Event::Host(_) | Event::Letter(_) => false,
    });
    assert_eq!(failures.count(), 0, "they met nobody");
    fleet.finish().await;
}

#[tokio::test]
async fn a_repository_has_no_more_jobs_than_its_slots() {
    let mut fleet = Fleet::without_worker(&["a", "b", "c", "d"]).await;
    fleet.settings.slots = Slots { host: 10, repository: 2 };
    fleet.movers.add_repository(OTHER_SHARE);
    fleet.movers.hang("copy");
    fleet.start().await;
    let mut on_share = Vec::new();
    for name in ["a", "b", "c"] {
        on_share.push(fleet.publish(&fleet.job(name)).await);
    }
    let mut job = fleet.job("d");
    job.repository.address = OTHER_SHARE.to_owned();
    job.repository.id = fleet.repository_id(OTHER_SHARE).to_string();
    let elsewhere = fleet.publish(&job).await;
    fleet.told(elsewhere, 1, "started").await;
    heartbeat(&fleet, 3, 1).await;
    assert_eq!(on_share.iter().filter(|key| started(&fleet, **key)).count(), 2);
    fleet.movers.unhang("copy");
    for key in on_share.into_iter().chain([elsewhere]) {
        fleet.completed(key).await;
    }
    assert_eq!((fleet.movers.published(SHARE).len(), fleet.movers.published(OTHER_SHARE).len()), (3, 1));
    fleet.finish().await;
}

#[tokio::test]
async fn urgent_jobs_have_a_slot_of_their_own_and_come_first() {
    let mut fleet = Fleet::without_worker(&["a", "b", "c", "u", "v"]).await;
    fleet.settings.slots = Slots { host: 2, repository: 10 };
    fleet.movers.hang("copy");
    fleet.start().await;
    let mut normal = Vec::new();
    for name in ["a", "b", "c"] {
        normal.push(fleet.publish(&fleet.job(name)).await);
    }
    heartbeat(&fleet, 1, 2).await;
    let urgent = fleet.publish_urgent(&fleet.job("u")).await;
    heartbeat(&fleet, 2, 2).await;
    assert!(started(&fleet, urgent), "the last slot was kept for it");
    let next = fleet.publish_urgent(&fleet.job("v")).await;
    heartbeat(&fleet, 2, 3).await;
    fleet.movers.unhang("copy");
    for key in normal.iter().chain([&urgent, &next]) {
        fleet.completed(*key).await;
    }
    let order = order(&fleet);
    let place = |key: &RunKey| order.iter().position(|started| started == key).unwrap();
    assert!(place(&next) < place(&normal[1]), "urgent before older normal ones");
    assert!(normal.iter().map(place).is_sorted(), "older before younger");
    fleet.finish().await;
}

#[tokio::test]
async fn over_the_bound_normal_jobs_stay_in_the_queue_and_urgent_ones_are_taken() {
    const BOUND: usize = 3;
    let names: Vec<String> = (0..9).map(|number| format!("i{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = Fleet::without_worker(&names).await;
    fleet.settings.slots = Slots { host: 2, repository: 10 };
    fleet.settings.open_runs_max = BOUND;
    fleet.prefetch = 1;
    fleet.movers.hang("copy");
    fleet.start().await;
    let (urgent, normal) = names.split_last().unwrap();
    let mut keys = Vec::new();
    for name in normal {
        keys.push(fleet.publish(&fleet.job(name)).await);
    }
    let queue = jobs_queue(&fleet.host);
    let depth = |fleet: &Fleet| fleet.server.depth(&queue).unwrap();
    let taken = |fleet: &Fleet| normal.len() - depth(fleet).ready - depth(fleet).unacked;
    fleet.until("the bound", |fleet| (taken(fleet) >= BOUND).then_some(())).await;
    // Another look, after the worker has had every chance to take more.
    let beats = |fleet: &Fleet| fleet.events.of_host().len();
    let before = beats(&fleet);
    fleet.until("more heartbeats", |fleet| (beats(fleet) > before + 5).then_some(())).await;
    assert!(taken(&fleet) <= BOUND + fleet.prefetch, "{} were taken", taken(&fleet));
    let urgent = fleet.publish_urgent(&fleet.job(urgent)).await;
    fleet.until("the urgent job", |fleet| started(fleet, urgent).then_some(())).await;
    fleet.movers.unhang("copy");
    for key in keys.into_iter().chain([urgent]) {
        fleet.completed(key).await;
    }
    fleet.finish().await;
}
