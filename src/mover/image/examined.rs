//! A disk of a published backup, read to its last block and held against the hashes that were taken when the backup was made.
//!
//! Unlike a restore it does not stop at what differs: where everything that does is known, it can be told whether a bit rotted, a part
//! was overwritten or another disk's image is there. Nothing is written.
//!
//! Of a chain each block is read once. What an image does not have itself is what the one below it has, so where that was read and found
//! to be what its hashes say, an equal hash is all that is left to be asked. Where anything differs all of the disk is read after all.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::extent_map::ExtentMap;
use super::original::Original;
use super::pace::Pace;
use super::pipeline::{Buffers, Pipeline};
use super::server::{Cache, Sockets};
use super::{sole, target};
use crate::failure::{Code, Failure};
use crate::mover::blocking;
use crate::mover::nbd::{Connection, NbdError};

/// Blocks that could not be read after which no more are tried: the storage below is gone, and each try takes its time.
const UNREADABLE_MAX: usize = 64;
/// Zero blocks that are passed over between two reports of progress.
const ZERO_BLOCKS_A_REPORT: u64 = 1024;

/// What a disk was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mover) struct Examined {
    /// Hash over the block hashes of what was read, hex; none where not all of it could be read, and for zeros alone, which says nothing
    /// of whose they are.
    pub content_root: Option<String>,
    /// Runs of blocks that are not what was hashed: where each begins on the disk, and how many there are, in order.
    pub differing: Vec<(u64, u64)>,
    /// Blocks that could not be read: where each begins, and why.
    pub unreadable: Vec<(u64, String)>,
}

/// One block that was looked at.
struct Looked {
    index: u64,
    /// What it holds, none for zeros; or why that can't be said.
    hash: Result<Option<BlockHash>, String>,
    buffer: Vec<u8>,
}

/// Examines the disk by its images at those paths, the topmost first. `below` has the hashes of what it is based on, where that was read
/// and is what they say. `report` gets bytes of the disk passed, and bytes read.
pub(in crate::mover) async fn examine(
    original: &Original,
    images: &[PathBuf],
    below: Option<&Blocks>,
    sockets: &mut Sockets,
    pace: &mut Pace,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<Examined, Failure> {
    drop_from_cache(images).await?;
    if below.is_some() {
        let examined = read_through(original, images, below, sockets, pace, report).await?;
        if examined.differing.is_empty() && examined.unreadable.is_empty() {
            return Ok(examined);
        }
    }
    read_through(original, images, None, sockets, pace, report).await
}

async fn read_through(
    original: &Original,
    images: &[PathBuf],
    below: Option<&Blocks>,
    sockets: &mut Sockets,
    pace: &mut Pace,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<Examined, Failure> {
    let (server, connection) = original.serve(images, sockets).await?;
    let connection = Arc::new(connection);
    let examined = Reading::of(&original.blocks)?.read(&connection, &original.blocks, below, pace, report).await?;
    // A task that is still at work after too many failures ends with its connection.
    if let Ok(connection) = sole(connection) {
        connection.disconnect().await;
    }
    if examined.unreadable.is_empty() {
        server.end().await?;
    }
    Ok(examined)
}

/// For file systems on which nothing is read past the cache. All pages are clean: nobody writes to a backup.
async fn drop_from_cache(images: &[PathBuf]) -> Result<(), Failure> {
    let Some(top) = images.first() else { return Ok(()) };
    if target::cache_of(top).await == Cache::Direct {
        return Ok(());
    }
    let images = images.to_vec();
    let drop_all = move || {
        for path in images {
            let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
            let dropped = OpenOptions::new().read(true).custom_flags(flags).open(&path).and_then(|file| {
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
            });
            dropped.map_err(|error| target::io_failure(Code::RepositoryIo, "drop from the cache", &path, &error))?;
        }
        Ok(())
    };
    blocking(drop_all).await
}

struct Reading {
    found: Blocks,
    unreadable: Vec<(u64, String)>,
    /// The block after the last one that was looked at.
    until: u64,
    buffers: Buffers,
    passed: u64,
    bytes_read: u64,
}

impl Reading {
    fn of(expected: &Blocks) -> Result<Self, Failure> {
        let found = Blocks::new(expected.virtual_bytes())
            .map_err(|error| Failure::new(Code::BackupDamaged, "a disk cannot be read").because(&error))?;
        Ok(Self { found, unreadable: Vec::new(), until: 0, buffers: Buffers::default(), passed: 0, bytes_read: 0 })
    }

    async fn read(
        mut self,
        connection: &Arc<Connection>,
        expected: &Blocks,
        below: Option<&Blocks>,
        pace: &mut Pace,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Examined, Failure> {
        let mut map = ExtentMap::of_zeros(connection);
        let mut inherited = Inherited::of(connection, expected, below);
        let mut pipeline = Pipeline::new();
        for index in 0..expected.count() {
            let (start, bytes) = (index * BLOCK_BYTES, expected.block_bytes(index));
            match map.all(start, start + bytes).await {
                Ok(true) => {
                    (self.passed, self.until) = (self.passed + bytes, index + 1);
                    if index % ZERO_BLOCKS_A_REPORT == 0 {
                        report(self.passed, self.bytes_read);
                    }
                    continue;
                }
                Ok(false) => {}
                // Where the tables of the image can't be read, nothing behind them can.
                Err(error) => {
                    self.unreadable.push((start, words(&error)));
                    break;
                }
            }
            if let Some(hash) = inherited.hash(index).await {
                self.found.set(index, hash);
                (self.passed, self.until) = (self.passed + bytes, index + 1);
                report(self.passed, self.bytes_read);
                continue;
            }
            while let Some(looked) = pipeline.make_room().await? {
                self.settle(looked, report);
            }
            if self.unreadable.len() >= UNREADABLE_MAX {
                break;
            }
            pace.before(bytes).await;
            self.until = index + 1;
            pipeline.start(look(Arc::clone(connection), index, self.buffers.take(bytes)));
        }
        while let Some(looked) = pipeline.next().await? {
            self.settle(looked, report);
        }
        Ok(self.end(expected))
    }

    fn settle(&mut self, looked: Looked, report: &(dyn Fn(u64, u64) + Sync)) {
        let Looked { index, hash, buffer } = looked;
        let bytes = self.found.block_bytes(index);
        self.passed += bytes;
        match hash {
            Ok(hash) => {
                self.bytes_read += bytes;
                if let Some(hash) = hash {
                    self.found.set(index, hash);
                }
            }
            Err(words) => self.unreadable.push((index * BLOCK_BYTES, words)),
        }
        self.buffers.give_back(buffer);
        report(self.passed, self.bytes_read);
    }

    fn end(mut self, expected: &Blocks) -> Examined {
        self.unreadable.sort();
        let is_whole = self.unreadable.is_empty();
        let unread = |index: u64| self.unreadable.iter().any(|(offset, _)| *offset == index * BLOCK_BYTES);
        let mut differing: Vec<(u64, u64)> = Vec::new();
        for index in (0..self.until).filter(|index| self.found.get(*index) != expected.get(*index) && !unread(*index)) {
            match differing.last_mut() {
                Some((start, count)) if *start / BLOCK_BYTES + *count == index => *count += 1,
                _ => differing.push((index * BLOCK_BYTES, 1)),
            }
        }
        let root = || blake3::Hash::from_bytes(self.found.root()).to_hex().to_string();
        let tells = is_whole && (0..self.found.count()).any(|index| self.found.get(index).is_some());
        Examined { content_root: tells.then(root), differing, unreadable: self.unreadable }
    }
}

/// What need not be read, since it is below and was read there.
struct Inherited<'e> {
    expected: &'e Blocks,
    below: Option<(&'e Blocks, ExtentMap<'e>)>,
}

impl<'e> Inherited<'e> {
    fn of(connection: &'e Connection, expected: &'e Blocks, below: Option<&'e Blocks>) -> Self {
        Self { expected, below: below.and_then(|below| Some((below, ExtentMap::of_its_own(connection)?))) }
    }

    /// The hash of a block, where the images below have it and no part of it is in the topmost one.
    async fn hash(&mut self, index: u64) -> Option<BlockHash> {
        let (below, its_own) = self.below.as_mut()?;
        let (start, bytes) = (index * BLOCK_BYTES, self.expected.block_bytes(index));
        // The last block of a disk that has grown was a shorter one.
        let hash = self.expected.get(index).filter(|_| index < below.count() && below.block_bytes(index) == bytes)?;
        let is_the_same = below.get(index) == Some(hash);
        // What can't be told is read.
        let own = its_own.runs(start, start + bytes).await;
        (is_the_same && own.is_ok_and(|own| own.is_empty())).then_some(*hash)
    }
}

async fn look(connection: Arc<Connection>, index: u64, buffer: Vec<u8>) -> Result<Looked, Failure> {
    match connection.read(index * BLOCK_BYTES, buffer).await {
        Ok(buffer) => {
            let hash = buffer.iter().any(|byte| *byte != 0).then(|| *blake3::hash(&buffer).as_bytes());
            Ok(Looked { index, hash: Ok(hash), buffer })
        }
        Err(error) => Ok(Looked { index, hash: Err(words(&error)), buffer: Vec::new() }),
    }
}

fn words(error: &NbdError) -> String {
    format!("{:#}", Failure::new(error.code(Code::RepositoryIo), "it cannot be read").because(error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zeros_alone_are_nobodys_content() {
        let mut expected = Blocks::new(2 * BLOCK_BYTES).unwrap();
        expected.set(1, [7; 32]);
        let read = |found: &[(u64, BlockHash)]| {
            let mut reading = Reading::of(&expected).unwrap();
            found.iter().for_each(|(index, hash)| reading.found.set(*index, *hash));
            Reading { until: 2, ..reading }.end(&expected)
        };
        let zeros = read(&[]);
        assert_eq!((zeros.content_root, zeros.differing), (None, vec![(BLOCK_BYTES, 1)]));
        assert!(read(&[(0, [1; 32])]).content_root.is_some());
    }
}
