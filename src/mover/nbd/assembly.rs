//! Putting one answer together from its chunks. Pure: it says where bytes go and when an answer is whole.

use std::ops::Range;

use super::NbdError;
use super::error::server_words;
use super::wire::{self, Fields};

/// Most chunks in one answer: a chunk for each 512 bytes of the longest request, and as many again that say nothing.
const CHUNKS_MAX: usize = 4096;
/// Most bytes of extents in one chunk; QEMU stops at 1 MiB (`NBD_MAX_BLOCK_STATUS_EXTENTS`).
const STATUS_CHUNK_BYTES_MAX: u32 = 4 + 1024 * 1024;
/// Most bytes of an error chunk: a number, the length of a text, the text, an offset.
const ERROR_CHUNK_BYTES_MAX: u32 = 4 + 2 + 8 + wire::STRING_BYTES_MAX as u32;

/// Bit of an allocation extent: it reads as zeros.
const STATE_ZERO: u32 = 2;
/// Bit of an extent of a dirty bitmap (`qemu:dirty-bitmap:`, docs/interop/nbd.txt of QEMU): it was written to.
const STATE_DIRTY: u32 = 1;
/// The topmost image of a chain.
const DEPTH_OF_ITS_OWN: u32 = 1;

/// A run of bytes of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; never 0.
    pub length: u64,
    /// The context's flags.
    pub flags: u32,
}

impl Extent {
    /// In [`super::ALLOCATION`]: it reads as zeros, allocated or not.
    pub fn reads_as_zeros(&self) -> bool {
        self.flags & STATE_ZERO != 0
    }

    /// In [`super::DEPTH`]: it is in the exported image itself, data or zeros, and in none below it.
    pub fn is_its_own(&self) -> bool {
        self.flags == DEPTH_OF_ITS_OWN
    }

    /// In the context of a dirty bitmap: it was written to.
    pub fn is_dirty(&self) -> bool {
        self.flags & STATE_DIRTY != 0
    }
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub command: u16,
    pub offset: u64,
    pub length: u32,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.command {
            wire::COMMAND_READ => "read",
            wire::COMMAND_WRITE => "write",
            wire::COMMAND_FLUSH => return f.write_str("flush"),
            wire::COMMAND_WRITE_ZEROES => "write of zeros",
            wire::COMMAND_BLOCK_STATUS => "block status",
            _ => "request",
        };
        write!(f, "{name} of {} bytes at offset {}", self.length, self.offset)
    }
}

/// What an answer must bring.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Only that it was done.
    Nothing,
    /// Bytes into this buffer, which is as long as the request.
    Bytes(Vec<u8>),
    /// Extents of each of these contexts, in multiples of the export's block and none past its size.
    Extents { contexts: Vec<u32>, block: u64, size: u64 },
}

/// A whole answer.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Bytes(Vec<u8>),
    Extents(Vec<Vec<Extent>>),
}

/// Where the content of a chunk goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Eight bytes of offset, then that many bytes into the buffer.
    Bytes(usize),
    /// That many bytes, to be given to [`Assembly::take`].
    Small(usize),
}

/// An answer that is being put together.
#[derive(Debug)]
pub(super) struct Assembly {
    asked: Asked,
    wanted: Wanted,
    /// What of the buffer is filled: sorted, apart from each other.
    filled: Vec<Range<usize>>,
    extents: Vec<Option<Vec<Extent>>>,
    refused: Option<NbdError>,
    chunks: usize,
}

impl Assembly {
    pub(super) fn new(asked: Asked, wanted: Wanted) -> Self {
        let contexts = if let Wanted::Extents { contexts, .. } = &wanted { contexts.len() } else { 0 };
        Self { asked, wanted, filled: Vec::new(), extents: vec![None; contexts], refused: None, chunks: 0 }
    }

    /// Looks at the head of a chunk and says how its content is to be read.
    pub(super) fn expect(&mut self, flags: u16, kind: u16, length: u32) -> Result<Content, NbdError> {
        self.chunks += 1;
        if self.chunks > CHUNKS_MAX {
            return Err(self.broken(format!("more than {CHUNKS_MAX} chunks")));
        }
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let fits = match (kind, &self.wanted) {
            (wire::CHUNK_NONE, _) => length == 0 && flags & wire::CHUNK_DONE != 0,
            (wire::CHUNK_OFFSET_DATA, Wanted::Bytes(buffer)) => {
                return match bytes.checked_sub(8) {
                    Some(data) if data > 0 && data <= buffer.len() => Ok(Content::Bytes(data)),
                    _ => Err(self.broken(format!("a data chunk of {length} bytes"))),
                };
            }
            (wire::CHUNK_OFFSET_HOLE, Wanted::Bytes(_)) => length == 12,
            (wire::CHUNK_BLOCK_STATUS, Wanted::Extents { .. }) => {
                (12..=STATUS_CHUNK_BYTES_MAX).contains(&length) && length % 8 == 4
            }
            (kind, _) if kind & wire::CHUNK_ERROR_BIT != 0 => (6..=ERROR_CHUNK_BYTES_MAX).contains(&length),
            _ => false,
        };
        if fits {
            Ok(Content::Small(bytes))
        } else {
            Err(self.broken(format!("a chunk of type {kind} with {length} bytes")))
        }
    }

    /// The part of the buffer into which a data chunk of `length` bytes at the export's `offset` goes.
    pub(super) fn place(&mut self, offset: u64, length: usize) -> Result<&mut [u8], NbdError> {
        let range = self.fill(offset, length)?;
        let Wanted::Bytes(buffer) = &mut self.wanted else { return Err(NbdError::Misuse("data chunk".into())) };
        buffer.get_mut(range).ok_or_else(|| NbdError::Misuse("data chunk".into()))
    }

    /// Takes the content of any other chunk.
    pub(super) fn take(&mut self, kind: u16, content: &[u8]) -> Result<(), NbdError> {
        let mut fields = Fields(content);
        match kind {
            wire::CHUNK_NONE => Ok(()),
            wire::CHUNK_OFFSET_HOLE => {
                let (offset, length) = (fields.u64()?, fields.u32()?);
                self.place(offset, usize::try_from(length).unwrap_or(usize::MAX))?.fill(0);
                Ok(())
            }
            wire::CHUNK_BLOCK_STATUS => self.take_extents(fields),
            _ => {
                let number = fields.u32()?;
                let length = usize::from(fields.u16()?);
                let words = server_words(fields.bytes(length)?);
                self.refuse(number, &words)
            }
        }
    }

    /// Takes a simple reply, which is the whole answer.
    pub(super) fn take_simple(mut self, error: u32) -> Result<Answer, NbdError> {
        match (error, &self.wanted) {
            (0, Wanted::Nothing) => Ok(Answer::Done),
            (0, _) => Err(self.broken("a simple reply where structured ones were agreed on".into())),
            (error, _) => {
                self.refuse(error, "")?;
                self.finish()
            }
        }
    }

    /// The whole answer, after the last chunk. An error of the server's ends this request, one against the protocol
    /// ends the connection.
    pub(super) fn finish(self) -> Result<Answer, NbdError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let Assembly { asked, wanted, filled, extents, .. } = self;
        let incomplete = |what: &str| NbdError::Protocol(format!("the answer to a {asked} ends without {what}"));
        match wanted {
            Wanted::Nothing => Ok(Answer::Done),
            // Parts that lie within the buffer and apart from each other fill it when they are as long together.
            Wanted::Bytes(buffer) if filled.iter().map(Range::len).sum::<usize>() == buffer.len() => {
                Ok(Answer::Bytes(buffer))
            }
            Wanted::Bytes(_) => Err(incomplete("all of the bytes")),
            Wanted::Extents { .. } => {
                let all: Option<Vec<_>> = extents.into_iter().collect();
                all.map(Answer::Extents).ok_or_else(|| incomplete("all of the contexts"))
            }
        }
    }

    /// Notes that a part of the buffer is filled; a part is filled once.
    fn fill(&mut self, offset: u64, length: usize) -> Result<Range<usize>, NbdError> {
        let whole = usize::try_from(self.asked.length).unwrap_or(0);
        let start = offset.checked_sub(self.asked.offset).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        let Some(range) = range.filter(|range| range.end <= whole && !range.is_empty()) else {
            return Err(self.broken(format!("{length} bytes for offset {offset}")));
        };
        let index = self.filled.partition_point(|filled| filled.end <= range.start);
        if self.filled.get(index).is_some_and(|next| next.start < range.end) {
            return Err(self.broken(format!("bytes at offset {offset} twice")));
        }
        self.filled.insert(index, range.clone());
        Ok(range)
    }

    fn take_extents(&mut self, mut fields: Fields<'_>) -> Result<(), NbdError> {
        let Wanted::Extents { contexts, block, size } = &self.wanted else {
            return Err(NbdError::Misuse("block status chunk".into()));
        };
        let (id, block, size) = (fields.u32()?, *block, *size);
        let index = contexts.iter().position(|context| *context == id);
        let Some(index) = index.filter(|index| matches!(self.extents.get(*index), Some(None))) else {
            return Err(self.broken(format!("context {id}, which was not asked for or is given twice")));
        };
        let (mut extents, mut at) = (Vec::new(), self.asked.offset);
        let end = self.asked.offset + u64::from(self.asked.length);
        while !fields.0.is_empty() {
            let (length, flags) = (u64::from(fields.u32()?), fields.u32()?);
            // Only the last may reach past what was asked, and none past the export.
            if length == 0 || !length.is_multiple_of(block) || at >= end || at + length > size {
                return Err(self.broken(format!("an extent of {length} bytes at offset {at}")));
            }
            extents.push(Extent { length: length.min(end - at), flags });
            at += length;
        }
        if let Some(place) = self.extents.get_mut(index) {
            *place = Some(extents);
        }
        Ok(())
    }

    fn refuse(&mut self, number: u32, words: &str) -> Result<(), NbdError> {
        if number == 0 {
            return Err(self.broken("an error with the number 0".into()));
        }
        let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
        self.refused.get_or_insert(NbdError::Refused { request: self.asked.to_string(), number, words });
        Ok(())
    }

    fn broken(&self, what: String) -> NbdError {
        NbdError::Protocol(format!("the answer to a {} has {what}", self.asked))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    const OFFSET: u64 = 1 << 20;

    fn reading(length: u32) -> Assembly {
        let asked = Asked { command: wire::COMMAND_READ, offset: OFFSET, length };
        Assembly::new(asked, Wanted::Bytes(vec![0xee; length as usize]))
    }

    fn asking(length: u32) -> Assembly {
        let asked = Asked { command: wire::COMMAND_BLOCK_STATUS, offset: OFFSET, length };
        Assembly::new(asked, Wanted::Extents { contexts: vec![5], block: 512, size: OFFSET + 4096 })
    }

    fn status(extents: &[(u32, u32)]) -> Vec<u8> {
        let pairs = extents.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()]);
        [5u32.to_be_bytes()].into_iter().chain(pairs).flatten().collect()
    }

    #[test]
    fn extents_of_no_length_past_the_export_or_after_the_end_are_refused() {
        for bad in [&[(0, 0)][..], &[(4097, 0)], &[(1024, 0), (1, 0)], &[(512, 0), (0, 2), (512, 0)], &[(100, 0)]] {
            assert!(asking(1024).take(wire::CHUNK_BLOCK_STATUS, &status(bad)).is_err(), "{bad:?}");
        }
        let mut honest = asking(1024);
        honest.take(wire::CHUNK_BLOCK_STATUS, &status(&[(512, 3), (3584, 0)])).unwrap();
        assert!(honest.take(wire::CHUNK_BLOCK_STATUS, &status(&[(512, 3)])).is_err(), "the same context twice");
        let Answer::Extents(extents) = honest.finish().unwrap() else { panic!("no extents") };
        assert_eq!(extents, [[Extent { length: 512, flags: 3 }, Extent { length: 512, flags: 0 }]]);
    }

    #[test]
    fn an_answer_with_a_gap_is_not_whole() {
        let mut answer = reading(1024);
        answer.place(OFFSET, 512).unwrap();
        answer.place(OFFSET + 600, 424).unwrap();
        assert!(matches!(answer.finish(), Err(NbdError::Protocol(_))));
        assert!(matches!(asking(512).finish(), Err(NbdError::Protocol(_))));
    }

    proptest! {
        #[test]
        fn an_answer_is_whole_exactly_when_each_byte_came_once(
            chunks in prop::collection::vec((0u64..70, 0usize..70), 0..40), length in 1u32..64,
        ) {
            let mut answer = reading(length);
            let mut model = vec![0u8; length as usize];
            for (start, count) in chunks {
                let end = start as usize + count;
                let fits = count > 0 && end <= model.len() && model[start as usize..end].iter().all(|hits| *hits == 0);
                prop_assert_eq!(answer.place(OFFSET + start, count).map(|part| part.len()).ok(), fits.then_some(count));
                if fits {
                    model[start as usize..end].fill(1);
                }
            }
            prop_assert_eq!(answer.finish().is_ok(), model.iter().all(|hits| *hits == 1));
        }

        #[test]
        fn no_chunk_makes_it_panic_or_keep_more_than_was_asked(
            chunks in prop::collection::vec((any::<u16>(), prop_oneof![0u16..7, 0x8000u16..0x8004], prop::collection::vec(any::<u8>(), 0..64)), 0..50),
        ) {
            for mut answer in [reading(512), asking(512)] {
                for (flags, kind, content) in &chunks {
                    match answer.expect(*flags, *kind, content.len() as u32) {
                        Ok(Content::Small(count)) => {
                            prop_assert_eq!(count, content.len());
                            let _any = answer.take(*kind, content);
                        }
                        Ok(Content::Bytes(count)) => prop_assert!(count <= 512),
                        Err(_) => {}
                    }
                }
                if let Ok(Answer::Extents(extents)) = answer.finish() {
                    prop_assert!(extents.iter().flatten().map(|extent| extent.length).sum::<u64>() <= 512);
                }
            }
        }
    }
}
