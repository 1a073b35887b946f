//! The door against a real RabbitMQ, which these tests start, kill, block and lie to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod contract;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/rabbit.rs"]
mod rabbit;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore::broker::settings::BrokerSettings;
use longshore::broker::topology::{CONTROL_EXCHANGE, EVENTS_EXCHANGE, control_key, control_queue};
use longshore::broker::{Broker, PublishError, SessionState};
use longshore::model::id::HostId;
use tokio::time::timeout;

use contract::broker::{Ground, job, message, next, open_up, reach, some_host};
use proxy::Proxy;
use rabbit::Rabbit;

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
}

fn settings(rabbit: &Rabbit, name: &str) -> BrokerSettings {
    BrokerSettings::new(rabbit.uri().parse().unwrap(), name)
}

#[tokio::test]
async fn the_real_broker_keeps_the_contract() {
    contract::broker::all(&Rabbit::start()).await;
}

/// Runs `body` on a thread, for what blocks.
async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(body).await.unwrap()
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
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(true);

    let stop = Arc::new(AtomicBool::new(false));
    let confirmed: Arc<Mutex<Vec<(Instant, Vec<u8>)>>> = Arc::default();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (publisher, host, stop, confirmed) =
                (broker.publisher(), host.clone(), Arc::clone(&stop), Arc::clone(&confirmed));
            tokio::spawn(async move {
                for number in 0_u64.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let body = format!("{caller}-{number}").into_bytes();
                    publisher.publish(job(&host, &body)).await.unwrap();
                    confirmed.lock().unwrap().push((Instant::now(), body));
                }
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let read = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let (mut bodies, mut deliveries) = (BTreeSet::new(), 0_u64);
            while !done.load(Ordering::SeqCst) {
                if let Ok(delivery) = timeout(Duration::from_secs(1), session.next()).await {
                    deliveries += 1;
                    bodies.insert(delivery.body);
                    delivery.settle.ack().await;
                }
            }
            session.close().await;
            (bodies, deliveries)
        }
    });

    tokio::time::sleep(LOAD_AROUND_THE_CRASH).await;
    let (rabbit, open_at) = blocking(move || {
        rabbit.kill();
        let open_at = rabbit.boot();
        (rabbit, open_at)
    })
    .await;
    tokio::time::sleep(LOAD_AROUND_THE_CRASH + PUBLISHING_AGAIN_WITHIN).await;
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        timeout(PATIENCE, caller).await.expect("a publish never returned").unwrap();
    }
    // The reader is done when nothing has come for a while after the last confirm.
    tokio::time::sleep(LOAD_AROUND_THE_CRASH).await;
    done.store(true, Ordering::SeqCst);
    let (bodies, deliveries) = timeout(PATIENCE, read).await.unwrap().unwrap();
    drop(rabbit);

    let confirmed = confirmed.lock().unwrap();
    let lost: Vec<_> = confirmed.iter().filter(|(_, body)| !bodies.contains(body)).collect();
    assert!(lost.is_empty(), "{} of {} confirmed jobs are lost", lost.len(), confirmed.len());
    let again = confirmed.iter().filter(|(at, _)| *at > open_at).map(|(at, _)| *at - open_at).min().unwrap();
    println!(
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
    session.want_jobs(true);
    let began = Instant::now();
    proxy.swallow_open_connections();
    // The broker does not know that the old connection is dead and holds the queue for it, so the end of that is ours to tell.
    broker.publisher().publish(job(&host, b"after")).await.unwrap();
    println!("publishing again {} ms after the network began to swallow", began.elapsed().as_millis());
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.body, b"after");
    assert!(delivery.settle.ack().await);
    reach(session.as_ref(), &SessionState::Up).await;
    session.close().await;
}

/// Small trips to one broker, since starting one takes seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_in_many_moods() {
    let rabbit = Arc::new(Rabbit::start());
    a_deleted_control_queue_is_declared_again(&rabbit).await;
    a_blocking_broker_is_shown_and_waited_for(&rabbit).await;
    a_wrong_password_is_an_error_without_the_password(&rabbit).await;
    an_enrolled_worker_needs_no_right_to_declare(&rabbit).await;
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
    session.want_jobs(true);
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
    let broker = longshore::broker::connect(BrokerSettings::new(uri.parse().unwrap(), "cli")).unwrap();
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
    session.want_jobs(true);
    broker.publisher().publish(job(&host, b"job")).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert!(delivery.settle.ack().await);
    session.close().await;

    let nobody = some_host();
    let stranger = broker.open_host(&nobody).await;
    let mut state = stranger.state();
    let told =
        state.wait_for(|state| matches!(state, SessionState::Connecting { reason } if reason.contains("NOT_FOUND")));
    timeout(PATIENCE, told).await.expect("a host that is not enrolled is not told so").unwrap();
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
