//! Passing through one disk: read, hash, hold against what it has to be, and write what is not zeros where there is somebody to
//! write it to.

use std::ops::Range;
use std::sync::Arc;

use super::base::{changes, same};
use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::extent_map::ExtentMap;
use super::pipeline::{Buffers, Pipeline};
use super::target::CLUSTER_BYTES;

use crate::failure::{Code, Failure};
use crate::mover::nbd::{Connection, NbdError};

/// Blocks that are passed over between two reports of progress.
const PASSED_BLOCKS_A_REPORT: u64 = 1024;

/// Where the bytes come from and go to.
#[derive(Clone, Copy)]
pub(super) struct Ends<'c> {
    /// Is read.
    pub source: &'c Arc<Connection>,
    /// The code of a failure to read it.
    pub source_device: Code,
    /// Is written, and the code of a failure to write it; none where the source is only hashed.
    pub target: Option<(&'c Arc<Connection>, Code)>,
    /// What need not be written, since what is written stands on it.
    pub base: Option<&'c Arc<Blocks>>,
    /// What the disk held in the moment since which the source says what was written to: the base or one below it; none where that is not to
    /// be believed.
    pub since: Option<&'c Arc<Blocks>>,
    /// What is read has to be; none where nobody knows.
    pub expected: Option<&'c Expected>,
    /// What is written to holds anything, so that zeros are written as well.
    pub zeros_too: bool,
}

/// What a disk has to hold, and what it means where it doesn't. Nothing else is written.
#[derive(Clone)]
pub(super) struct Expected {
    /// The hashes of its blocks.
    pub blocks: Arc<Blocks>,
    /// The code of a difference.
    pub code: Code,
    /// In words.
    pub differs: &'static str,
}

impl Expected {
    fn must_be(&self, disk: &str, index: u64, found: Option<&BlockHash>) -> Result<(), Failure> {
        if self.blocks.get(index) == found {
            return Ok(());
        }
        let offset = index * BLOCK_BYTES;
        Err(Failure::new(self.code, format!("disk `{disk}` at offset {offset}: {}", self.differs)))
    }
}

/// What came of one block.
struct Copied {
    index: u64,
    /// None for a block that turned out to be all zeros.
    hash: Option<BlockHash>,
    data_bytes: u64,
    buffer: Vec<u8>,
}

/// What a walk through a disk has to do with one block.
enum Todo {
    /// Nothing: it holds what this says, none for zeros.
    Pass(Option<BlockHash>),
    /// Read it and, if it is another than in the base, write it: all of it, or these parts where nothing else was written to.
    Read(Option<Vec<Range<usize>>>),
}

/// What the source's server says of its blocks.
struct Map<'c> {
    zeros: ExtentMap<'c>,
    /// What has been written to, and what the disk held before that; none where nobody knows.
    changes: Option<(ExtentMap<'c>, &'c Blocks)>,
    base: Option<&'c Arc<Blocks>>,
}

impl<'c> Map<'c> {
    fn new(source: &'c Connection, base: Option<&'c Arc<Blocks>>, since: Option<&'c Arc<Blocks>>) -> Self {
        let both = base.zip(since);
        let changes = both.and_then(|(base, since)| Some((changes(source, base, Some(since))?, since.as_ref())));
        Self { zeros: ExtentMap::of_zeros(source), changes, base }
    }

    async fn look_at(&mut self, index: u64, bytes: u64) -> Result<Todo, NbdError> {
        let (start, end) = (index * BLOCK_BYTES, index * BLOCK_BYTES + bytes);
        if self.zeros.all(start, end).await? {
            // A block that has become zeros is read like any other: there are few of them.
            let passed = self.base.is_none_or(|base| same(base, index, None, bytes));
            return Ok(if passed { Todo::Pass(None) } else { Todo::Read(None) });
        }
        let (Some(base), Some((changes, since))) = (self.base, &mut self.changes) else { return Ok(Todo::Read(None)) };
        let changed = changes.runs(start, end).await?;
        match base.get(index) {
            // It changed between the two. That it has not changed since is not said: where an image was put back, it has.
            hash if since.get(index) != hash => Ok(Todo::Read(None)),
            Some(hash) if changed.is_empty() => Ok(Todo::Pass(Some(*hash))),
            Some(_) => Ok(Todo::Read(Some(changed.iter().map(|run| inside(run, start)).collect()))),
            // Of zeros nobody else needs a part.
            None => Ok(Todo::Read(None)),
        }
    }
}

/// A part of a disk as a part of the block that starts there.
pub(super) fn inside(run: &Range<u64>, start: u64) -> Range<usize> {
    let within = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
    within(run.start)..within(run.end)
}

/// Copies everything that does not read as zeros, or all where `zeros_too`, or of a disk with a base every block that is another now, and returns the hashes
/// and the bytes that are data. `report` gets bytes passed and bytes of data so far.
pub(super) async fn copy(
    disk: &str,
    ends: Ends<'_>,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<(Blocks, u64), Failure> {
    let Ends { source, source_device, target, base, since, expected, zeros_too } = ends;
    let read_failed = || format!("cannot read disk `{disk}`");
    let mut blocks = Blocks::new(source.export().size)
        .map_err(|error| Failure::new(Code::DiskUnsupported, read_failed()).because(&error))?;
    let mut map = Map::new(source, base, since);
    let (mut pipeline, mut buffers) = (Pipeline::new(), Buffers::default());
    let (mut passed, mut data) = (0, 0);
    for index in 0..blocks.count() {
        let bytes = blocks.block_bytes(index);
        let looked = map.look_at(index, bytes).await;
        let only = match looked.map_err(|error| error.failure(source_device, read_failed()))? {
            Todo::Read(only) => only,
            Todo::Pass(hash) => {
                expected.map_or(Ok(()), |expected| expected.must_be(disk, index, hash.as_ref()))?;
                if let Some(hash) = hash {
                    blocks.set(index, hash);
                } else if let Some((target, device)) = target.filter(|_| zeros_too) {
                    while let Some(copied) = pipeline.make_room().await? {
                        settle(copied, &mut blocks, &mut buffers, &mut passed, &mut data);
                        report(passed, data);
                    }
                    pipeline.start(write_zero_block(disk.to_owned(), (Arc::clone(target), device), index, bytes));
                    continue;
                }
                passed += bytes;
                if index % PASSED_BLOCKS_A_REPORT == 0 {
                    report(passed, data);
                }
                continue;
            }
        };
        while let Some(copied) = pipeline.make_room().await? {
            settle(copied, &mut blocks, &mut buffers, &mut passed, &mut data);
            report(passed, data);
        }
        let ways = Ways {
            source: Arc::clone(source),
            source_device,
            target: target.map(|(target, device)| (Arc::clone(target), device)),
            base: base.cloned(),
            only,
            expected: expected.cloned(),
            zeros_too,
        };
        pipeline.start(copy_block(disk.to_owned(), ways, index, buffers.take(bytes)));
    }
    while let Some(copied) = pipeline.next().await? {
        settle(copied, &mut blocks, &mut buffers, &mut passed, &mut data);
        report(passed, data);
    }
    if let Some((target, device)) = target {
        let flushed = target.flush().await;
        flushed.map_err(|error| error.failure(device, format!("cannot flush the image of disk `{disk}`")))?;
    }
    report(passed, data);
    Ok((blocks, data))
}

fn settle(copied: Copied, blocks: &mut Blocks, buffers: &mut Buffers, passed: &mut u64, data: &mut u64) {
    *passed += blocks.block_bytes(copied.index);
    *data += copied.data_bytes;
    if let Some(hash) = copied.hash {
        blocks.set(copied.index, hash);
    }
    buffers.give_back(copied.buffer);
}

/// [`Ends`], for a task of its own.
struct Ways {
    source: Arc<Connection>,
    source_device: Code,
    target: Option<(Arc<Connection>, Code)>,
    base: Option<Arc<Blocks>>,
    /// The parts of the block outside of which it is what it was in the base.
    only: Option<Vec<Range<usize>>>,
    expected: Option<Expected>,
    zeros_too: bool,
}

async fn copy_block(disk: String, ways: Ways, index: u64, buffer: Vec<u8>) -> Result<Copied, Failure> {
    let Ways { source, source_device, target, base, only, expected, zeros_too } = ways;
    let start = index * BLOCK_BYTES;
    let read = source.read(start, buffer).await;
    let buffer = read.map_err(|error| error.failure(source_device, format!("cannot read disk `{disk}` at {start}")))?;
    let runs = runs_of_data(&buffer);
    let hash = (!runs.is_empty()).then(|| *blake3::hash(&buffer).as_bytes());
    expected.map_or(Ok(()), |expected| expected.must_be(&disk, index, hash.as_ref()))?;
    if base.as_ref().is_some_and(|base| same(base, index, hash.as_ref(), position(buffer.len()))) {
        return Ok(Copied { index, hash, data_bytes: 0, buffer });
    }
    let zeros = if base.is_some() || zeros_too { gaps(&runs, buffer.len()) } else { Vec::new() };
    let (runs, zeros) = match only {
        Some(only) => (common(&runs, &only), common(&zeros, &only)),
        None => (runs, zeros),
    };
    let data_bytes = runs.iter().map(|run| position(run.len())).sum();
    let buffer = match target {
        Some((target, device)) => {
            let written = write_block(&target, start, buffer, &runs, &zeros).await;
            written.map_err(|(offset, error)| {
                error.failure(device, format!("cannot write the image of disk `{disk}` at {offset}"))
            })?
        }
        None => buffer,
    };
    Ok(Copied { index, hash, data_bytes, buffer })
}

/// Writes a block that is all zeros.
async fn write_zero_block(
    disk: String,
    (target, device): (Arc<Connection>, Code),
    index: u64,
    bytes: u64,
) -> Result<Copied, Failure> {
    let start = index * BLOCK_BYTES;
    let written = target.write_zeroes(start, bytes).await;
    written.map_err(|error| error.failure(device, format!("cannot write zeros to disk `{disk}` at {start}")))?;
    Ok(Copied { index, hash: None, data_bytes: 0, buffer: Vec::new() })
}

/// Writes the runs of data of a block, and the zeros that have to hide what is below or was there. An error comes with its offset.
async fn write_block(
    target: &Connection,
    start: u64,
    mut buffer: Vec<u8>,
    runs: &[Range<usize>],
    zeros: &[Range<usize>],
) -> Result<Vec<u8>, (u64, NbdError)> {
    for run in zeros {
        let offset = start + position(run.start);
        target.write_zeroes(offset, position(run.len())).await.map_err(|error| (offset, error))?;
    }
    for run in runs {
        let offset = start + position(run.start);
        buffer = target.write(offset, buffer, run.clone()).await.map_err(|error| (offset, error))?;
    }
    Ok(buffer)
}

/// What is in some part of both, each in rising order.
pub(super) fn common(one: &[Range<usize>], other: &[Range<usize>]) -> Vec<Range<usize>> {
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| a.start.max(b.start)..a.end.min(b.end)));
    pairs.filter(|both| !both.is_empty()).collect()
}

/// What is between the runs of a block.
pub(super) fn gaps(runs: &[Range<usize>], length: usize) -> Vec<Range<usize>> {
    let ends = std::iter::once(0).chain(runs.iter().map(|run| run.end));
    let starts = runs.iter().map(|run| run.start).chain(std::iter::once(length));
    ends.zip(starts).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}

/// A place within a block as a place on the disk.
pub(super) fn position(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The runs of clusters that are not all zeros.
pub(super) fn runs_of_data(block: &[u8]) -> Vec<Range<usize>> {
    static ZEROS: [u8; CLUSTER_BYTES] = [0; CLUSTER_BYTES];
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for cluster in block.chunks(CLUSTER_BYTES) {
        let end = start + cluster.len();
        if ZEROS.get(..cluster.len()) != Some(cluster) {
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_hold_every_byte_that_is_not_zero_and_no_zero_cluster(
            length in 1usize..BLOCK_BYTES as usize, ones in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut block = vec![0; length];
            ones.iter().for_each(|one| block[one.index(length)] = 1);
            let runs = runs_of_data(&block);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let inside: usize = runs.iter().map(|run| block[run.clone()].iter().filter(|b| **b == 1).count()).sum();
            prop_assert_eq!(inside, block.iter().filter(|b| **b == 1).count());
            let gaps = gaps(&runs, length);
            prop_assert!(gaps.iter().all(|gap| block[gap.clone()].iter().all(|byte| *byte == 0)));
            let covered: usize = runs.iter().chain(&gaps).map(|range| range.len()).sum();
            prop_assert_eq!(covered, length);
            for run in runs {
                prop_assert!(block[run].chunks(CLUSTER_BYTES).all(|cluster| cluster.contains(&1)));
            }
        }
    }
}
