//! What any broker door has to do. The in-process broker and the real one pass the same suite: a fake that lies is found here.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use longshore::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE, JOBS_EXCHANGE, control_key, jobs_key, urgent_jobs_key,
};
use longshore::broker::{
    BODY_BYTES_KEPT_MAX, Broker, Delivery, Heard, HostQueue, HostSession, LETTER_BYTES_KEPT_MAX, Outgoing, Properties,
    PublishError, SessionState, Subscription, WantedJobs,
};
use longshore::model::id::HostId;
use tokio::time::timeout;
use uuid::Uuid;

/// Longest wait for anything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing has to happen until we believe that nothing will.
pub const QUIET: Duration = Duration::from_millis(700);
/// The prefetch of a [`Ground`]'s clients, as it is by default.
pub const PREFETCH: usize = 32;

/// A broker to try.
pub trait Ground: Sync {
    /// A new client of it, as another process would be.
    fn client(&self, name: &str) -> Arc<dyn Broker>;
    /// The user that clients connect as.
    fn user(&self) -> String;
}

/// A host that no other test uses.
pub fn some_host() -> HostId {
    format!("kvm-{}", Uuid::new_v4().simple()).parse().unwrap()
}

/// A message with its own id.
pub fn message(exchange: &'static str, routing_key: String, body: &[u8]) -> Outgoing {
    let properties = Properties { message_id: Uuid::new_v4().to_string(), persistent: true, ..Properties::default() };
    Outgoing { exchange, routing_key, properties, body: body.to_vec() }
}

/// A job for a host.
pub fn job(host: &HostId, body: &[u8]) -> Outgoing {
    message(JOBS_EXCHANGE, jobs_key(host), body)
}

/// Opens a session and waits until it is up.
pub async fn open_up(broker: &dyn Broker, host: &HostId) -> Box<dyn HostSession> {
    let session = broker.open_host(host).await;
    reach(session.as_ref(), &SessionState::Up).await;
    session
}

/// Waits for a state.
pub async fn reach(session: &dyn HostSession, wanted: &SessionState) {
    let mut state = session.state();
    let reached = timeout(PATIENCE, state.wait_for(|state| state == wanted)).await.map(|reached| reached.map(drop));
    assert!(matches!(reached, Ok(Ok(()))), "{wanted:?} was not reached; it is {:?}", *session.state().borrow());
}

/// The next delivery, within patience.
pub async fn next(session: &mut dyn HostSession) -> Delivery {
    timeout(PATIENCE, session.next()).await.expect("no delivery")
}

/// Nothing comes for a while.
pub async fn nothing_arrives(session: &mut dyn HostSession) {
    if let Ok(delivery) = timeout(QUIET, session.next()).await {
        panic!("a delivery from {:?} with key `{}`", delivery.queue, delivery.routing_key);
    }
}

async fn next_event(subscription: &mut dyn Subscription) -> (String, Vec<u8>) {
    match timeout(PATIENCE, subscription.next()).await.expect("no event").expect("the subscription ended") {
        Heard::Message(message) => (message.routing_key, message.body),
        other => panic!("{other:?}"),
    }
}

/// Runs the suite.
pub async fn all(ground: &dyn Ground) {
    a_job_for_a_host_without_queues_is_an_error_that_names_it(ground).await;
    only_the_unroutable_among_many_in_flight_are_refused(ground).await;
    a_refused_message_does_not_take_others_with_it(ground).await;
    a_confirmed_job_reaches_the_worker_whole(ground).await;
    jobs_of_one_publisher_keep_their_order(ground).await;
    urgent_jobs_come_from_their_own_queue(ground).await;
    un_acked_jobs_come_back_redelivered(ground).await;
    an_ack_after_the_session_ended_says_so(ground).await;
    super::wanted_jobs::all(ground).await;
    un_acked_jobs_are_bounded_by_the_prefetch(ground).await;
    pings_of_others_are_not_passed_on(ground).await;
    a_second_worker_waits_until_the_first_has_gone(ground).await;
    who_reads_a_control_queue_is_told_to_those_who_only_look(ground).await;
    subscribers_get_what_they_bound(ground).await;
    an_oversized_body_is_cut(ground).await;
    a_subscriber_reads_the_longest_letter_whole(ground).await;
    super::letters::all(ground).await;
}

async fn a_job_for_a_host_without_queues_is_an_error_that_names_it(ground: &dyn Ground) {
    let publisher = ground.client("publisher").publisher();
    let host = some_host();
    let error = publisher.publish(job(&host, b"job")).await.unwrap_err();
    let expected = PublishError::Unroutable { exchange: JOBS_EXCHANGE.to_owned(), routing_key: jobs_key(&host) };
    assert_eq!(error, expected);
    assert!(error.to_string().contains(host.as_str()), "{error}");
}

async fn only_the_unroutable_among_many_in_flight_are_refused(ground: &dyn Ground) {
    let broker = ground.client("publisher");
    let (here, nowhere) = (some_host(), some_host());
    let session = open_up(broker.as_ref(), &here).await;
    let publisher = broker.publisher();
    for round in 0..10 {
        let outcomes = join_all((0..200).map(|number| {
            let (publisher, lost) = (publisher.clone(), number % 3 == 1);
            let mut outgoing = job(if lost { &nowhere } else { &here }, b"job");
            // What needs no disk is confirmed at once, and then together with its neighbours.
            outgoing.properties.persistent = round % 2 == 0;
            async move { (number, lost, publisher.publish(outgoing).await) }
        }))
        .await;
        for (number, lost, outcome) in outcomes {
            match outcome {
                Ok(()) => assert!(!lost, "message {number} has no queue and counts as published"),
                Err(PublishError::Unroutable { .. }) => assert!(lost, "message {number} was kept and counts as lost"),
                Err(other) => panic!("message {number}: {other}"),
            }
        }
    }
    session.close().await;
}

async fn a_refused_message_does_not_take_others_with_it(ground: &dyn Ground) {
    let broker = ground.client("publisher");
    let host = some_host();
    let session = open_up(broker.as_ref(), &host).await;
    let publisher = broker.publisher();
    let outcomes = join_all((0..60).map(|number| {
        let (publisher, bad) = (publisher.clone(), number % 20 == 7);
        let outgoing = if bad { message("no.such.exchange", jobs_key(&host), b"job") } else { job(&host, b"job") };
        async move { (number, bad, publisher.publish(outgoing).await) }
    }))
    .await;
    for (number, bad, outcome) in outcomes {
        match outcome {
            Ok(()) => assert!(!bad, "message {number} went nowhere and counts as published"),
            Err(PublishError::Refused { reason, .. }) => {
                assert!(bad, "message {number}: {reason}");
                assert!(reason.contains("no exchange"), "{reason}");
            }
            Err(other) => panic!("message {number}: {other}"),
        }
    }
    session.close().await;
}

async fn a_confirmed_job_reaches_the_worker_whole(ground: &dyn Ground) {
    let host = some_host();
    let mut session = open_up(ground.client("worker").as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    let mut sent = job(&host, &[0, 159, 146, 150, 255]);
    sent.properties = Properties {
        content_type: "application/vnd.msgpack".to_owned(),
        message_type: "longshore.job.v1".to_owned(),
        message_id: Uuid::now_v7().to_string(),
        correlation_id: Some("correlation".to_owned()),
        app_id: Some("tests/1".to_owned()),
        user_id: None,
        timestamp: Some(1_700_000_000),
        headers: [("traceparent".to_owned(), "00-ab-cd-01".to_owned()), ("name".to_owned(), "Zoë".to_owned())].into(),
        persistent: true,
    };
    ground.client("publisher").publisher().publish(sent.clone()).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.queue, HostQueue::Jobs);
    assert_eq!(delivery.routing_key, jobs_key(&host));
    let read = Properties { user_id: Some(ground.user()), ..sent.properties };
    assert_eq!((delivery.body, delivery.properties), (sent.body, read));
    assert!(!delivery.redelivered);
    assert!(!delivery.has_cc);
    assert!(delivery.settle.ack().await);
    nothing_arrives(session.as_mut()).await;
    session.close().await;
}

async fn jobs_of_one_publisher_keep_their_order(ground: &dyn Ground) {
    let host = some_host();
    let mut session = open_up(ground.client("worker").as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    let publisher = ground.client("publisher").publisher();
    let sent: Vec<Vec<u8>> = (0..600_u32).map(|number| number.to_be_bytes().to_vec()).collect();
    let publishing = join_all(sent.iter().map(|body| publisher.publish(job(&host, body))));
    let reading = async {
        let mut read = Vec::new();
        while read.len() < sent.len() {
            let delivery = next(session.as_mut()).await;
            read.push(delivery.body);
            assert!(delivery.settle.ack().await);
        }
        read
    };
    let (published, read) = tokio::join!(publishing, reading);
    assert!(published.into_iter().all(|outcome| outcome.is_ok()));
    assert_eq!(read, sent);
    session.close().await;
}

async fn urgent_jobs_come_from_their_own_queue(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(message(JOBS_EXCHANGE, urgent_jobs_key(&host), b"restore")).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert_eq!((delivery.queue, delivery.body.as_slice()), (HostQueue::UrgentJobs, b"restore".as_slice()));
    assert!(delivery.settle.ack().await);
    session.close().await;
}

async fn un_acked_jobs_come_back_redelivered(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut first = open_up(broker.as_ref(), &host).await;
    first.want_jobs(WantedJobs::All);
    let publisher = broker.publisher();
    for body in [b"1", b"2", b"3"] {
        publisher.publish(job(&host, body)).await.unwrap();
    }
    let one = next(first.as_mut()).await;
    let two = next(first.as_mut()).await;
    assert!(one.settle.ack().await);
    first.close().await;
    drop(two);
    let mut second = open_up(ground.client("worker").as_ref(), &host).await;
    second.want_jobs(WantedJobs::All);
    for (body, redelivered) in [(b"2", Some(true)), (b"3", None)] {
        let delivery = next(second.as_mut()).await;
        assert_eq!(delivery.body, body);
        // The third was perhaps on its way to the first worker, perhaps not.
        assert!(redelivered.is_none_or(|redelivered| redelivered == delivery.redelivered));
        assert!(delivery.settle.ack().await);
    }
    nothing_arrives(second.as_mut()).await;
    second.close().await;
}

async fn an_ack_after_the_session_ended_says_so(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(job(&host, b"job")).await.unwrap();
    let delivery = next(session.as_mut()).await;
    session.close().await;
    assert!(!delivery.settle.ack().await, "an ack that cannot have been sent");
}

async fn un_acked_jobs_are_bounded_by_the_prefetch(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    let publisher = broker.publisher();
    let outcomes = join_all((0..40_u8).map(|number| publisher.publish(job(&host, &[number])))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let mut held = Vec::new();
    for _ in 0..PREFETCH {
        held.push(next(session.as_mut()).await);
    }
    nothing_arrives(session.as_mut()).await;
    for delivery in held {
        assert!(delivery.settle.ack().await);
    }
    for _ in 0..8 {
        assert!(next(session.as_mut()).await.settle.ack().await);
    }
    session.close().await;
}

async fn pings_of_others_are_not_passed_on(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    broker.publisher().publish(message(CONTROL_EXCHANGE, control_key(&host, "ping"), b"")).await.unwrap();
    nothing_arrives(session.as_mut()).await;
    assert_eq!(*session.state().borrow(), SessionState::Up);
    session.close().await;
}

async fn a_second_worker_waits_until_the_first_has_gone(ground: &dyn Ground) {
    let host = some_host();
    let first_broker = ground.client("worker");
    let first = open_up(first_broker.as_ref(), &host).await;
    let second_broker = ground.client("worker");
    let mut second = second_broker.open_host(&host).await;
    second.want_jobs(WantedJobs::All);
    reach(second.as_ref(), &SessionState::HostIdInUse).await;
    assert_eq!(*first.state().borrow(), SessionState::Up, "the first is not disturbed");
    let mut state = second.state();
    let held = |state: &SessionState| matches!(state, SessionState::Up | SessionState::Blocked { .. });
    let holds = tokio::spawn(async move { state.wait_for(held).await.map(drop) });
    first_broker.publisher().publish(job(&host, b"job")).await.unwrap();
    nothing_arrives(second.as_mut()).await;
    assert!(!holds.is_finished(), "the second counts as the holder beside the first");
    first.close().await;
    reach(second.as_ref(), &SessionState::Up).await;
    holds.await.unwrap().unwrap();
    let delivery = next(second.as_mut()).await;
    assert_eq!(delivery.body, b"job");
    assert!(delivery.settle.ack().await);
    second.close().await;
}

async fn who_reads_a_control_queue_is_told_to_those_who_only_look(ground: &dyn Ground) {
    let [unknown, read] = [some_host(), some_host()];
    let session = open_up(ground.client("worker").as_ref(), &read).await;
    let onlooker = ground.client("controller");
    let hosts = [unknown.clone(), read.clone(), unknown];
    assert_eq!(onlooker.control_readers(&hosts).await.unwrap(), [None, Some(1), None]);
    session.close().await;
    let left = async {
        while onlooker.control_readers(std::slice::from_ref(&read)).await.unwrap() != [Some(0)] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, left).await.expect("a worker that has gone is still seen");
}

async fn subscribers_get_what_they_bound(ground: &dyn Ground) {
    let (here, there) = (some_host(), some_host());
    let broker = ground.client("watcher");
    let mut one_host = broker.subscribe(EVENTS_EXCHANGE, &[format!("*.*.{here}")]).await.unwrap();
    let mut progress = broker
        .subscribe(EVENTS_EXCHANGE, &[format!("*.progress.{here}"), format!("*.progress.{there}")])
        .await
        .unwrap();
    let publisher = broker.publisher();
    for (event, host) in [("started", &here), ("progress", &here), ("progress", &there), ("completed", &here)] {
        let key = event_key("backup", event, host);
        publisher.publish(message(EVENTS_EXCHANGE, key, event.as_bytes())).await.or_else(ignore_unroutable).unwrap();
    }
    for event in ["started", "progress", "completed"] {
        let expected = (event_key("backup", event, &here), event.as_bytes().to_vec());
        assert_eq!(next_event(one_host.as_mut()).await, expected);
    }
    for host in [&here, &there] {
        assert_eq!(next_event(progress.as_mut()).await.0, event_key("backup", "progress", host));
    }
    drop(progress);
    drop(one_host);
    let gone = async {
        let key = event_key("backup", "completed", &here);
        while publisher.publish(message(EVENTS_EXCHANGE, key.clone(), b"")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the queue of a dropped subscription stays");
}

fn event_key(kind: &str, event: &str, host: &HostId) -> String {
    format!("{kind}.{event}.{host}")
}

fn ignore_unroutable(error: PublishError) -> Result<(), PublishError> {
    if matches!(error, PublishError::Unroutable { .. }) { Ok(()) } else { Err(error) }
}

async fn an_oversized_body_is_cut(ground: &dyn Ground) {
    let host = some_host();
    let broker = ground.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(job(&host, &vec![7; 3 * BODY_BYTES_KEPT_MAX])).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.body.len(), BODY_BYTES_KEPT_MAX);
    assert!(delivery.settle.ack().await);
    session.close().await;
}

async fn a_subscriber_reads_the_longest_letter_whole(ground: &dyn Ground) {
    let broker = ground.client("watcher");
    let key = format!("backup.failed.{}", some_host());
    let mut letters = broker.subscribe(DEAD_EXCHANGE, std::slice::from_ref(&key)).await.unwrap();
    let publisher = broker.publisher();
    for bytes in [1 << 20, LETTER_BYTES_KEPT_MAX - 1, LETTER_BYTES_KEPT_MAX + 1] {
        publisher.publish(message(DEAD_EXCHANGE, key.clone(), &vec![7; bytes])).await.unwrap();
        let (_, read) = next_event(letters.as_mut()).await;
        assert_eq!(read.len(), bytes.min(LETTER_BYTES_KEPT_MAX));
    }
}
