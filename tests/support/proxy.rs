//! A TCP proxy that can swallow what passes, as a firewall that forgot a connection does.
#![allow(dead_code)] // Each live target uses its own part.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// The proxy. Its threads end with the connections and the process.
pub struct Proxy {
    address: SocketAddr,
    /// Connections made before this many swallow everything.
    swallowed_until: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
}

impl Proxy {
    /// A proxy before `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (swallowed_until, accepted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&swallowed_until), Arc::clone(&accepted));
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(target) else { continue };
                let number = count.fetch_add(1, Ordering::SeqCst);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, until) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&until));
                    thread::spawn(move || forward(from, to, number, &until));
                }
            }
        });
        Self { address, swallowed_until, accepted }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes, on new connections neither.
    pub fn swallow_everything(&self) {
        self.swallowed_until.store(u64::MAX, Ordering::SeqCst);
    }

    /// From now on nothing passes on the connections that are open. New ones work.
    pub fn swallow_open_connections(&self) {
        self.swallowed_until.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, number: u64, until: &AtomicU64) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if number >= until.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // It fails where the other end was faster.
    _ = to.shutdown(Shutdown::Both);
}
