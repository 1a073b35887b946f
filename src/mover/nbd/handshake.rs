//! The talk before the first request: fixed newstyle, structured replies, contexts, `NBD_OPT_GO`.
//!
//! Structured replies are a condition: without them a server cannot say where an error begins, nor what is a hole.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::server_words;
use super::wire::{self, Fields};
use super::{NbdError, REQUEST_BYTES_MAX};

/// Longest answer to an option, bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 16 * 1024;
/// Most answers to one option.
const OPTION_REPLIES_MAX: usize = 64;
/// Most contexts that can be asked for.
const CONTEXTS_MAX: usize = 8;
/// Largest smallest block that the protocol allows, bytes.
const MIN_BLOCK_BYTES_MAX: u32 = 64 * 1024;

/// What a server exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its size, bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// It can be told to make writes durable.
    pub can_flush: bool,
    /// It can be told that a range is zeros.
    pub can_write_zeroes: bool,
    /// Every offset and length is a multiple of this, bytes.
    pub min_block: u32,
    /// The server's number for each context in the order in which they were asked for; none for one that it does not have.
    pub contexts: Vec<Option<u32>>,
}

/// Agrees with the server on `name` and on as many of `contexts` as it has.
pub(super) async fn negotiate(stream: &mut UnixStream, name: &str, contexts: &[&str]) -> Result<Export, NbdError> {
    let fits = |text: &str| text.len() <= wire::STRING_BYTES_MAX && !text.contains('\0');
    if !fits(name) || contexts.len() > CONTEXTS_MAX || !contexts.iter().all(|context| fits(context)) {
        return Err(NbdError::Misuse("name of an export or context".into()));
    }
    greet(stream).await?;
    match ask(stream, wire::OPTION_STRUCTURED_REPLY, &[], "structured replies").await?.as_slice() {
        [] => {}
        _ => return Err(NbdError::Protocol("an answer to NBD_OPT_STRUCTURED_REPLY carries something".into())),
    }
    let contexts = if contexts.is_empty() { Vec::new() } else { choose_contexts(stream, name, contexts).await? };
    let mut data = Vec::new();
    wire::put_string(&mut data, name);
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&wire::INFO_BLOCK_SIZE.to_be_bytes());
    let replies = ask(stream, wire::OPTION_GO, &data, &format!("the export `{}`", name.escape_debug())).await?;
    export(&replies, contexts)
}

async fn greet(stream: &mut UnixStream) -> Result<(), NbdError> {
    let mut greeting = [0; 18];
    read(stream, &mut greeting).await?;
    let mut fields = Fields(&greeting);
    if (fields.u64()?, fields.u64()?) != (wire::MAGIC, wire::OPTION_MAGIC) {
        return Err(NbdError::Protocol("the server does not greet like a newstyle NBD server".into()));
    }
    let flags = fields.u16()?;
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Protocol("the server does not speak the fixed newstyle".into()));
    }
    let answer = u32::from(flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES));
    write(stream, &answer.to_be_bytes()).await
}

async fn choose_contexts(stream: &mut UnixStream, name: &str, contexts: &[&str]) -> Result<Vec<Option<u32>>, NbdError> {
    let mut data = Vec::new();
    wire::put_string(&mut data, name);
    data.extend_from_slice(&u32::try_from(contexts.len()).unwrap_or(0).to_be_bytes());
    contexts.iter().for_each(|context| wire::put_string(&mut data, context));
    let replies = ask(stream, wire::OPTION_SET_META_CONTEXT, &data, "the contexts of block status").await?;
    let mut chosen = vec![None; contexts.len()];
    for (kind, bytes) in replies {
        let mut fields = Fields(&bytes);
        let (id, given) = (fields.u32()?, fields.0);
        let asked = contexts.iter().position(|context| context.as_bytes() == given);
        let place = asked.and_then(|index| chosen.get_mut(index)).filter(|place| place.is_none());
        match place {
            Some(place) if kind == wire::REPLY_META_CONTEXT => *place = Some(id),
            _ => {
                let words = server_words(given);
                return Err(NbdError::Protocol(format!("context `{words}` was not asked for, or is given twice")));
            }
        }
    }
    let mut ids: Vec<u32> = chosen.iter().copied().flatten().collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(NbdError::Protocol("two contexts have the same number".into()));
    }
    Ok(chosen)
}

/// Sends an option and takes all answers until the acknowledgement: kind and content of each.
async fn ask(stream: &mut UnixStream, option: u32, data: &[u8], what: &str) -> Result<Vec<(u32, Vec<u8>)>, NbdError> {
    write(stream, &wire::option(option, data)).await?;
    let mut replies = Vec::new();
    while replies.len() < OPTION_REPLIES_MAX {
        let mut head = [0; wire::OPTION_REPLY_BYTES];
        read(stream, &mut head).await?;
        let head = wire::option_reply(&head)?;
        if head.option != option {
            return Err(NbdError::Protocol(format!("an answer to option {} came for option {option}", head.option)));
        }
        if head.length > OPTION_REPLY_BYTES_MAX {
            return Err(NbdError::Protocol(format!("an answer to option {option} has {} bytes", head.length)));
        }
        let mut content = vec![0; usize::try_from(head.length).unwrap_or(0)];
        read(stream, &mut content).await?;
        match head.kind {
            wire::REPLY_ACK if content.is_empty() => return Ok(replies),
            wire::REPLY_ACK => return Err(NbdError::Protocol("an acknowledgement carries something".into())),
            kind if kind & wire::REPLY_ERROR_BIT != 0 => {
                return Err(NbdError::Negotiation { what: what.to_owned(), words: refusal(kind, &content) });
            }
            kind => replies.push((kind, content)),
        }
    }
    Err(NbdError::Protocol(format!("option {option} has more than {OPTION_REPLIES_MAX} answers")))
}

/// The document's names for refusals, with the server's words.
fn refusal(kind: u32, words: &[u8]) -> String {
    let meaning = match kind ^ wire::REPLY_ERROR_BIT {
        1 => "not supported",
        2 => "not allowed",
        3 => "not valid",
        4 => "not on this platform",
        5 => "only with TLS",
        6 => "no such export",
        7 => "the server is shutting down",
        8 => "only with block sizes",
        9 => "too much",
        _ => "unknown reason",
    };
    let words = server_words(words);
    if words.is_empty() { meaning.to_owned() } else { format!("{meaning} ({words})") }
}

/// What the answers to `NBD_OPT_GO` say.
fn export(replies: &[(u32, Vec<u8>)], contexts: Vec<Option<u32>>) -> Result<Export, NbdError> {
    let (mut size_and_flags, mut block_sizes) = (None, None);
    for (kind, content) in replies {
        if *kind != wire::REPLY_INFO {
            return Err(NbdError::Protocol(format!("an answer of kind {kind} to NBD_OPT_GO")));
        }
        let mut fields = Fields(content);
        match fields.u16()? {
            wire::INFO_EXPORT => {
                size_and_flags = Some((fields.u64()?, fields.u16()?));
                fields.end()?;
            }
            wire::INFO_BLOCK_SIZE => {
                block_sizes = Some((fields.u32()?, fields.u32()?, fields.u32()?));
                fields.end()?;
            }
            // The document lets a server tell more than it was asked.
            _ => {}
        }
    }
    let (size, flags) =
        size_and_flags.ok_or_else(|| NbdError::Protocol("the server does not say how large the export is".into()))?;
    // The document's defaults for a server that says nothing, but for the smallest: older ones take any.
    let (min_block, preferred, max) = block_sizes.unwrap_or((1, 4096, 32 * 1024 * 1024));
    let sane = min_block.is_power_of_two() && min_block <= MIN_BLOCK_BYTES_MAX && preferred >= min_block;
    if !sane || usize::try_from(max).unwrap_or(usize::MAX) < REQUEST_BYTES_MAX {
        return Err(NbdError::Protocol(format!("block sizes {min_block}, {preferred} and {max} cannot be used")));
    }
    if flags & wire::HAS_FLAGS == 0 || size % u64::from(min_block) != 0 || i64::try_from(size).is_err() {
        return Err(NbdError::Protocol(format!(
            "size {size} with smallest block {min_block} and flags {flags:#x} makes no sense"
        )));
    }
    Ok(Export {
        size,
        read_only: flags & wire::READ_ONLY != 0,
        can_flush: flags & wire::SEND_FLUSH != 0,
        can_write_zeroes: flags & wire::SEND_WRITE_ZEROES != 0,
        min_block,
        contexts,
    })
}

async fn read(stream: &mut UnixStream, bytes: &mut [u8]) -> Result<(), NbdError> {
    stream.read_exact(bytes).await.map(drop).map_err(|source| NbdError::socket("read from", source))
}

async fn write(stream: &mut UnixStream, bytes: &[u8]) -> Result<(), NbdError> {
    stream.write_all(bytes).await.map_err(|source| NbdError::socket("write to", source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn info(kind: u16, rest: &[u8]) -> (u32, Vec<u8>) {
        (wire::REPLY_INFO, [&kind.to_be_bytes()[..], rest].concat())
    }

    fn size(size: u64) -> (u32, Vec<u8>) {
        info(wire::INFO_EXPORT, &[&size.to_be_bytes()[..], &1u16.to_be_bytes()].concat())
    }

    fn blocks(min: u32, preferred: u32, max: u32) -> (u32, Vec<u8>) {
        info(wire::INFO_BLOCK_SIZE, &[min.to_be_bytes(), preferred.to_be_bytes(), max.to_be_bytes()].concat())
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_block_is_refused() {
        assert_eq!(export(&[size(1536), blocks(512, 4096, 1 << 25)], vec![]).unwrap().size, 1536);
        assert!(export(&[size(1537), blocks(512, 4096, 1 << 25)], vec![]).is_err());
        assert!(export(&[size(u64::MAX), blocks(1, 4096, 1 << 25)], vec![]).is_err());
        assert!(export(&[blocks(1, 4096, 1 << 25)], vec![]).is_err());
        for (min, preferred, max) in [(0, 0, 0), (3, 4096, 1 << 25), (1 << 17, 1 << 17, 1 << 25), (1, 4096, 4096)] {
            assert!(export(&[size(0), blocks(min, preferred, max)], vec![]).is_err(), "{min} {preferred} {max}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(replies in prop::collection::vec((0u32..6, prop::collection::vec(any::<u8>(), 0..20)), 0..6)) {
            if let Ok(export) = export(&replies, vec![]) {
                prop_assert_eq!(export.size % u64::from(export.min_block), 0);
            }
        }
    }
}
