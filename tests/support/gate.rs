//! A gate between a worker and libvirt that keeps a call back, or its answer: what was asked for has happened or not, and the worker still
//! waits to be told. Every other call, and every other connection, passes.
#![allow(dead_code)] // Each live target uses its own part.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::lab::libvirt_uri;

/// `REMOTE_PROGRAM` of libvirt's `remote_protocol.x`.
const PROGRAM: u32 = 0x2000_8086;
/// `REMOTE_PROC_DOMAIN_FSFREEZE`.
pub const FREEZE: u32 = 335;
/// `REMOTE_PROC_DOMAIN_ATTACH_DEVICE_FLAGS`.
pub const ATTACH: u32 = 160;
/// `REMOTE_PROC_DOMAIN_BACKUP_BEGIN`.
pub const BEGIN: u32 = 421;
/// `REMOTE_PROC_DOMAIN_DEFINE_XML_FLAGS`.
pub const DEFINE: u32 = 350;
/// Length, program, version and procedure: the head of each frame, four big-endian words (`virnetprotocol.x`).
const HEAD_BYTES: usize = 16;

/// What is kept back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Libvirt is not asked.
    Call,
    /// Libvirt does it.
    Answer,
}

/// The gate. Its threads end with the connections and the process.
pub struct Gate {
    socket: PathBuf,
    holds: Arc<AtomicBool>,
    has_held: Arc<AtomicBool>,
}

impl Gate {
    /// Listens in `folder` and passes everything on to the laboratory's libvirt but that of one procedure.
    pub fn new(folder: &Path, procedure: u32, keeps: Keeps) -> Self {
        let uri = libvirt_uri();
        let (_, daemon) = uri.split_once("socket=").expect("the laboratory's URI names its socket");
        let (socket, daemon) = (folder.join("gate"), daemon.to_owned());
        let listener = UnixListener::bind(&socket).unwrap();
        let holds = Arc::new(AtomicBool::new(true));
        let has_held = Arc::new(AtomicBool::new(false));
        let gate = Self { socket, holds: holds.clone(), has_held: has_held.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&daemon)) else { continue };
                let shut = Arc::new(AtomicBool::new(false));
                let (calls, answers) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let (holds, has_held, shut_for) = (holds.clone(), has_held.clone(), shut.clone());
                thread::spawn(move || {
                    pass(calls.0, calls.1, |head| {
                        let held = procedure_of(head) == Some(procedure) && holds.load(Ordering::SeqCst);
                        if held {
                            shut_for.store(true, Ordering::SeqCst);
                            has_held.store(true, Ordering::SeqCst);
                        }
                        !held || keeps == Keeps::Answer
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

    /// It keeps something back.
    pub fn has_held(&self) -> bool {
        self.has_held.load(Ordering::SeqCst)
    }

    /// From now on it is kept back, again where it was let through.
    pub fn close(&self) {
        self.holds.store(true, Ordering::SeqCst);
    }

    /// From now on that passes, too.
    pub fn open(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }
}

fn procedure_of(head: &[u8; HEAD_BYTES]) -> Option<u32> {
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    (word(4) == PROGRAM).then(|| word(12))
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
