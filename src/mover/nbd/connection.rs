//! A connection: requests in, answers out, in any order, until it is broken or ended.

use std::collections::HashMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::assembly::{Answer, Asked, Assembly, Wanted};
use super::{Export, Extent, NbdError, REQUEST_BYTES_MAX, handshake, reader, wire};

/// Most requests under way on one connection. QEMU's server takes 16 at once and leaves the rest in the socket.
const IN_FLIGHT_MAX: usize = 32;
/// Longest handshake, and longest goodbye.
const HANDSHAKE_DEADLINE_SECONDS: u64 = 30;
/// Longest wait for one answer. A disk that needs longer is dead for our purposes; a share may take a while to come back.
const REQUEST_DEADLINE_SECONDS: u64 = 180;

/// How long a connection waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the handshake.
    pub handshake: Duration,
    /// For the answer to each request.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(HANDSHAKE_DEADLINE_SECONDS),
            request: Duration::from_secs(REQUEST_DEADLINE_SECONDS),
        }
    }
}

/// A connection to one export. Dropping it closes the socket at once.
#[derive(Debug)]
pub struct Connection {
    export: Export,
    limits: Limits,
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    writer: Task,
    reader: Task,
}

impl Connection {
    /// Connects to the export `name` behind a unix socket and asks for `contexts`.
    pub async fn open(socket: &Path, name: &str, contexts: &[&str], limits: Limits) -> Result<Self, NbdError> {
        let connect = async {
            let stream = UnixStream::connect(socket).await.map_err(|source| NbdError::socket("connect to", source))?;
            Self::over(stream, name, contexts, limits).await
        };
        let late = || NbdError::Deadline { request: "an NBD handshake".into(), deadline: limits.handshake };
        timeout(limits.handshake, connect).await.unwrap_or_else(|_| Err(late()))
    }

    pub(super) async fn over(
        mut stream: UnixStream,
        name: &str,
        contexts: &[&str],
        limits: Limits,
    ) -> Result<Self, NbdError> {
        let export = handshake::negotiate(&mut stream, name, contexts).await?;
        let (from_server, to_server) = stream.into_split();
        let shared = Arc::new(Shared::new());
        let (outgoing, requests) = mpsc::channel(IN_FLIGHT_MAX);
        let writer = tokio::spawn(write_requests(to_server, requests, Arc::clone(&shared)));
        // Heads are read through a small buffer; bytes of disks are longer than it and go straight to their place.
        let from_server = BufReader::with_capacity(HEAD_BUFFER_BYTES, from_server);
        let reader = tokio::spawn(reader::read_answers(from_server, Arc::clone(&shared)));
        Ok(Self { export, limits, shared, outgoing, writer: Task(writer), reader: Task(reader) })
    }

    /// What is exported.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Fills `buffer` from `offset` on, and gives it back.
    pub async fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, NbdError> {
        let asked = self.asked(wire::COMMAND_READ, offset, buffer.len())?;
        match self.request(asked, Wanted::Bytes(buffer), None).await? {
            Answer::Bytes(buffer) => Ok(buffer),
            _ => Err(NbdError::Misuse("answer".into())),
        }
    }

    /// Writes the part `range` of `buffer` at `offset`, and gives the buffer back.
    pub async fn write(&self, offset: u64, buffer: Vec<u8>, range: Range<usize>) -> Result<Vec<u8>, NbdError> {
        let asked = self.asked(wire::COMMAND_WRITE, offset, range.len())?;
        if buffer.get(range.clone()).is_none() {
            return Err(NbdError::Misuse(asked.to_string()));
        }
        let (written, back) = oneshot::channel();
        let payload = Payload { buffer, range, written };
        let until = Instant::now() + self.limits.request;
        self.request(asked, Wanted::Nothing, Some(payload)).await?;
        // A server may answer before it has read everything, and then never read the rest.
        match timeout_at(until, back).await {
            Ok(back) => back.map_err(|_| self.shared.reason()),
            Err(_) => Err(self.too_late(asked)),
        }
    }

    /// Makes a range read as zeros, as a hole where the server can.
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        if !self.export.can_write_zeroes {
            return Err(NbdError::Misuse("write of zeros".into()));
        }
        let asked = self.asked_range(wire::COMMAND_WRITE_ZEROES, offset, length)?;
        self.request(asked, Wanted::Nothing, None).await.map(drop)
    }

    /// What each agreed context says of the range from `offset` on: for each, in the order in which they were asked for, at
    /// least one extent, and none beyond the range; the server may say less than was asked. Contexts that the server does
    /// not have are left out.
    pub async fn block_status(&self, offset: u64, length: u64) -> Result<Vec<Vec<Extent>>, NbdError> {
        let contexts: Vec<u32> = self.export.contexts.iter().copied().flatten().collect();
        let asked = self.asked_range(wire::COMMAND_BLOCK_STATUS, offset, length)?;
        let wanted = Wanted::Extents { contexts, block: self.export.min_block.into(), size: self.export.size };
        match self.request(asked, wanted, None).await? {
            Answer::Extents(extents) => Ok(extents),
            _ => Err(NbdError::Misuse("answer".into())),
        }
    }

    /// Makes every answered write durable, as far as the server can.
    pub async fn flush(&self) -> Result<(), NbdError> {
        if !self.export.can_flush {
            return Err(NbdError::Misuse("flush".into()));
        }
        let asked = Asked { command: wire::COMMAND_FLUSH, offset: 0, length: 0 };
        self.request(asked, Wanted::Nothing, None).await.map(drop)
    }

    /// Says goodbye, and waits until the server has closed the socket.
    pub async fn disconnect(self) {
        let Self { outgoing, mut writer, mut reader, limits, .. } = self;
        let header = wire::request_header(wire::COMMAND_DISCONNECT, 0, 0, 0);
        let goodbye = async {
            let sent = outgoing.send(Outgoing { header, payload: None }).await.is_ok();
            drop(outgoing);
            if sent {
                let _ended = ((&mut writer.0).await, (&mut reader.0).await);
            }
        };
        // Courtesy only: everything that matters was answered before. A server that does not close is dropped.
        let _closed = timeout(limits.handshake, goodbye).await;
    }

    fn asked(&self, command: u16, offset: u64, length: usize) -> Result<Asked, NbdError> {
        if length > REQUEST_BYTES_MAX {
            return Err(NbdError::Misuse(format!("request for {length} bytes")));
        }
        self.asked_range(command, offset, u64::try_from(length).unwrap_or(u64::MAX))
    }

    fn asked_range(&self, command: u16, offset: u64, length: u64) -> Result<Asked, NbdError> {
        let misuse = || NbdError::Misuse(format!("request for {length} bytes at offset {offset}"));
        let asked = Asked { command, offset, length: u32::try_from(length).map_err(|_| misuse())? };
        let block = u64::from(self.export.min_block);
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.export.size);
        let aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
        if inside && aligned && length > 0 { Ok(asked) } else { Err(misuse()) }
    }

    async fn request(&self, asked: Asked, wanted: Wanted, payload: Option<Payload>) -> Result<Answer, NbdError> {
        let answer = async {
            let broken = || self.shared.reason();
            let slot = Arc::clone(&self.shared.slots).acquire_owned().await.map_err(|_| broken())?;
            let (done, answered) = oneshot::channel();
            let cookie = self.shared.enter(Pending { assembly: Assembly::new(asked, wanted), done, _slot: slot })?;
            let header = wire::request_header(asked.command, cookie, asked.offset, asked.length);
            self.outgoing.send(Outgoing { header, payload }).await.map_err(|_| broken())?;
            answered.await.unwrap_or_else(|_| Err(broken()))
        };
        match timeout(self.limits.request, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.too_late(asked)),
        }
    }

    /// What comes for this request later could not be told from what was made up: the connection is done.
    fn too_late(&self, asked: Asked) -> NbdError {
        let late = NbdError::Deadline { request: format!("a {asked}"), deadline: self.limits.request };
        self.shared.break_with(late.clone());
        late
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Small enough that hardly any byte of a disk is copied through it, large enough for a run of heads.
const HEAD_BUFFER_BYTES: usize = 4 * 1024;

/// A request on its way to the socket.
#[derive(Debug)]
struct Outgoing {
    header: [u8; wire::REQUEST_HEADER_BYTES],
    payload: Option<Payload>,
}

#[derive(Debug)]
struct Payload {
    buffer: Vec<u8>,
    range: Range<usize>,
    written: oneshot::Sender<Vec<u8>>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub assembly: Assembly,
    pub done: oneshot::Sender<Result<Answer, NbdError>>,
    pub _slot: OwnedSemaphorePermit,
}

/// What callers, reader and writer share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    slots: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, Pending>,
    last_cookie: u64,
    broken: Option<NbdError>,
}

impl Shared {
    fn new() -> Self {
        Self { state: Mutex::default(), slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and every state in it is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, pending: Pending) -> Result<u64, NbdError> {
        let mut state = self.state();
        if let Some(reason) = &state.broken {
            return Err(reason.clone());
        }
        state.last_cookie += 1;
        let cookie = state.last_cookie;
        state.waiting.insert(cookie, pending);
        Ok(cookie)
    }

    /// Takes the request that `cookie` names, to work on it without the lock.
    pub(super) fn take(&self, cookie: u64) -> Result<Pending, NbdError> {
        let taken = self.state().waiting.remove(&cookie);
        taken.ok_or_else(|| NbdError::Protocol(format!("a reply to request {cookie}, which waits for none")))
    }

    /// Puts back a request whose answer is not whole.
    pub(super) fn put_back(&self, cookie: u64, pending: Pending) {
        let mut state = self.state();
        if state.broken.is_none() {
            state.waiting.insert(cookie, pending);
        }
    }

    /// Fails every request under way and to come. The first reason stays.
    pub(super) fn break_with(&self, reason: NbdError) {
        let mut state = self.state();
        state.broken.get_or_insert(reason);
        state.waiting.clear();
        self.slots.close();
    }

    fn reason(&self) -> NbdError {
        let closed = || NbdError::socket("use", std::io::ErrorKind::NotConnected.into());
        self.state().broken.clone().unwrap_or_else(closed)
    }
}

async fn write_requests(
    mut to_server: impl AsyncWrite + Unpin,
    mut requests: mpsc::Receiver<Outgoing>,
    shared: Arc<Shared>,
) {
    while let Some(Outgoing { header, payload }) = requests.recv().await {
        let bytes = payload.as_ref().and_then(|payload| payload.buffer.get(payload.range.clone())).unwrap_or_default();
        if let Err(source) = write_both(&mut to_server, &header, bytes).await {
            shared.break_with(NbdError::socket("write to", source));
            return;
        }
        if let Some(Payload { buffer, written, .. }) = payload {
            // A caller that has gone does not need its buffer.
            let _caller_gone = written.send(buffer);
        }
    }
}

/// Header and bytes in one system call where the socket has room: a server woken for the header alone would wait again.
async fn write_both(socket: &mut (impl AsyncWrite + Unpin), header: &[u8], bytes: &[u8]) -> std::io::Result<()> {
    let count = socket.write_vectored(&[IoSlice::new(header), IoSlice::new(bytes)]).await?;
    if let Some(rest) = header.get(count..) {
        socket.write_all(rest).await?;
    }
    let sent_of_bytes = count.saturating_sub(header.len());
    socket.write_all(bytes.get(sent_of_bytes..).unwrap_or_default()).await
}
