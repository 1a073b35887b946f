//! How much of a new volume is data, and what that takes where room is given in pieces. Pure.

use std::sync::Arc;

use crate::mover::image::blocks::BLOCK_BYTES;
use crate::mover::image::{Blocks, CLUSTER_BYTES};

/// The data of one disk.
#[derive(Clone, Debug)]
pub(in crate::mover) struct Amount {
    /// Bytes that are stored as data, at most.
    pub bytes: u64,
    /// Likewise, at least.
    pub least: u64,
    /// Where there is any, as far as that is known.
    blocks: Option<Arc<Blocks>>,
}

impl Amount {
    /// Of so many bytes at most, each of which may lie anywhere.
    pub fn anywhere(bytes: u64) -> Self {
        Self { bytes, least: 0, blocks: None }
    }

    /// Of so many bytes, exactly or at most, in the blocks that are not all zeros. Each of these has a cluster that is stored.
    pub fn of(bytes: u64, is_exact: bool, blocks: &Arc<Blocks>) -> Self {
        let clusters = blocks.pieces(BLOCK_BYTES).saturating_mul(CLUSTER_BYTES as u64).min(bytes);
        Self { bytes, least: if is_exact { bytes } else { clusters }, blocks: Some(blocks.clone()) }
    }

    /// What it takes of storage that gives room in pieces of so many bytes, each of which is taken whole by the first byte in it: at most, where
    /// a volume that is all written takes `whole`.
    pub fn in_pieces(&self, piece_bytes: u64, whole: u64) -> u64 {
        let cluster = CLUSTER_BYTES as u64;
        // Of pieces across whose borders clusters lie nothing is known.
        if piece_bytes == 0 || !piece_bytes.is_multiple_of(cluster) {
            return whole;
        }
        // Each cluster may lie in a piece of its own, and each block is written in all of its parts.
        let by_clusters = self.bytes.div_ceil(cluster);
        let by_blocks = self.blocks.as_ref().map_or(u64::MAX, |blocks| blocks.pieces(piece_bytes));
        by_clusters.min(by_blocks).saturating_mul(piece_bytes).min(whole)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    #[test]
    fn little_data_takes_whole_pieces() {
        let mut blocks = Blocks::new(64 * MIB).unwrap();
        for index in [0, 1, 8, 9] {
            blocks.set(index, [1; 32]);
        }
        let blocks = Arc::new(blocks);
        let known = Amount::of(5 * 64 * KIB, true, &blocks);
        let of_chain = Amount::of(9 * 64 * KIB, false, &blocks);
        assert_eq!((known.least, of_chain.least), (5 * 64 * KIB, 4 * 64 * KIB));
        let anywhere = Amount::anywhere(5 * 64 * KIB);
        for (piece, of_known, of_anywhere) in [
            (64 * KIB, 320 * KIB, 320 * KIB),
            (256 * KIB, 5 * 256 * KIB, 5 * 256 * KIB),
            (MIB, 4 * MIB, 5 * MIB),
            (8 * MIB, 16 * MIB, 40 * MIB),
            (32 * MIB, 32 * MIB, 64 * MIB),
        ] {
            let found = [&known, &anywhere].map(|amount| amount.in_pieces(piece, 64 * MIB));
            assert_eq!(found, [of_known, of_anywhere], "{piece}");
        }
        assert_eq!(Amount::anywhere(0).in_pieces(MIB, 64 * MIB), 0);
        for odd in [0, 4 * KIB, 96 * KIB] {
            assert_eq!(known.in_pieces(odd, 64 * MIB), 64 * MIB, "{odd}");
        }
    }
}
