//! Comparing an image with its source, and both with the recorded hashes. What an image leaves to the one below it was compared
//! when that was made, and is not read again. A range that both sides call zeros and that has
//! no recorded hash is passed over unread; one that only one side calls zeros is read on the other.

use std::sync::Arc;

use super::base::holds;
use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::extent_map::ExtentMap;
use super::pipeline::{Buffers, Pipeline};

use crate::failure::{Code, Failure};
use crate::mover::nbd::Connection;

/// Blocks that are passed over between two reports of progress.
const PASSED_BLOCKS_A_REPORT: u64 = 1024;

/// Both sides of a comparison.
#[derive(Clone)]
pub(super) struct Sides {
    pub source: Arc<Connection>,
    pub image: Arc<Connection>,
}

/// What came of one block.
struct Compared {
    bytes: u64,
    difference: Option<Difference>,
    buffers: [Option<Vec<u8>>; 2],
}

/// Where a block is not what it should be.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    offset: u64,
    what: &'static str,
}

/// A block to be compared; a side without a buffer is known to be zeros.
struct Block {
    start: u64,
    bytes: u64,
    recorded: Option<BlockHash>,
    source: Option<Vec<u8>>,
    image: Option<Vec<u8>>,
}

/// Compares everything but what was left to a base; `report` gets the bytes passed so far. Fails with the first difference found by offset.
pub(super) async fn compare(
    disk: &str,
    sides: &Sides,
    blocks: &Blocks,
    base: Option<&Blocks>,
    report: &(dyn Fn(u64) + Sync),
) -> Result<(), Failure> {
    for (side, name) in [(&sides.source, "source"), (&sides.image, "image")] {
        if side.export().size != blocks.virtual_bytes() {
            let text = format!("the {name} of disk `{disk}` has {} bytes now", side.export().size);
            return Err(Failure::new(Code::ContentMismatch, text));
        }
    }
    let (mut of_source, mut of_image) = (ExtentMap::of_zeros(&sides.source), ExtentMap::of_zeros(&sides.image));
    let (mut pipeline, mut buffers, mut passed, mut first) = (Pipeline::new(), Buffers::default(), 0, None);
    for index in 0..blocks.count() {
        let (start, bytes, recorded) = (index * BLOCK_BYTES, blocks.block_bytes(index), blocks.get(index).copied());
        if base.is_some_and(|base| holds(base, index, blocks)) {
            passed += bytes;
            if index % PASSED_BLOCKS_A_REPORT == 0 {
                report(passed);
            }
            continue;
        }
        let end = start + bytes;
        let zeros = (of_source.all(start, end).await, of_image.all(start, end).await);
        let source_zero =
            zeros.0.map_err(|error| error.failure(Code::SourceReadFailed, read_failed(disk, "source", start)))?;
        let image_zero =
            zeros.1.map_err(|error| error.failure(Code::RepositoryIo, read_failed(disk, "image", start)))?;
        if source_zero && image_zero && recorded.is_none() {
            passed += bytes;
            if index % PASSED_BLOCKS_A_REPORT == 0 {
                report(passed);
            }
            continue;
        }
        while let Some(compared) = pipeline.make_room().await? {
            settle(compared, &mut buffers, &mut passed, &mut first);
            report(passed);
        }
        // Those under way began before: after them no earlier difference can come.
        if first.is_some() {
            break;
        }
        let source = (!source_zero).then(|| buffers.take(bytes));
        let image = (!image_zero).then(|| buffers.take(bytes));
        let block = Block { start, bytes, recorded, source, image };
        pipeline.start(compare_block(disk.to_owned(), sides.clone(), block));
    }
    while let Some(compared) = pipeline.next().await? {
        settle(compared, &mut buffers, &mut passed, &mut first);
        report(passed);
    }
    report(passed);
    match first {
        None => Ok(()),
        Some(Difference { offset, what }) => {
            Err(Failure::new(Code::ContentMismatch, format!("disk `{disk}` at offset {offset}: {what}")))
        }
    }
}

fn settle(compared: Compared, buffers: &mut Buffers, passed: &mut u64, first: &mut Option<Difference>) {
    *passed += compared.bytes;
    compared.buffers.into_iter().flatten().for_each(|buffer| buffers.give_back(buffer));
    *first = match (first.take(), compared.difference) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

async fn compare_block(disk: String, sides: Sides, block: Block) -> Result<Compared, Failure> {
    let Block { start, bytes, recorded, source, image } = block;
    let (source, image) = tokio::join!(read(&sides.source, start, source), read(&sides.image, start, image));
    let source = source.map_err(|error| error.failure(Code::SourceReadFailed, read_failed(&disk, "source", start)))?;
    let image = image.map_err(|error| error.failure(Code::RepositoryIo, read_failed(&disk, "image", start)))?;
    let difference = difference(source.as_deref(), image.as_deref(), recorded.as_ref());
    let difference = difference.map(|(at, what)| Difference { offset: start + at, what });
    Ok(Compared { bytes, difference, buffers: [source, image] })
}

async fn read(
    side: &Connection,
    start: u64,
    buffer: Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, crate::mover::nbd::NbdError> {
    match buffer {
        Some(buffer) => side.read(start, buffer).await.map(Some),
        None => Ok(None),
    }
}

/// Where and how a block is not what it should be; none for a side that is zeros.
fn difference(
    source: Option<&[u8]>,
    image: Option<&[u8]>,
    recorded: Option<&BlockHash>,
) -> Option<(u64, &'static str)> {
    const DIFFERENT: &str = "what was read back is not what the source holds";
    let first = |mut differs: Box<dyn Iterator<Item = bool> + '_>| {
        let at = differs.position(|differs| differs)?;
        Some((u64::try_from(at).unwrap_or(0), DIFFERENT))
    };
    let found = match (source, image) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) => first(Box::new(a.iter().zip(b).map(|(a, b)| a != b))),
        (Some(one), None) | (None, Some(one)) => first(Box::new(one.iter().map(|byte| *byte != 0))),
        (None, None) => None,
    };
    if found.is_some() {
        return found;
    }
    let holds = source.or(image);
    let as_recorded = match (holds, recorded) {
        (Some(bytes), Some(hash)) => blake3::hash(bytes).as_bytes() == hash,
        (Some(bytes), None) => bytes.iter().all(|byte| *byte == 0),
        (None, recorded) => recorded.is_none(),
    };
    if as_recorded { None } else { Some((0, "source and image are alike now, but not what was hashed while copying")) }
}

fn read_failed(disk: &str, side: &str, start: u64) -> String {
    format!("cannot read the {side} of disk `{disk}` at {start} to compare")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        let (zeros, ones, mixed) = ([0u8; 64], [1u8; 64], [[1u8; 32], [0; 32]].concat());
        let hash = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
        assert_eq!(difference(Some(&ones), Some(&ones), Some(&hash(&ones))), None);
        assert_eq!(difference(Some(&zeros), None, None), None);
        assert_eq!(difference(None, None, None), None);
        assert_eq!(difference(Some(&ones), Some(&mixed), Some(&hash(&ones))).map(|found| found.0), Some(32));
        assert_eq!(difference(None, Some(&ones), None).map(|found| found.0), Some(0));
        assert_eq!(difference(Some(&ones), None, Some(&hash(&ones))).map(|found| found.0), Some(0));
        for alike in [Some(&ones[..]), Some(&zeros[..]), None] {
            assert!(difference(alike, alike, Some(&hash(&mixed))).is_some_and(|found| found.1.contains("hashed")));
        }
        assert!(difference(Some(&ones), Some(&ones), None).is_some());
    }
}
