//! Part of the broker's contract: what comes while all, urgent or no jobs are wanted, and when that changes.

use std::collections::VecDeque;

use longshore::broker::topology::{CONTROL_EXCHANGE, JOBS_EXCHANGE, control_key, urgent_jobs_key};
use longshore::broker::{Broker, Delivery, HostQueue, HostSession, WantedJobs};
use longshore::model::id::HostId;
use tokio::time::timeout;

use super::broker::{Ground, PREFETCH, QUIET, job, message, next, nothing_arrives, open_up, some_host};

/// Runs this part.
pub async fn all(ground: &dyn Ground) {
    without_the_wish_for_jobs_only_control_flows(ground).await;
    what_was_delivered_still_comes_when_it_is_not_wanted_any_more_and_nothing_new(ground).await;
    urgent_jobs_come_where_only_they_are_wanted(ground).await;
    jobs_are_not_handed_back_by_a_wish_that_changes_with_every_one(ground).await;
}

async fn without_the_wish_for_jobs_only_control_flows(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    let publisher = broker.publisher();
    publisher.publish(job(&host, b"job")).await.unwrap();
    nothing_arrives(session.as_mut()).await;
    publisher.publish(message(CONTROL_EXCHANGE, control_key(&host, "cancel"), b"it")).await.unwrap();
    let control = next(session.as_mut()).await;
    assert_eq!((control.queue, control.routing_key), (HostQueue::Control, control_key(&host, "cancel")));
    assert!(control.settle.ack().await);
    session.want_jobs(WantedJobs::All);
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.body, b"job");
    session.want_jobs(WantedJobs::None);
    // Held since before: its channel has to outlive the wish.
    assert!(delivery.settle.ack().await);
    assert!(wish_has_arrived(broker.as_ref(), &host, session.as_mut()).await.is_empty());
    publisher.publish(job(&host, b"later")).await.unwrap();
    nothing_arrives(session.as_mut()).await;
    session.want_jobs(WantedJobs::All);
    let later = next(session.as_mut()).await;
    assert_eq!(later.body, b"later");
    assert!(later.settle.ack().await);
    session.close().await;
}

/// Takes whatever comes until nothing does.
async fn all_that_comes(session: &mut dyn HostSession) -> Vec<Delivery> {
    let mut came = Vec::new();
    while let Ok(delivery) = timeout(QUIET, session.next()).await {
        came.push(delivery);
    }
    came
}

async fn what_was_delivered_still_comes_when_it_is_not_wanted_any_more_and_nothing_new(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    let publisher = broker.publisher();
    let bodies: Vec<[u8; 1]> = (0..100).map(|number| [number]).collect();
    for body in &bodies {
        publisher.publish(job(&host, body)).await.unwrap();
    }
    session.want_jobs(WantedJobs::All);
    let first = next(session.as_mut()).await;
    session.want_jobs(WantedJobs::None);
    let mut came = vec![first];
    came.extend(all_that_comes(session.as_mut()).await);
    assert!(came.len() <= PREFETCH, "{} jobs came", came.len());
    let taken = came.len();
    for (delivery, body) in came.into_iter().zip(&bodies) {
        assert_eq!(delivery.body, body, "the order of the queue");
        assert!(!delivery.redelivered);
        assert!(delivery.settle.ack().await);
    }
    nothing_arrives(session.as_mut()).await;
    session.want_jobs(WantedJobs::All);
    for body in &bodies[taken..] {
        let delivery = next(session.as_mut()).await;
        assert_eq!(delivery.body, body, "the order of the queue");
        assert!(!delivery.redelivered, "it was handed back");
        assert!(delivery.settle.ack().await);
    }
    session.close().await;
}

async fn urgent_jobs_come_where_only_they_are_wanted(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    let publisher = broker.publisher();
    publisher.publish(job(&host, b"backup")).await.unwrap();
    let restore = || message(JOBS_EXCHANGE, urgent_jobs_key(&host), b"restore");
    publisher.publish(restore()).await.unwrap();
    session.want_jobs(WantedJobs::Urgent);
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.body, b"restore");
    assert!(delivery.settle.ack().await);
    nothing_arrives(session.as_mut()).await;
    session.want_jobs(WantedJobs::All);
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.body, b"backup");
    assert!(delivery.settle.ack().await);
    session.want_jobs(WantedJobs::None);
    assert!(wish_has_arrived(broker.as_ref(), &host, session.as_mut()).await.is_empty());
    publisher.publish(restore()).await.unwrap();
    nothing_arrives(session.as_mut()).await;
    session.close().await;
}

/// Waits until the session has told the broker what it was last told to want: it does so before it reads its next control message,
/// and the first of these may have been read already when it was told. Gives the jobs that came meanwhile.
async fn wish_has_arrived(broker: &dyn Broker, host: &HostId, session: &mut dyn HostSession) -> VecDeque<Delivery> {
    let mut jobs = VecDeque::new();
    for _ in 0..2 {
        broker.publisher().publish(message(CONTROL_EXCHANGE, control_key(host, "cancel"), b"")).await.unwrap();
        let control = loop {
            let delivery = next(session).await;
            match delivery.queue {
                HostQueue::Control => break delivery,
                HostQueue::UrgentJobs | HostQueue::Jobs => jobs.push_back(delivery),
            }
        };
        assert!(control.settle.ack().await);
    }
    jobs
}

/// What a worker at its bound does to its wish: flip it with every job, of which `jobs` are sent. None may count as returned.
pub async fn flip_with_every_job(broker: &dyn Broker, host: &HostId, session: &mut dyn HostSession, jobs: u8) {
    let publisher = broker.publisher();
    for number in 0..jobs {
        publisher.publish(job(host, &[number])).await.unwrap();
    }
    let mut came = VecDeque::new();
    for number in 0..jobs {
        session.want_jobs(WantedJobs::All);
        let delivery = match came.pop_front() {
            Some(delivery) => delivery,
            None => next(session).await,
        };
        session.want_jobs(if number % 2 == 0 { WantedJobs::None } else { WantedJobs::Urgent });
        assert_eq!(delivery.body, [number], "the order of the queue");
        assert!(!delivery.redelivered, "job {number} was handed back");
        assert_eq!(delivery.properties.headers.get("x-delivery-count"), None, "job {number}");
        assert!(delivery.settle.ack().await);
        came.extend(wish_has_arrived(broker, host, session).await);
    }
}

async fn jobs_are_not_handed_back_by_a_wish_that_changes_with_every_one(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    flip_with_every_job(broker.as_ref(), &host, session.as_mut(), 40).await;
    session.close().await;
}
