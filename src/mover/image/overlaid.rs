//! An image that holds what was written to since an earlier backup, read over the images of that.
//!
//! Every byte that it holds itself is read and hashed; of what it leaves to the images below, the hashes are theirs. Where it holds a part
//! of a block, the rest of that block has to be what was hashed when the earlier backup was made: what is found there now gets a new hash,
//! and nobody could tell afterwards that it was damaged.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::copy::{common, gaps, inside, position, runs_of_data};
use super::extent_map::ExtentMap;
use super::pipeline::{Buffers, Pipeline};
use super::target::CLUSTER_BYTES;
use crate::failure::{Code, Failure};
use crate::mover::nbd::{Connection, NbdError};

/// Bytes of a disk that are looked at in one go for what is its own.
const LOOK_BYTES: u64 = 1024 * 1024 * 1024;
/// Blocks that are passed over between two reports of progress.
const PASSED_BLOCKS_A_REPORT: u64 = 1024;

/// Where it is read.
#[derive(Clone)]
pub(super) struct Overlaid {
    /// The image with those below it, by a server that tells which of them has what.
    pub image: Arc<Connection>,
    /// Those below it alone.
    pub below: Arc<Connection>,
    /// What those held when their backup was made. The disk had the same size.
    pub hashes: Arc<Blocks>,
}

/// What came of one block.
struct Looked {
    index: u64,
    /// None for zeros.
    hash: Option<BlockHash>,
    data_bytes: u64,
    buffers: [Vec<u8>; 2],
}

/// Bytes that the image holds itself, in whole clusters, be they data or zeros.
pub(super) async fn own_bytes(disk: &str, image: &Connection) -> Result<u64, Failure> {
    let mut own = its_own(disk, image)?;
    let (size, cluster) = (image.export().size, position(CLUSTER_BYTES));
    let (mut start, mut bytes) = (0, 0);
    while start < size {
        let end = (start + LOOK_BYTES).min(size);
        let runs = own.runs(start, end).await.map_err(|error| unseen(disk, &error))?;
        // A disk may end within its last cluster.
        bytes += runs.iter().map(|run| run.end.next_multiple_of(cluster) - run.start).sum::<u64>();
        start = end;
    }
    Ok(bytes)
}

/// Reads and hashes the disk. Answers the hashes of all of it, and the bytes that the image itself holds as data. `report` gets bytes
/// passed and bytes of data so far.
pub(super) async fn read(
    disk: &str,
    overlaid: &Overlaid,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<(Blocks, u64), Failure> {
    let image = &overlaid.image;
    let mut blocks = Blocks::new(image.export().size)
        .map_err(|error| Failure::new(Code::DiskUnsupported, format!("cannot read disk `{disk}`")).because(&error))?;
    let (mut own, mut zeros) = (its_own(disk, image)?, ExtentMap::of_zeros(image));
    let (mut pipeline, mut buffers) = (Pipeline::new(), Buffers::default());
    let (mut passed, mut data) = (0, 0);
    for index in 0..blocks.count() {
        let (start, bytes) = (index * BLOCK_BYTES, blocks.block_bytes(index));
        let end = start + bytes;
        let runs = own.runs(start, end).await.map_err(|error| unseen(disk, &error))?;
        let whole = runs.first() == Some(&(start..end));
        let known = match whole && zeros.all(start, end).await.map_err(|error| unseen(disk, &error))? {
            true => Some(None),
            false => runs.is_empty().then(|| overlaid.hashes.get(index).copied()),
        };
        if let Some(hash) = known {
            if let Some(hash) = hash {
                blocks.set(index, hash);
            }
            passed += bytes;
            if index % PASSED_BLOCKS_A_REPORT == 0 {
                report(passed, data);
            }
            continue;
        }
        while let Some(looked) = pipeline.make_room().await? {
            settle(looked, &mut blocks, &mut buffers, &mut passed, &mut data);
            report(passed, data);
        }
        let runs = runs.iter().map(|run| inside(run, start)).collect();
        let both = [buffers.take(bytes), buffers.take(bytes)];
        pipeline.start(look_at(disk.to_owned(), overlaid.clone(), index, runs, both));
    }
    while let Some(looked) = pipeline.next().await? {
        settle(looked, &mut blocks, &mut buffers, &mut passed, &mut data);
        report(passed, data);
    }
    report(passed, data);
    Ok((blocks, data))
}

fn settle(looked: Looked, blocks: &mut Blocks, buffers: &mut Buffers, passed: &mut u64, data: &mut u64) {
    let Looked { index, hash, data_bytes, buffers: both } = looked;
    *passed += blocks.block_bytes(index);
    *data += data_bytes;
    if let Some(hash) = hash {
        blocks.set(index, hash);
    }
    both.into_iter().for_each(|buffer| buffers.give_back(buffer));
}

async fn look_at(
    disk: String,
    overlaid: Overlaid,
    index: u64,
    own: Vec<Range<usize>>,
    [buffer, below]: [Vec<u8>; 2],
) -> Result<Looked, Failure> {
    let start = index * BLOCK_BYTES;
    let failed = |error: NbdError| {
        error.failure(Code::RepositoryIo, format!("cannot read the image of disk `{disk}` at {start}"))
    };
    let buffer = overlaid.image.read(start, buffer).await.map_err(failed)?;
    let left = gaps(&own, buffer.len());
    let below = match left.is_empty() {
        true => below,
        false => {
            let below = overlaid.below.read(start, below).await.map_err(failed)?;
            must_be(&disk, start, &below, overlaid.hashes.get(index))?;
            below
        }
    };
    if left.iter().any(|gap| buffer.get(gap.clone()) != below.get(gap.clone())) {
        let text = format!(
            "disk `{disk}` at offset {start}: what its image leaves to the earlier backup is not what that holds"
        );
        return Err(Failure::new(Code::ImageDamaged, text));
    }
    let runs = runs_of_data(&buffer);
    let hash = (!runs.is_empty()).then(|| *blake3::hash(&buffer).as_bytes());
    let data_bytes = common(&runs, &own).iter().map(|run| position(run.len())).sum();
    Ok(Looked { index, hash, data_bytes, buffers: [buffer, below] })
}

fn must_be(disk: &str, start: u64, found: &[u8], hash: Option<&BlockHash>) -> Result<(), Failure> {
    let is_the_same = match hash {
        Some(hash) => blake3::hash(found).as_bytes() == hash,
        None => found.iter().all(|byte| *byte == 0),
    };
    if is_the_same {
        return Ok(());
    }
    let text = format!("disk `{disk}` at offset {start}: what the repository holds there is not what was backed up");
    Err(Failure::new(Code::BackupDamaged, text))
}

fn its_own<'c>(disk: &str, image: &'c Connection) -> Result<ExtentMap<'c>, Failure> {
    let text = || format!("qemu-nbd does not say what the image of disk `{disk}` has itself");
    ExtentMap::of_its_own(image).ok_or_else(|| Failure::new(Code::ImageToolFailed, text()))
}

fn unseen(disk: &str, error: &NbdError) -> Failure {
    error.failure(Code::RepositoryIo, format!("cannot see what the image of disk `{disk}` holds"))
}
