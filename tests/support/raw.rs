//! A client that publishes whatever bytes: what AMQP allows and our library does not send, as a publisher in another language can.
#![allow(dead_code)] // Each live target uses its own part.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Flags of the properties that come with a message.
pub const HEADERS: u16 = 1 << 13;
pub const MESSAGE_ID: u16 = 1 << 7;
pub const USER_ID: u16 = 1 << 4;

pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, channel][..], &long(payload), &[0xce]].concat()
}

/// As much of a client as it takes to publish whatever bytes.
pub struct Raw(TcpStream);

impl Raw {
    pub fn connect(to: SocketAddr) -> Self {
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
    pub fn publish(&mut self, exchange: &str, key: &[u8], flags: u16, properties: &[u8], body: &[u8]) {
        self.method(1, &[&[0, 60, 0, 40, 0, 0][..], &short(exchange.as_bytes()), &short(key), &[0]].concat());
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), properties].concat();
        // An empty body has no frame.
        let body = if body.is_empty() { Vec::new() } else { frame(3, 1, body) };
        self.0.write_all(&[frame(2, 1, &header), body].concat()).unwrap();
        self.wait_for(60, 80);
    }

    /// Takes a message of a queue and keeps it un-acked while it lives, without being a consumer.
    pub fn take(&mut self, queue: &str) {
        self.method(1, &[&[0, 60, 0, 70, 0, 0][..], &short(queue.as_bytes()), &[0]].concat());
        self.wait_for(60, 71);
    }

    /// Publishes with a copy to the key `further`; what the broker says if it does not allow that.
    pub fn publish_copied(&mut self, exchange: &str, key: &str, further: &str, user: &str) -> Result<(), String> {
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
