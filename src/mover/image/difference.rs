//! What of one disk differs from an earlier state of it, written cluster by cluster into an image that leaves the rest to the earlier one.
//! Both states can be read, so that nothing else is stored, whatever the images that they come from hold.

use std::ops::Range;
use std::sync::Arc;

use super::base::holds;
use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::pipeline::{Buffers, Pipeline};
use super::target::CLUSTER_BYTES;
use crate::failure::{Code, Failure};
use crate::mover::nbd::Connection;

/// Blocks that are the same on both sides and are passed over between two reports of progress.
const SAME_BLOCKS_A_REPORT: u64 = 1024;

/// A state of the disk: where it is read, and what was hashed of it when its backup was made.
#[derive(Clone)]
pub(super) struct State {
    pub connection: Arc<Connection>,
    pub blocks: Arc<Blocks>,
}

/// What is written where.
#[derive(Clone)]
pub(super) struct Difference {
    /// What the disk is to hold.
    pub wanted: State,
    /// What the rest is left to.
    pub base: State,
    /// The image.
    pub target: Arc<Connection>,
}

/// What came of one block.
struct Written {
    passed: u64,
    data_bytes: u64,
    buffers: [Vec<u8>; 2],
}

/// A run of clusters that differ.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    at: Range<usize>,
    /// They are to read as zeros, where the base has something else.
    zeros: bool,
}

impl Difference {
    /// Writes it, and answers the bytes that are data. What is read has to be as it was hashed. `report` gets bytes passed and bytes of
    /// data so far.
    pub async fn write(self, disk: &str, report: &(dyn Fn(u64, u64) + Sync)) -> Result<u64, Failure> {
        let (mut pipeline, mut buffers) = (Pipeline::new(), Buffers::default());
        let (mut passed, mut data) = (0, 0);
        for index in 0..self.wanted.blocks.count() {
            let bytes = self.wanted.blocks.block_bytes(index);
            if holds(&self.base.blocks, index, &self.wanted.blocks) {
                passed += bytes;
                if index % SAME_BLOCKS_A_REPORT == 0 {
                    report(passed, data);
                }
                continue;
            }
            while let Some(written) = pipeline.make_room().await? {
                settle(written, &mut buffers, &mut passed, &mut data);
                report(passed, data);
            }
            let both = [buffers.take(bytes), buffers.take(bytes)];
            pipeline.start(write_block(disk.to_owned(), self.clone(), index, both));
        }
        while let Some(written) = pipeline.next().await? {
            settle(written, &mut buffers, &mut passed, &mut data);
            report(passed, data);
        }
        let flushed = self.target.flush().await;
        flushed.map_err(|error| {
            error.failure(Code::RepositoryIo, format!("cannot flush the merged image of disk `{disk}`"))
        })?;
        Ok(data)
    }
}

fn settle(written: Written, buffers: &mut Buffers, passed: &mut u64, data: &mut u64) {
    *passed += written.passed;
    *data += written.data_bytes;
    written.buffers.into_iter().for_each(|buffer| buffers.give_back(buffer));
}

impl State {
    /// Reads a block, and holds it against its hash. What lies beyond the end of the disk reads as zeros.
    async fn read(&self, disk: &str, index: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let bytes = buffer.len();
        let Some(hash) = self.blocks.get(index) else {
            buffer.fill(0);
            return Ok(buffer);
        };
        buffer.resize(usize::try_from(self.blocks.block_bytes(index)).unwrap_or(bytes), 0);
        let start = index * BLOCK_BYTES;
        let read = self.connection.read(start, buffer).await;
        let mut buffer =
            read.map_err(|error| error.failure(Code::RepositoryIo, format!("cannot read disk `{disk}` at {start}")))?;
        must_be(disk, start, &buffer, hash)?;
        buffer.resize(bytes, 0);
        Ok(buffer)
    }
}

fn must_be(disk: &str, start: u64, found: &[u8], hash: &BlockHash) -> Result<(), Failure> {
    if blake3::hash(found).as_bytes() == hash {
        return Ok(());
    }
    let text = format!("disk `{disk}` at offset {start}: what the repository holds there is not what was backed up");
    Err(Failure::new(Code::BackupDamaged, text))
}

async fn write_block(
    disk: String,
    difference: Difference,
    index: u64,
    [wanted, base]: [Vec<u8>; 2],
) -> Result<Written, Failure> {
    let (wanted, base) =
        tokio::try_join!(difference.wanted.read(&disk, index, wanted), difference.base.read(&disk, index, base))?;
    let mut written = Written { passed: bytes_of(wanted.len()), data_bytes: 0, buffers: Default::default() };
    let mut buffer = wanted;
    for Run { at, zeros } in runs(&buffer, &base) {
        let (offset, bytes) = (index * BLOCK_BYTES + bytes_of(at.start), bytes_of(at.len()));
        let failed = |error: crate::mover::nbd::NbdError| {
            error.failure(Code::RepositoryIo, format!("cannot write the merged image of disk `{disk}` at {offset}"))
        };
        if zeros && difference.target.export().can_write_zeroes {
            difference.target.write_zeroes(offset, bytes).await.map_err(failed)?;
        } else {
            buffer = difference.target.write(offset, buffer, at).await.map_err(failed)?;
            written.data_bytes += bytes;
        }
    }
    written.buffers = [buffer, base];
    Ok(written)
}

fn bytes_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The runs of clusters in which two blocks of one length differ.
fn runs(wanted: &[u8], base: &[u8]) -> Vec<Run> {
    static ZEROS: [u8; CLUSTER_BYTES] = [0; CLUSTER_BYTES];
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    for (wanted, base) in wanted.chunks(CLUSTER_BYTES).zip(base.chunks(CLUSTER_BYTES)) {
        let end = start + wanted.len();
        if wanted != base {
            let zeros = ZEROS.get(..wanted.len()) == Some(wanted);
            match runs.last_mut() {
                Some(run) if run.at.end == start && run.zeros == zeros => run.at.end = end,
                _ => runs.push(Run { at: start..end, zeros }),
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
        fn runs_over_the_base_are_what_was_wanted_and_hold_no_cluster_that_is_the_same(
            length in 1usize..BLOCK_BYTES as usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3), 0..8),
            old in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3), 0..8),
        ) {
            let mut base = vec![0; length];
            old.iter().for_each(|(at, byte)| base[at.index(length)] = *byte);
            let mut wanted = base.clone();
            for (at, byte) in changes {
                let cluster = at.index(length) / CLUSTER_BYTES * CLUSTER_BYTES;
                let end = (cluster + CLUSTER_BYTES).min(length);
                wanted[cluster..end].fill(byte);
            }
            let mut made = base.clone();
            for Run { at, zeros } in runs(&wanted, &base) {
                prop_assert_eq!(at.start % CLUSTER_BYTES, 0);
                prop_assert!(wanted[at.clone()].chunks(CLUSTER_BYTES).zip(base[at.clone()].chunks(CLUSTER_BYTES)).all(|(w, b)| w != b));
                prop_assert_eq!(zeros, wanted[at.clone()].iter().all(|byte| *byte == 0));
                made[at.clone()].copy_from_slice(&wanted[at]);
            }
            prop_assert!(made == wanted);
        }
    }
}
