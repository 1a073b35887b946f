//! The `.blocks` file beside an image: the hash of each block of the disk as the guest sees it, and their root. Pure.
//!
//! ```text
//! offset  bytes  big-endian
//!      0      8  "LSBLOCKS"
//!      8      4  version, 1
//!     12      4  block size, bytes: 1048576
//!     16      8  virtual size of the disk, bytes
//!     24     32  content root
//!     56         runs until all blocks are named, zeros and data in turn:
//!                  1 byte   0: these blocks are all zeros; 1: their hashes follow
//!                  8 bytes  number of blocks, never 0
//!                  32 bytes each: BLAKE3 of the block's content (data only; the last block of a disk may be shorter)
//!    end-32     32  BLAKE3 of everything before it
//! ```
//!
//! The content root is BLAKE3 in key derivation mode, context [`ROOT_CONTEXT`], over virtual size (8 bytes), block size
//! (4 bytes) and the hash of every block in order, those of zero blocks included. So it says what the disk holds and
//! does not depend on how runs are coded. A content has exactly one encoding.
//!
//! The file beside an image that holds only what had changed lists all blocks too: 32 bytes a MiB, so that one file is all that a
//! restore or a check needs, and images can be merged below it without a word of it becoming wrong.

use std::collections::BTreeMap;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 1024 * 1024;
/// Largest disk, bytes. More than any file system of the field holds in one file, and its root is computed within seconds.
pub const VIRTUAL_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024 * 1024;
/// What sets content roots apart from every other hash.
pub const ROOT_CONTEXT: &str = "longshore 2026-11 content root of a disk";

const MAGIC: [u8; 8] = *b"LSBLOCKS";
const VERSION: u32 = 1;
const RUN_OF_ZEROS: u8 = 0;
const RUN_OF_DATA: u8 = 1;
const HASH_BYTES: usize = blake3::OUT_LEN;
/// Zero blocks whose hashes go into the root in one piece.
const ZERO_HASHES_AT_ONCE: usize = 1024;

/// BLAKE3 of a block.
pub type BlockHash = [u8; HASH_BYTES];

/// A `.blocks` file that is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block hash file: {0}")]
pub struct BlocksError(&'static str);

/// The hashes of a disk's blocks. Takes about 60 bytes of memory a MiB of data, and none for zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    virtual_bytes: u64,
    /// Those that are not all zeros.
    data: BTreeMap<u64, BlockHash>,
}

impl Blocks {
    /// A disk of `virtual_bytes` that is all zeros.
    pub fn new(virtual_bytes: u64) -> Result<Self, BlocksError> {
        if virtual_bytes > VIRTUAL_BYTES_MAX {
            return Err(BlocksError("the disk is larger than 64 TiB"));
        }
        Ok(Self { virtual_bytes, data: BTreeMap::new() })
    }

    /// Size of the disk, bytes.
    pub fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.virtual_bytes.div_ceil(BLOCK_BYTES)
    }

    /// Bytes of the block with this index.
    pub fn block_bytes(&self, index: u64) -> u64 {
        self.virtual_bytes.saturating_sub(index.saturating_mul(BLOCK_BYTES)).min(BLOCK_BYTES)
    }

    /// Notes the hash of a block that is not all zeros.
    pub fn set(&mut self, index: u64, hash: BlockHash) {
        self.data.insert(index, hash);
    }

    /// The hash of a block; none for one that is all zeros.
    pub fn get(&self, index: u64) -> Option<&BlockHash> {
        self.data.get(&index)
    }

    /// In how many pieces of so many bytes, counted from the disk's beginning, there is anything but zeros, at most.
    pub fn pieces(&self, piece_bytes: u64) -> u64 {
        let piece_bytes = piece_bytes.max(1);
        let (mut pieces, mut next) = (0, 0);
        for index in self.data.keys() {
            let start = index.saturating_mul(BLOCK_BYTES);
            let last = start.saturating_add(self.block_bytes(*index).max(1) - 1) / piece_bytes;
            // The first may be that in which the block before ends.
            let first = next.max(start / piece_bytes);
            if first <= last {
                pieces += last - first + 1;
                next = last + 1;
            }
        }
        pieces
    }

    /// The content root.
    pub fn root(&self) -> BlockHash {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(&self.virtual_bytes.to_be_bytes());
        hasher.update(&block_bytes_field());
        let zeros = zero_hash(BLOCK_BYTES).repeat(ZERO_HASHES_AT_ONCE);
        for (kind, from, to) in self.runs() {
            if kind == RUN_OF_DATA {
                self.data.range(from..to).for_each(|(_, hash)| {
                    hasher.update(hash);
                });
                continue;
            }
            let short = to == self.count() && !self.virtual_bytes.is_multiple_of(BLOCK_BYTES);
            let mut left = usize::try_from(to - from - u64::from(short)).unwrap_or(usize::MAX);
            while left > 0 {
                let now = left.min(ZERO_HASHES_AT_ONCE);
                hasher.update(zeros.get(..now * HASH_BYTES).unwrap_or_default());
                left -= now;
            }
            if short {
                hasher.update(&zero_hash(self.block_bytes(to - 1)));
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + self.data.len() * HASH_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&block_bytes_field());
        bytes.extend_from_slice(&self.virtual_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.root());
        for (kind, from, to) in self.runs() {
            bytes.push(kind);
            bytes.extend_from_slice(&(to - from).to_be_bytes());
            if kind == RUN_OF_DATA {
                self.data.range(from..to).for_each(|(_, hash)| bytes.extend_from_slice(hash));
            }
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads a file. Memory is bounded by the file's own length.
    pub fn decode(file: &[u8]) -> Result<Self, BlocksError> {
        let body = file.len().checked_sub(HASH_BYTES).and_then(|length| file.split_at_checked(length));
        let (body, digest) = body.ok_or(BlocksError("it is too short"))?;
        let mut rest = body;
        if take(&mut rest)? != MAGIC {
            return Err(BlocksError("it does not begin like one"));
        }
        if u32::from_be_bytes(take(&mut rest)?) != VERSION || take(&mut rest)? != block_bytes_field() {
            return Err(BlocksError("its version or block size is not one that this program reads"));
        }
        if blake3::hash(body).as_bytes() != digest {
            return Err(BlocksError("its content does not fit its digest"));
        }
        let mut blocks = Self::new(u64::from_be_bytes(take(&mut rest)?))?;
        let root: BlockHash = take(&mut rest)?;
        let (mut next, mut before) = (0, None);
        while next < blocks.count() {
            let [kind] = take(&mut rest)?;
            let end = u64::from_be_bytes(take(&mut rest)?).checked_add(next).filter(|end| *end <= blocks.count());
            let end =
                end.filter(|end| *end > next && before != Some(kind)).ok_or(BlocksError("a run is not possible"))?;
            match kind {
                RUN_OF_ZEROS => {}
                RUN_OF_DATA => blocks.take_hashes(&mut rest, next, end)?,
                _ => return Err(BlocksError("a run is of no known kind")),
            }
            (next, before) = (end, Some(kind));
        }
        if !rest.is_empty() {
            return Err(BlocksError("it goes on after its last run"));
        }
        if blocks.root() != root {
            return Err(BlocksError("its hashes do not fit its content root"));
        }
        Ok(blocks)
    }

    fn take_hashes(&mut self, rest: &mut &[u8], from: u64, to: u64) -> Result<(), BlocksError> {
        for index in from..to {
            let hash: BlockHash = take(rest)?;
            if hash == zero_hash(self.block_bytes(index)) {
                return Err(BlocksError("a block of zeros is coded as data"));
            }
            self.data.insert(index, hash);
        }
        Ok(())
    }

    /// Kind, first block and the block after the last, of each run.
    fn runs(&self) -> Vec<(u8, u64, u64)> {
        let mut runs: Vec<(u8, u64, u64)> = Vec::new();
        let mut next = 0;
        for index in self.data.keys().copied() {
            if index > next {
                runs.push((RUN_OF_ZEROS, next, index));
            }
            next = index + 1;
            match runs.last_mut() {
                Some((RUN_OF_DATA, _, to)) if *to == index => *to = next,
                _ => runs.push((RUN_OF_DATA, index, next)),
            }
        }
        if next < self.count() {
            runs.push((RUN_OF_ZEROS, next, self.count()));
        }
        runs
    }
}

/// The hash of that many zeros, at most a block of them.
fn zero_hash(bytes: u64) -> BlockHash {
    static WHOLE: std::sync::OnceLock<BlockHash> = std::sync::OnceLock::new();
    let hash = |bytes: u64| *blake3::hash(&vec![0; usize::try_from(bytes).unwrap_or(0)]).as_bytes();
    if bytes == BLOCK_BYTES { *WHOLE.get_or_init(|| hash(BLOCK_BYTES)) } else { hash(bytes.min(BLOCK_BYTES)) }
}

fn block_bytes_field() -> [u8; 4] {
    u32::try_from(BLOCK_BYTES).unwrap_or(u32::MAX).to_be_bytes()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BlocksError> {
    let (taken, left) = rest.split_first_chunk().ok_or(BlocksError("it is too short"))?;
    *rest = left;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_lie_in_pieces_that_are_smaller_and_larger_and_fit_nowhere() {
        let mut blocks = Blocks::new(10 * BLOCK_BYTES + 512).unwrap();
        for index in [0, 1, 5, 10] {
            blocks.set(index, [1; HASH_BYTES]);
        }
        for (piece_kib, pieces) in [(64, 3 * 16 + 1), (1024, 4), (2048, 3), (4096, 3), (16384, 1), (192, 18)] {
            assert_eq!(blocks.pieces(piece_kib * 1024), pieces, "{piece_kib}");
        }
        assert_eq!(Blocks::new(BLOCK_BYTES).unwrap().pieces(1), 0);
    }

    fn disk() -> impl Strategy<Value = Blocks> {
        (0u64..40 * BLOCK_BYTES, prop::collection::vec(any::<(u8, u8)>(), 0..30)).prop_map(|(size, data)| {
            let mut blocks = Blocks::new(size).unwrap();
            for (index, fill) in data {
                if u64::from(index) < blocks.count() {
                    blocks.set(index.into(), [fill; 32]);
                }
            }
            blocks
        })
    }

    #[test]
    fn the_root_is_over_the_hashes_of_all_blocks_in_order() {
        let mut blocks = Blocks::new(2 * BLOCK_BYTES + 512).unwrap();
        blocks.set(1, [7; 32]);
        let mut hasher = blake3::Hasher::new_derive_key("longshore 2026-11 content root of a disk");
        hasher.update(&(2 * BLOCK_BYTES + 512).to_be_bytes()).update(&[0, 0x10, 0, 0]);
        hasher.update(blake3::hash(&vec![0; 1 << 20]).as_bytes()).update(&[7; 32]);
        hasher.update(blake3::hash(&[0; 512]).as_bytes());
        assert_eq!(blocks.root(), *hasher.finalize().as_bytes());
    }

    #[test]
    fn a_huge_empty_disk_is_a_small_file() {
        let blocks = Blocks::new(1 << 40).unwrap();
        assert_eq!(blocks.encode().len(), 56 + 9 + 32);
        assert!(Blocks::new(VIRTUAL_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn two_runs_of_one_kind_are_not_a_second_encoding() {
        let mut file = Blocks::new(4 * BLOCK_BYTES).unwrap().encode();
        let run = |count: u64| [&[RUN_OF_ZEROS][..], &count.to_be_bytes()].concat();
        file.truncate(56);
        file.extend([run(1), run(3)].concat());
        file.extend(*blake3::hash(&file).as_bytes());
        assert_eq!(Blocks::decode(&file), Err(BlocksError("a run is not possible")));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(blocks in disk()) {
            prop_assert_eq!(Blocks::decode(&blocks.encode()).unwrap(), blocks);
        }

        #[test]
        fn no_flipped_byte_goes_unseen(blocks in disk(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut file = blocks.encode();
            let at = at.index(file.len());
            file[at] ^= flip;
            prop_assert!(Blocks::decode(&file).is_err());
        }

        #[test]
        fn no_runs_make_it_panic_or_read_what_it_would_not_write(
            size in prop_oneof![0u64..10 * BLOCK_BYTES, any::<u64>()], runs in prop::collection::vec(any::<u8>(), 0..200),
            sane in prop::collection::vec((0u8..3, 0u64..4), 0..6), root in any::<bool>(),
        ) {
            let mut file = [&MAGIC[..], &VERSION.to_be_bytes(), &block_bytes_field(), &size.to_be_bytes()].concat();
            let true_root = Blocks::new(size % (1 << 30)).unwrap().root();
            file.extend(if root { true_root } else { [0; 32] });
            sane.iter().for_each(|(kind, count)| { file.push(*kind); file.extend(count.to_be_bytes()); });
            file.extend(&runs);
            file.extend(*blake3::hash(&file).as_bytes());
            if let Ok(blocks) = Blocks::decode(&file) {
                prop_assert_eq!(blocks.encode(), file);
            }
        }
    }
}
