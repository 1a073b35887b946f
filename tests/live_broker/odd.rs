//! Messages with properties that AMQP allows and that our library does not take: a publisher in another language can send them.

use longshore::broker::topology::{CONTROL_EXCHANGE, JOBS_EXCHANGE};
use longshore::broker::{HostSession, SessionState, WantedJobs};
use longshore::model::id::HostId;

use crate::blocking;
use crate::contract::broker::{Ground, job, next, open_up, some_host};
use crate::rabbit::Rabbit;
use crate::raw::{HEADERS, MESSAGE_ID, Raw, long, short};

fn nested(levels: u32) -> Vec<u8> {
    let arrays = (1..=levels).fold(Vec::new(), |inner, _| [&b"A"[..], &long(&inner)].concat());
    long(&[&b"\x04deep"[..], &arrays].concat())
}

/// Each of them once made every connection of the worker end, or its process.
pub async fn odd_properties_make_no_worker_deaf(rabbit: &Rabbit) {
    let host = some_host();
    let broker = rabbit.client("worker");
    let mut session = open_up(broker.as_ref(), &host).await;
    session.want_jobs(WantedJobs::All);
    let (to, key) = (rabbit.address(), host.clone());
    blocking(move || {
        let mut raw = Raw::connect(to);
        let key = key.as_str().as_bytes();
        let many =
            long(&(0..100).flat_map(|_| [&short(b"h")[..], b"S", &long(&[b'x'; 500])].concat()).collect::<Vec<_>>());
        raw.publish(JOBS_EXCHANGE, key, HEADERS, &many, b"headers of 50 KB");
        raw.publish(JOBS_EXCHANGE, key, MESSAGE_ID, &short(b"no\xffutf8"), b"message id");
        raw.publish(JOBS_EXCHANGE, key, HEADERS, &long(b"\x02n\xffS\0\0\0\x01x"), b"header name");
        raw.publish(JOBS_EXCHANGE, key, HEADERS, &nested(24_000), b"nested");
    })
    .await;
    let mut messages = Vec::new();
    while messages.len() < 4 {
        let delivery = next(session.as_mut()).await;
        assert!(!delivery.redelivered, "the connection was lost over {}", String::from_utf8_lossy(&delivery.body));
        messages.push((delivery.body.clone(), delivery.properties.message_id.clone()));
        assert!(delivery.settle.ack().await);
    }
    let bodies: Vec<_> = messages.iter().map(|(body, _)| String::from_utf8_lossy(body)).collect();
    assert_eq!(bodies, ["headers of 50 KB", "message id", "header name", "nested"]);
    assert_eq!(messages[1].1, "no?utf8");
    a_control_message_with_an_odd_key_is_not_trusted(rabbit, &host, session.as_mut()).await;
    broker.publisher().publish(job(&host, b"after")).await.unwrap();
    assert_eq!(next(session.as_mut()).await.body, b"after");
    assert_eq!(*session.state().borrow(), SessionState::Up);
    session.close().await;
}

async fn a_control_message_with_an_odd_key_is_not_trusted(
    rabbit: &Rabbit,
    host: &HostId,
    session: &mut dyn HostSession,
) {
    let (to, key) = (rabbit.address(), [host.as_str().as_bytes(), b".\xff"].concat());
    blocking(move || Raw::connect(to).publish(CONTROL_EXCHANGE, &key, HEADERS, &nested(100), b"control")).await;
    let delivery = next(session).await;
    assert_eq!((delivery.routing_key, delivery.has_cc), (format!("{host}.?"), true));
    assert!(delivery.settle.ack().await);
}
