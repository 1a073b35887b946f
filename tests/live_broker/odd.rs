//! Messages with properties that AMQP allows and that our library does not take: a publisher in another language can send them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use longshore::broker::topology::{CONTROL_EXCHANGE, JOBS_EXCHANGE};
use longshore::broker::{HostSession, SessionState, WantedJobs};
use longshore::model::id::HostId;

use crate::blocking;
use crate::contract::broker::{Ground, job, next, open_up, some_host};
use crate::rabbit::Rabbit;

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, channel][..], &long(payload), &[0xce]].concat()
}

/// As much of a client as it takes to publish whatever bytes.
pub struct Raw(TcpStream);

impl Raw {
    fn connect(to: SocketAddr) -> Self {
        Self::connect_as(to, "guest", "guest", "/")
    }

    pub fn connect_as(to: SocketAddr, user: &str, password: &str, vhost: &str) -> Self {
        let login = format!("\0{user}\0{password}");
        let mut raw = Self(TcpStream::connect(to).unwrap());
        raw.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        raw.wait_for(10, 10);
        raw.method(
            0,
            &[&[0, 10, 0, 11, 0, 0, 0, 0][..], &short(b"PLAIN"), &long(login.as_bytes()), &short(b"en_US")].concat(),
        );
        raw.wait_for(10, 30);
        raw.method(0, &[0, 10, 0, 31, 0, 9, 0, 2, 0, 0, 0, 0]);
        raw.method(0, &[&[0, 10, 0, 40][..], &short(vhost.as_bytes()), &[0, 0]].concat());
        raw.wait_for(10, 41);
        raw.method(1, &[0, 20, 0, 10, 0]);
        raw.wait_for(20, 11);
        raw.method(1, &[0, 85, 0, 10, 0]);
        raw.wait_for(85, 11);
        raw
    }

    fn method(&mut self, channel: u8, payload: &[u8]) {
        self.0.write_all(&frame(1, channel, payload)).unwrap();
    }

    /// Reads frames up to the one with that method.
    fn wait_for(&mut self, class: u8, method: u8) {
        if let Err(refusal) = self.answered(class, method) {
            panic!("the broker closed the channel: {refusal}");
        }
    }

    /// Reads frames up to the one with that method, or to the broker's reason for closing the channel.
    fn answered(&mut self, class: u8, method: u8) -> Result<(), String> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).unwrap();
            let bytes = u32::from_be_bytes(head[3..].try_into().unwrap());
            let mut payload = vec![0; bytes as usize + 1];
            self.0.read_exact(&mut payload).unwrap();
            let got = (head[0] == 1).then(|| (payload[1], payload[3]));
            if got == Some((20, 40)) {
                return Err(String::from_utf8_lossy(&payload).into_owned());
            }
            assert_ne!(got, Some((10, 50)), "the broker closed the connection: {}", String::from_utf8_lossy(&payload));
            if got == Some((class, method)) {
                return Ok(());
            }
        }
    }

    /// Publishes and waits for the confirm. `flags` say which of the properties are there.
    fn publish(&mut self, exchange: &str, key: &[u8], flags: u16, properties: &[u8], body: &[u8]) {
        self.method(1, &[&[0, 60, 0, 40, 0, 0][..], &short(exchange.as_bytes()), &short(key), &[0]].concat());
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), properties].concat();
        self.0.write_all(&[frame(2, 1, &header), frame(3, 1, body)].concat()).unwrap();
        self.wait_for(60, 80);
    }

    /// Takes a message of a queue and keeps it un-acked while it lives, without being a consumer.
    pub fn take(&mut self, queue: &str) {
        self.method(1, &[&[0, 60, 0, 70, 0, 0][..], &short(queue.as_bytes()), &[0]].concat());
        self.wait_for(60, 71);
    }

    /// Publishes with a copy to the key `further`; what the broker says if it does not allow that.
    pub fn publish_copied(&mut self, exchange: &str, key: &str, further: &str, user: &str) -> Result<(), String> {
        const USER_ID: u16 = 1 << 4;
        self.method(
            1,
            &[&[0, 60, 0, 40, 0, 0][..], &short(exchange.as_bytes()), &short(key.as_bytes()), &[0]].concat(),
        );
        let keys = long(&[&b"S"[..], &long(further.as_bytes())].concat());
        let headers = long(&[&b"\x02CCA"[..], &keys].concat());
        let flags = (HEADERS | USER_ID).to_be_bytes();
        let header = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &flags, &headers, &short(user.as_bytes())].concat();
        self.0.write_all(&frame(2, 1, &header)).unwrap();
        self.answered(60, 80)
    }
}

const HEADERS: u16 = 1 << 13;
const MESSAGE_ID: u16 = 1 << 7;

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
