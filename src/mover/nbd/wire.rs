//! Numbers of the NBD protocol, the layout of its headers, and reading them. Pure.

use super::NbdError;

/// First eight bytes of every server: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and first of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of both sides: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no padding after `NBD_OPT_EXPORT_NAME`, which we never send.
pub const NO_ZEROES: u16 = 1 << 1;

/// Choose the export and begin.
pub const OPTION_GO: u32 = 7;
/// Speak structured replies.
pub const OPTION_STRUCTURED_REPLY: u32 = 8;
/// Choose the contexts of block status.
pub const OPTION_SET_META_CONTEXT: u32 = 10;

/// The option is done.
pub const REPLY_ACK: u32 = 1;
/// A piece of information about the export.
pub const REPLY_INFO: u32 = 3;
/// A context that was chosen.
pub const REPLY_META_CONTEXT: u32 = 4;
/// Bit of every refusal of an option.
pub const REPLY_ERROR_BIT: u32 = 1 << 31;

/// Size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Sizes of requests.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the other flags mean something.
pub const HAS_FLAGS: u16 = 1;
/// Transmission flag: writes are refused.
pub const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: flush is understood.
pub const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: writing zeros is understood.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;

/// Read bytes.
pub const COMMAND_READ: u16 = 0;
/// Write bytes.
pub const COMMAND_WRITE: u16 = 1;
/// End the connection.
pub const COMMAND_DISCONNECT: u16 = 2;
/// Make what was answered durable.
pub const COMMAND_FLUSH: u16 = 3;
/// Make a range read as zeros.
pub const COMMAND_WRITE_ZEROES: u16 = 6;
/// Say what a range is.
pub const COMMAND_BLOCK_STATUS: u16 = 7;

/// Chunk flag: the last of its reply.
pub const CHUNK_DONE: u16 = 1;
/// Chunk with nothing in it.
pub const CHUNK_NONE: u16 = 0;
/// Chunk with bytes that were read.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk that says that a range reads as zeros.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk with extents of one context.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Bit of every chunk type that is an error.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Most bytes of text in the protocol.
pub const STRING_BYTES_MAX: usize = 4096;

/// The rest of bytes that came from a server.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], NbdError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| NbdError::Protocol("a message is shorter than its type says".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// The next two bytes as a number.
    pub fn u16(&mut self) -> Result<u16, NbdError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self) -> Result<u32, NbdError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes as a number.
    pub fn u64(&mut self) -> Result<u64, NbdError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Everything is read; more is against the protocol.
    pub fn end(&self) -> Result<(), NbdError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(NbdError::Protocol("a message is longer than its type says".into()))
        }
    }
}

/// Bytes of a request's header.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// A request's header.
pub fn request_header(command: u16, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_HEADER_BYTES] {
    let mut header = [0; REQUEST_HEADER_BYTES];
    let fields: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &0u16.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    for (place, byte) in header.iter_mut().zip(fields.into_iter().flatten()) {
        *place = *byte;
    }
    header
}

/// An option with its data.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    put_length(&mut bytes, data.len());
    bytes.extend_from_slice(data);
    bytes
}

/// A text with its length before it.
pub fn put_string(bytes: &mut Vec<u8>, text: &str) {
    put_length(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

/// The head of an answer to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// What it answers.
    pub option: u32,
    /// What it says.
    pub kind: u32,
    /// Bytes that follow.
    pub length: u32,
}

/// Bytes of the head of an answer to an option.
pub const OPTION_REPLY_BYTES: usize = 20;

/// Reads the head of an answer to an option.
pub fn option_reply(bytes: &[u8]) -> Result<OptionReply, NbdError> {
    let mut fields = Fields(bytes);
    if fields.u64()? != OPTION_REPLY_MAGIC {
        return Err(NbdError::Protocol("an answer to an option does not begin with its magic number".into()));
    }
    Ok(OptionReply { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? })
}

/// The head of an answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// The whole answer.
    Simple {
        /// 0 for success.
        error: u32,
        /// Which request.
        cookie: u64,
    },
    /// A part of the answer.
    Chunk {
        /// Flags.
        flags: u16,
        /// What is in it.
        kind: u16,
        /// Which request.
        cookie: u64,
        /// Bytes that follow.
        length: u32,
    },
}

/// Bytes of the shorter kind of head; a chunk's has [`CHUNK_HEAD_MORE_BYTES`] more.
pub const SIMPLE_HEAD_BYTES: usize = 16;
/// Bytes by which a chunk's head is longer.
pub const CHUNK_HEAD_MORE_BYTES: usize = 4;

/// Whether the head that begins with these bytes is a chunk's.
pub fn is_chunk(head: &[u8]) -> Result<bool, NbdError> {
    match Fields(head).u32()? {
        SIMPLE_REPLY_MAGIC => Ok(false),
        STRUCTURED_REPLY_MAGIC => Ok(true),
        other => Err(NbdError::Protocol(format!("a reply begins with {other:#010x}"))),
    }
}

/// Reads the head of an answer to a request, of either kind.
pub fn reply_head(bytes: &[u8]) -> Result<ReplyHead, NbdError> {
    let chunk = is_chunk(bytes)?;
    let mut fields = Fields(bytes.get(4..).unwrap_or_default());
    if chunk {
        let (flags, kind) = (fields.u16()?, fields.u16()?);
        return Ok(ReplyHead::Chunk { flags, kind, cookie: fields.u64()?, length: fields.u32()? });
    }
    Ok(ReplyHead::Simple { error: fields.u32()?, cookie: fields.u64()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_laid_out_as_the_document_says() {
        let header = request_header(COMMAND_READ, 0x0102_0304_0506_0708, 0x10_0000, 512);
        assert_eq!(header[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
        assert_eq!(header[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(header[16..], [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 2, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_head_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _any = option_reply(&bytes);
            let _any = reply_head(&bytes);
            let mut chunk = STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
            chunk.extend(&bytes);
            prop_assert_eq!(reply_head(&chunk).is_ok(), bytes.len() >= 16);
        }
    }
}
