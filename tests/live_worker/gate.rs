//! A gate between a worker and libvirt that keeps the answer to a freeze back: the guest is frozen, and the worker still
//! waits to be told. Every other call, and every other connection, passes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::lab::libvirt_uri;

/// `REMOTE_PROGRAM` and `REMOTE_PROC_DOMAIN_FSFREEZE` of libvirt's `remote_protocol.x`.
const PROGRAM: u32 = 0x2000_8086;
const FREEZE: u32 = 335;
/// Length, program, version and procedure: the head of each frame, four big-endian words (`virnetprotocol.x`).
const HEAD_BYTES: usize = 16;

/// The gate. Its threads end with the connections and the process.
pub struct Gate {
    socket: PathBuf,
    holds: Arc<AtomicBool>,
}

impl Gate {
    /// Listens in `folder` and passes everything on to the laboratory's libvirt.
    pub fn new(folder: &Path) -> Self {
        let uri = libvirt_uri();
        let (_, daemon) = uri.split_once("socket=").expect("the laboratory's URI names its socket");
        let (socket, daemon) = (folder.join("gate"), daemon.to_owned());
        let listener = UnixListener::bind(&socket).unwrap();
        let holds = Arc::new(AtomicBool::new(true));
        let gate = Self { socket, holds: holds.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&daemon)) else { continue };
                let shut = Arc::new(AtomicBool::new(false));
                let (calls, answers) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let (holds, shut_for) = (holds.clone(), shut.clone());
                thread::spawn(move || {
                    pass(calls.0, calls.1, |head| {
                        if is_freeze(head) && holds.load(Ordering::SeqCst) {
                            shut_for.store(true, Ordering::SeqCst);
                        }
                        true
                    })
                });
                thread::spawn(move || pass(answers.0, answers.1, |_| !shut.load(Ordering::SeqCst)));
            }
        });
        gate
    }

    /// The URI by which libvirt is reached through it.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket.display())
    }

    /// From now on freezes are answered, too.
    pub fn open(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }
}

fn is_freeze(head: &[u8; HEAD_BYTES]) -> bool {
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    (word(4), word(12)) == (PROGRAM, FREEZE)
}

/// Passes frame after frame that `lets` through, until either end has gone.
fn pass(mut from: UnixStream, mut to: UnixStream, mut lets: impl FnMut(&[u8; HEAD_BYTES]) -> bool) {
    let mut next = || -> std::io::Result<()> {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head)?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let mut rest = vec![0; length.saturating_sub(HEAD_BYTES)];
        from.read_exact(&mut rest)?;
        if lets(&head) {
            to.write_all(&[head.as_slice(), &rest].concat())?;
        }
        Ok(())
    };
    while next().is_ok() {}
    let _closed = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}
