//! The door against a real RabbitMQ, which these tests start, kill, block and lie to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "support/authority.rs"]
mod authority;
mod contract;
#[path = "live_broker/dead.rs"]
mod dead;
#[path = "support/dead_job.rs"]
mod dead_job;
#[path = "live_broker/letter_operator.rs"]
mod letter_operator;
#[path = "live_broker/odd.rs"]
mod odd;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/rabbit.rs"]
mod rabbit;
#[path = "support/raw.rs"]
mod raw;
#[path = "live_broker/secured.rs"]
mod secured;
#[path = "live_broker/tls.rs"]
mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use longshore::broker::settings::BrokerSettings;
use longshore::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, DEAD_QUEUE, EVENTS_EXCHANGE, QueueType, control_key, control_queue, host_queues,
    jobs_queue,
};
use longshore::broker::{Broker, Heard, HostOnBroker, HostSession, PublishError, Publisher, SessionState, WantedJobs};
use longshore::model::id::HostId;
use tokio::time::timeout;

use contract::broker::{Ground, job, message, next, open_up, reach, some_host};
use contract::wanted_jobs::flip_with_every_job;
use proxy::Proxy;
use rabbit::{Rabbit, Release};

/// Longest wait for anything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon publishing works again after the broker's return.
const PUBLISHING_AGAIN_WITHIN: Duration = Duration::from_secs(5);

impl Ground for Rabbit {
    fn client(&self, name: &str) -> Arc<dyn Broker> {
        let mut settings = settings(self, name);
        settings.heartbeat_seconds = 1;
        longshore::broker::connect(settings).unwrap()
    }

    fn user(&self) -> String {
        settings(self, "user").uri.user().to_owned()
    }
}

fn settings(rabbit: &Rabbit, name: &str) -> BrokerSettings {
    BrokerSettings::new(rabbit.uri().parse().unwrap(), name)
}

/// The contract in one virtual host and the secured fleet in another, at once: both mostly wait.
async fn keeps_the_contract_and_its_secrets(release: Release) {
    let rabbit = Arc::new(blocking(move || Rabbit::start_managed(release)).await);
    tokio::join!(contract::broker::all(rabbit.as_ref()), secured::all(&rabbit, release));
    blocking(move || drop(rabbit)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_12s_broker_keeps_the_contract_and_its_secrets() {
    keeps_the_contract_and_its_secrets(Release::Debian12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_13s_broker_keeps_the_contract_and_its_secrets() {
    keeps_the_contract_and_its_secrets(Release::Debian13).await;
}

/// Runs `body` on a thread, for what blocks.
async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(body).await.unwrap()
}

/// A job that was confirmed, and when.
type Confirmed = (Instant, Vec<u8>);

/// Publishes jobs, one after the other, until told to stop.
async fn keep_publishing(
    publisher: Arc<dyn Publisher>,
    host: HostId,
    caller: u32,
    stop: Arc<AtomicBool>,
) -> Vec<Confirmed> {
    let mut confirmed = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let body = format!("{caller}-{}", confirmed.len()).into_bytes();
        publisher.publish(job(&host, &body)).await.unwrap();
        confirmed.push((Instant::now(), body));
    }
    confirmed
}

/// Reads and acks until told to stop and nothing more comes. Gives the bodies and the number of deliveries.
async fn keep_reading(mut session: Box<dyn HostSession>, stop: Arc<AtomicBool>) -> (BTreeSet<Vec<u8>>, usize) {
    const NOTHING_MORE: Duration = Duration::from_secs(3);
    let (mut bodies, mut deliveries) = (BTreeSet::new(), 0);
    loop {
        match timeout(NOTHING_MORE, session.next()).await {
            Ok(delivery) => {
                deliveries += 1;
                bodies.insert(delivery.body);
                // What cannot be acked comes again.
                _ = delivery.settle.ack().await;
            }
            Err(_) if stop.load(Ordering::SeqCst) => break,
            Err(_) => {}
        }
    }
    session.close().await;
    (bodies, deliveries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_and_restarted_under_load_loses_no_confirmed_job() {
    const CALLERS: u32 = 32;
    const LOAD_AROUND_THE_CRASH: Duration = Duration::from_secs(3);
    let mut rabbit = Rabbit::start();
    let host = some_host();
    let mut settings = settings(&rabbit, "worker");
    settings.publish_wait = PATIENCE;
    let broker = longshore::broker::connect(settings).unwrap();
    let session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    let (published, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let reader = tokio::spawn(keep_reading(session, Arc::clone(&read)));
    let callers = (0..CALLERS)
        .map(|caller| tokio::spawn(keep_publishing(broker.publisher(), host.clone(), caller, Arc::clone(&published))));
    let callers: Vec<_> = callers.collect();

    tokio::time::sleep(LOAD_AROUND_THE_CRASH).await;
    let (rabbit, open_at) = blocking(move || {
        rabbit.kill();
        let open_at = rabbit.boot();
        (rabbit, open_at)
    })
    .await;
    tokio::time::sleep(LOAD_AROUND_THE_CRASH + PUBLISHING_AGAIN_WITHIN).await;
    published.store(true, Ordering::SeqCst);
    let mut confirmed: Vec<Confirmed> = Vec::new();
    for caller in callers {
        confirmed.extend(timeout(PATIENCE, caller).await.expect("a publish never returned").unwrap());
    }
    read.store(true, Ordering::SeqCst);
    let (bodies, deliveries) = timeout(PATIENCE, reader).await.unwrap().unwrap();
    drop(rabbit);

    let lost = confirmed.iter().filter(|(_, body)| !bodies.contains(body)).count();
    assert_eq!(lost, 0, "of {} confirmed jobs", confirmed.len());
    let again = confirmed.iter().filter(|(at, _)| *at > open_at).map(|(at, _)| *at - open_at).min().unwrap();
    eprintln!(
        "{} jobs confirmed, {deliveries} deliveries; publishing again {} ms after the port was open",
        confirmed.len(),
        again.as_millis()
    );
    assert!(again < PUBLISHING_AGAIN_WITHIN, "publishing again after {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowing_network_is_noticed_by_the_ping() {
    let rabbit = Rabbit::start();
    let proxy = Proxy::start(rabbit.address());
    let host = some_host();
    let uri = format!("amqp://guest:guest@{}/%2f", proxy.address());
    let mut settings = BrokerSettings::new(uri.parse().unwrap(), "worker");
    // The heartbeat would take two minutes.
    settings.heartbeat_seconds = 60;
    settings.ping_interval = Duration::from_millis(500);
    settings.ping_wait = Duration::from_secs(3);
    settings.publish_wait = PATIENCE;
    let broker = longshore::broker::connect(settings).unwrap();
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(job(&host, b"before")).await.unwrap();
    assert!(next(session.as_mut()).await.settle.ack().await);
    let began = Instant::now();
    proxy.swallow_open_connections();
    // The broker does not know that the old connection is dead and holds the queue for it, so the end of that is ours to tell.
    broker.publisher().publish(job(&host, b"after")).await.unwrap();
    eprintln!("publishing again {} ms after the network began to swallow", began.elapsed().as_millis());
    let mut delivery = next(session.as_mut()).await;
    if delivery.body == b"before" {
        // Its ack may have been swallowed.
        assert!(delivery.redelivered);
        assert!(delivery.settle.ack().await);
        delivery = next(session.as_mut()).await;
    }
    assert_eq!(delivery.body, b"after");
    assert!(delivery.settle.ack().await);
    reach(session.as_ref(), &SessionState::Up).await;
    session.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_hears_of_the_gap_that_a_restart_makes() {
    let mut rabbit = Rabbit::start();
    let broker = rabbit.client("watcher");
    let mut events = broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await.unwrap();
    let rabbit = blocking(move || {
        rabbit.kill();
        rabbit.boot();
        rabbit
    })
    .await;
    let lost = timeout(PATIENCE, events.next()).await.expect("the loss is not told");
    assert!(matches!(lost, Some(Heard::Lost(_))), "{lost:?}");
    assert_eq!(timeout(PATIENCE, events.next()).await.expect("the return is not told"), Some(Heard::Back));
    broker.publisher().publish(message(EVENTS_EXCHANGE, "backup.failed.x".to_owned(), b"after")).await.unwrap();
    match timeout(PATIENCE, events.next()).await.unwrap() {
        Some(Heard::Message(message)) => assert_eq!(message.body, b"after"),
        other => panic!("{other:?}"),
    }
    blocking(move || drop(rabbit)).await;
}

/// Small trips to one broker, since starting one takes seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_in_many_moods() {
    let rabbit = Arc::new(Rabbit::start());
    odd::odd_properties_make_no_worker_deaf(&rabbit).await;
    a_deleted_control_queue_is_declared_again(&rabbit).await;
    a_blocking_broker_is_shown_and_waited_for(&rabbit).await;
    a_wrong_password_is_an_error_without_the_password(&rabbit).await;
    an_enrolled_worker_needs_no_right_to_declare(&rabbit).await;
    a_worker_at_its_bound_has_no_job_of_a_quorum_queue_given_up(&rabbit).await;
    dead::all(&rabbit).await;
}

async fn ctl(rabbit: &Arc<Rabbit>, arguments: &'static [&'static str]) -> String {
    let rabbit = Arc::clone(rabbit);
    blocking(move || rabbit.ctl(arguments)).await
}

async fn a_deleted_control_queue_is_declared_again(rabbit: &Arc<Rabbit>) {
    let host = some_host();
    let broker = rabbit.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    let deleting = Arc::clone(rabbit);
    let queue = control_queue(&host);
    blocking(move || deleting.ctl(&["delete_queue", &queue])).await;
    let command = || message(CONTROL_EXCHANGE, control_key(&host, "cancel"), b"it");
    let arrives = async {
        while broker.publisher().publish(command()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        session.next().await
    };
    let delivery = timeout(PATIENCE, arrives).await.expect("the control queue is not read again");
    assert_eq!(delivery.routing_key, control_key(&host, "cancel"));
    session.close().await;
}

async fn a_blocking_broker_is_shown_and_waited_for(rabbit: &Arc<Rabbit>) {
    let host = some_host();
    let mut settings = settings(rabbit, "worker");
    settings.publish_wait = Duration::from_secs(2);
    settings.ping_interval = Duration::from_millis(500);
    let broker = longshore::broker::connect(settings).unwrap();
    let publisher = broker.publisher();
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    publisher.publish(job(&host, b"before")).await.unwrap();
    let held = next(session.as_mut()).await;

    ctl(rabbit, &["set_vm_memory_high_watermark", "0"]).await;
    let mut state = session.state();
    timeout(PATIENCE, state.wait_for(|state| matches!(state, SessionState::Blocked { .. }))).await.unwrap().unwrap();
    match publisher.publish(job(&host, b"blocked")).await {
        Err(PublishError::Unconfirmed { reason, .. }) => assert!(reason.contains("takes no messages"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(held.settle.ack().await, "acks go on the connection that does not publish");

    ctl(rabbit, &["set_vm_memory_high_watermark", "0.4"]).await;
    reach(session.as_ref(), &SessionState::Up).await;
    publisher.publish(job(&host, b"after")).await.unwrap();
    let mut bodies = Vec::new();
    while bodies.last().is_none_or(|body| body != b"after") {
        let delivery = next(session.as_mut()).await;
        bodies.push(delivery.body);
        assert!(delivery.settle.ack().await);
    }
    assert!(!bodies.contains(&b"before".to_vec()), "acked while the broker was blocking");
    session.close().await;
}

async fn a_wrong_password_is_an_error_without_the_password(rabbit: &Arc<Rabbit>) {
    let uri = format!("amqp://guest:s3cr3t@{}/%2f", rabbit.address());
    let mut settings = BrokerSettings::new(uri.parse().unwrap(), "cli");
    settings.patient = false;
    let broker = longshore::broker::connect(settings).unwrap();
    match broker.publisher().publish(job(&some_host(), b"job")).await {
        Err(PublishError::Unconfirmed { sent: false, waited_seconds: 0, reason, .. }) => {
            assert!(reason.contains("ACCESS_REFUSED"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let Err(error) = broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await else { panic!("it let us in") };
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains("ACCESS_REFUSED"), "{text}");
    assert!(!text.contains("s3cr3t"), "{text}");
}

async fn an_enrolled_worker_needs_no_right_to_declare(rabbit: &Arc<Rabbit>) {
    let host = some_host();
    let enrolment = rabbit.client("enrolment");
    open_up(enrolment.as_ref(), &host).await.close().await;
    ctl(rabbit, &["add_user", "worker", "pw"]).await;
    ctl(rabbit, &["set_permissions", "worker", "^$", "^longshore\\..*$", "^longshore\\..*$"]).await;
    let uri = format!("amqp://worker:pw@{}/%2f", rabbit.address());
    let broker = longshore::broker::connect(BrokerSettings::new(uri.parse().unwrap(), "worker")).unwrap();
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(job(&host, b"job")).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert!(delivery.settle.ack().await);
    session.close().await;

    assert_eq!(broker.inspect(&host).await.unwrap(), HostOnBroker::default(), "it needs no right to declare either");
    let nobody = some_host();
    let missing = host_queues(&nobody, QueueType::Classic).into_iter().map(|queue| queue.name).collect();
    let not_enrolled = HostOnBroker { missing, ..HostOnBroker::default() };
    assert_eq!(broker.inspect(&nobody).await.unwrap(), not_enrolled);
    ctl(rabbit, &["set_permissions", "worker", "^$", "^longshore\\.control$", "^longshore\\..*$"]).await;
    let found = rabbit_client(rabbit, "worker:pw").inspect(&host).await.unwrap();
    assert_eq!(found.closed_exchanges, [EVENTS_EXCHANGE, DEAD_EXCHANGE]);
    ctl(rabbit, &["set_permissions", "worker", "^$", "^longshore\\..*$", "^longshore\\..*$"]).await;

    let stranger = broker.open_host(&nobody).await;
    let mut state = stranger.state();
    let told =
        state.wait_for(|state| matches!(state, SessionState::Connecting { reason } if reason.contains("broker_not_set_up") && reason.contains("NOT_FOUND")));
    timeout(PATIENCE, told).await.expect("a host that is not enrolled is not told so").unwrap();
}

/// A client of the user and with the password of `user:password`.
fn rabbit_client(rabbit: &Rabbit, user: &str) -> Arc<dyn Broker> {
    let uri = format!("amqp://{user}@{}/%2f", rabbit.address());
    longshore::broker::connect(BrokerSettings::new(uri.parse().unwrap(), "client")).unwrap()
}

/// With a delivery limit below the number of flips, so that jobs that go back are given up.
async fn a_worker_at_its_bound_has_no_job_of_a_quorum_queue_given_up(rabbit: &Arc<Rabbit>) {
    const JOBS: u8 = 40;
    const LIMITS: &str =
        r#"{"delivery-limit":1,"dead-letter-exchange":"longshore.dead","dead-letter-routing-key":"backup.limit.kvm"}"#;
    const JOB_QUEUES: &str = "^longshore\\.jobs\\.";
    ctl(rabbit, &["set_policy", "limits", JOB_QUEUES, LIMITS, "--apply-to", "queues"]).await;
    let host = some_host();
    let mut settings = settings(rabbit, "worker");
    settings.jobs_queue_type = QueueType::Quorum;
    settings.prefetch = 8;
    let broker = longshore::broker::connect(settings).unwrap();
    let mut session = open_up(broker.as_ref(), &host).await;
    flip_with_every_job(broker.as_ref(), &host, session.as_mut(), JOBS).await;
    session.close().await;

    let all_acked = async {
        loop {
            let queues = ctl(rabbit, &["list_queues", "name", "type", "messages"]).await;
            // The counts lag behind the acks.
            if queues.lines().any(|line| line == format!("{}\tquorum\t0", jobs_queue(&host))) {
                break queues;
            }
        }
    };
    let queues = timeout(PATIENCE, all_acked).await.expect("jobs went back into their queue");
    assert!(queues.lines().any(|line| line == format!("{DEAD_QUEUE}\tclassic\t0")), "given up:\n{queues}");
}

/// A process that is busy for longer than its heartbeats. The runtime of the test is the process's.
#[tokio::test(flavor = "current_thread")]
async fn a_busy_process_keeps_its_connections() {
    const BUSY: Duration = Duration::from_secs(9);
    let rabbit = Arc::new(Rabbit::start());
    let host: HostId = "kvm-07".parse().unwrap();
    let mut settings = settings(&rabbit, "kvm-07");
    settings.heartbeat_seconds = 2;
    let broker = longshore::broker::connect(settings).unwrap();
    let session = open_up(broker.as_ref(), &host).await;
    let before = ctl(&rabbit, &["list_connections", "pid", "timeout", "client_properties"]).await;
    // The runtime is blocked, as by a library call that hangs.
    std::thread::sleep(BUSY);
    let after = ctl(&rabbit, &["list_connections", "pid", "timeout", "client_properties"]).await;
    assert_eq!(connections(&before), connections(&after), "connections were made anew");
    assert_eq!(*session.state().borrow(), SessionState::Up);
    for role in ["publish", "consume"] {
        let name = format!("longshore kvm-07 {} {role}", env!("CARGO_PKG_VERSION"));
        assert!(before.contains(&name), "`{name}` is not among\n{before}");
    }
    assert_eq!(connections(&before).len(), 2);
    session.close().await;
}

/// Process ids inside the broker, one a connection, and the heartbeats.
fn connections(listed: &str) -> BTreeSet<(String, String)> {
    let mut connections = BTreeSet::new();
    for line in listed.lines().filter(|line| line.starts_with('<')) {
        let mut fields = line.split('\t').map(str::to_owned);
        let (pid, heartbeat) = (fields.next().unwrap(), fields.next().unwrap());
        assert_eq!(heartbeat, "2");
        connections.insert((pid, heartbeat));
    }
    connections
}
