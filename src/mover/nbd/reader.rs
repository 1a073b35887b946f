//! The task that takes answers from the socket and hands each to whom it belongs.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::NbdError;
use super::assembly::Content;
use super::connection::{Pending, Shared};
use super::wire::{self, ReplyHead};

/// Runs until the connection is broken or closed.
pub(super) async fn read_answers(mut socket: impl AsyncRead + Unpin, shared: Arc<Shared>) {
    loop {
        if let Err(reason) = read_answer(&mut socket, &shared).await {
            shared.break_with(reason);
            return;
        }
    }
}

/// Takes one simple reply, or one chunk. An error is one of the connection; one of a request goes to its caller.
async fn read_answer(socket: &mut (impl AsyncRead + Unpin), shared: &Shared) -> Result<(), NbdError> {
    let mut head = [0; wire::SIMPLE_HEAD_BYTES + wire::CHUNK_HEAD_MORE_BYTES];
    let (simple, more) = head.split_at_mut(wire::SIMPLE_HEAD_BYTES);
    fill(socket, simple).await?;
    if wire::is_chunk(simple)? {
        fill(socket, more).await?;
    }
    match wire::reply_head(&head)? {
        ReplyHead::Simple { error, cookie } => {
            let Pending { assembly, done, _slot } = shared.take(cookie)?;
            answer(done, assembly.take_simple(error))
        }
        ReplyHead::Chunk { flags, kind, cookie, length } => {
            let mut pending = shared.take(cookie)?;
            if let Err(reason) = read_content(socket, &mut pending, flags, kind, length).await {
                // Before its request is dropped, so that the caller finds the reason.
                shared.break_with(reason.clone());
                return Err(reason);
            }
            if flags & wire::CHUNK_DONE == 0 {
                shared.put_back(cookie, pending);
                return Ok(());
            }
            let Pending { assembly, done, _slot } = pending;
            answer(done, assembly.finish())
        }
    }
}

async fn read_content(
    socket: &mut (impl AsyncRead + Unpin),
    pending: &mut Pending,
    flags: u16,
    kind: u16,
    length: u32,
) -> Result<(), NbdError> {
    match pending.assembly.expect(flags, kind, length)? {
        Content::Bytes(count) => {
            let mut offset = [0; 8];
            fill(socket, &mut offset).await?;
            fill(socket, pending.assembly.place(u64::from_be_bytes(offset), count)?).await
        }
        Content::Small(count) => {
            let mut content = vec![0; count];
            fill(socket, &mut content).await?;
            pending.assembly.take(kind, &content)
        }
    }
}

/// Hands over an answer; one that is against the protocol breaks the connection too.
fn answer<T>(
    done: tokio::sync::oneshot::Sender<Result<T, NbdError>>,
    answer: Result<T, NbdError>,
) -> Result<(), NbdError> {
    let broken = match &answer {
        Err(reason @ NbdError::Protocol(_)) => Err(reason.clone()),
        _ => Ok(()),
    };
    // A caller that has gone does not need its answer.
    let _caller_gone = done.send(answer);
    broken
}

async fn fill(socket: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Result<(), NbdError> {
    socket.read_exact(bytes).await.map(drop).map_err(|source| NbdError::socket("read from", source))
}
