//! A disk of a published backup, read to its last block and held against the hashes that were taken when the backup was made.
//!
//! Unlike a restore it does not stop at what differs: where everything that does is known, it can be told whether a bit rotted, a part
//! was overwritten or another disk's image is there. Nothing is written.
//!
//! Of a chain each block is read once. What an image does not have itself is what the one below it has, so where that was read and found
//! to be what its hashes say, an equal hash is all that is left to be asked. Where anything differs all of the disk is read after all.
//! Of such an image the server says what it has itself and no more ([`Besides::DepthAlone`]): of a long chain of small images, which would
//! have their tables walked through for each, that was half of the work. A block of its own that is zeros is read like any other.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use super::base::same;
use super::blocks::{BLOCK_BYTES, BlockHash, Blocks};
use super::extent_map::ExtentMap;
use super::original::Original;
use super::pace::Pace;
use super::pipeline::{Buffers, Pipeline};
use super::server::{Besides, Cache, Server, Sockets};
use super::{sole, target};
use crate::failure::{Code, Failure};
use crate::mover::blocking;
use crate::mover::nbd::{Connection, NbdError};

/// Blocks that could not be read after which no more are tried: the storage below is gone, and each try takes its time.
const UNREADABLE_MAX: usize = 64;
/// Blocks that are passed over between two reports of progress.
const PASSED_BLOCKS_A_REPORT: u64 = 1024;

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

/// A disk that can be read.
#[derive(Debug)]
pub(in crate::mover) struct Served {
    server: Server,
    connection: Connection,
    /// It says what the topmost image has itself, and nothing of zeros.
    says_its_own: bool,
}

impl Served {
    /// Opens the disk by its images at those paths, the topmost first; `says_its_own` where what it is based on is likely to have been read
    /// by the time that it is.
    pub async fn start(
        original: &Original,
        images: &[PathBuf],
        says_its_own: bool,
        sockets: &Sockets,
    ) -> Result<Self, Failure> {
        let besides = if says_its_own { Besides::DepthAlone } else { Besides::Nothing };
        let (server, connection) = original.serve_saying(besides, images, sockets).await?;
        Ok(Self { server, connection, says_its_own })
    }

    /// Ends it unread.
    pub async fn give_up(self) {
        self.connection.disconnect().await;
        if let Err(failure) = self.server.end().await {
            tracing::warn!(
                failure = format!("{failure:#}"),
                "the server of an image that is not read did not end well"
            );
        }
    }
}

/// One block that was looked at.
struct Looked {
    index: u64,
    /// What it holds, none for zeros; or why that can't be said.
    hash: Result<Option<BlockHash>, String>,
    buffer: Vec<u8>,
}

/// Examines the disk that is `served` by its images at those paths, the topmost first. `below` has the hashes of what it is based on, where that was read
/// and is what they say. `report` gets bytes of the disk passed, and bytes read.
pub(in crate::mover) async fn examine(
    original: &Original,
    images: &[PathBuf],
    below: Option<&Blocks>,
    served: Served,
    sockets: &Sockets,
    pace: &mut Pace,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<Examined, Failure> {
    let below = below.filter(|_| served.says_its_own);
    let served = match served.says_its_own && below.is_none() {
        true => {
            served.give_up().await;
            Served::start(original, images, false, sockets).await?
        }
        false => served,
    };
    drop_from_cache(images).await?;
    let examined = read_through(original, served, below, pace, report).await?;
    if below.is_none() || (examined.differing.is_empty() && examined.unreadable.is_empty()) {
        return Ok(examined);
    }
    let served = Served::start(original, images, false, sockets).await?;
    read_through(original, served, None, pace, report).await
}

async fn read_through(
    original: &Original,
    Served { server, connection, .. }: Served,
    below: Option<&Blocks>,
    pace: &mut Pace,
    report: &(dyn Fn(u64, u64) + Sync),
) -> Result<Examined, Failure> {
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
        let mut known = Known::of(connection, expected, below);
        let mut pipeline = Pipeline::new();
        for index in 0..expected.count() {
            let (start, bytes) = (index * BLOCK_BYTES, expected.block_bytes(index));
            match known.look_at(index).await {
                Ok(Some(content)) => {
                    if let Some(hash) = content {
                        self.found.set(index, hash);
                    }
                    (self.passed, self.until) = (self.passed + bytes, index + 1);
                    if index % PASSED_BLOCKS_A_REPORT == 0 {
                        report(self.passed, self.bytes_read);
                    }
                    continue;
                }
                Ok(None) => {}
                // Where the tables of the image can't be read, nothing behind them can.
                Err(error) => {
                    self.unreadable.push((start, words(&error)));
                    break;
                }
            }
            while let Some(looked) = pipeline.make_room().await? {
                self.settle(looked, pace, report);
            }
            if self.unreadable.len() >= UNREADABLE_MAX {
                break;
            }
            pace.before(bytes).await;
            self.until = index + 1;
            pipeline.start(look(Arc::clone(connection), index, self.buffers.take(bytes)));
        }
        while let Some(looked) = pipeline.next().await? {
            self.settle(looked, pace, report);
        }
        Ok(self.end(expected))
    }

    fn settle(&mut self, looked: Looked, pace: &mut Pace, report: &(dyn Fn(u64, u64) + Sync)) {
        let Looked { index, hash, buffer } = looked;
        let bytes = self.found.block_bytes(index);
        self.passed += bytes;
        match hash {
            Ok(Some(hash)) => {
                self.bytes_read += bytes;
                self.found.set(index, hash);
            }
            // Hardly anything is stored of it.
            Ok(None) => pace.forgive(bytes),
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

/// What need not be read: what reads as zeros or, where the images below were read, what they have and the topmost one has not.
enum Known<'e> {
    Zeros { expected: &'e Blocks, zeros: ExtentMap<'e> },
    Below { expected: &'e Blocks, below: &'e Blocks, its_own: ExtentMap<'e> },
}

impl<'e> Known<'e> {
    fn of(connection: &'e Connection, expected: &'e Blocks, below: Option<&'e Blocks>) -> Self {
        match below.and_then(|below| Some((below, ExtentMap::of_its_own_alone(connection)?))) {
            Some((below, its_own)) => Known::Below { expected, below, its_own },
            None => Known::Zeros { expected, zeros: ExtentMap::of_zeros(connection) },
        }
    }

    /// What a block holds, none for zeros; nothing where it has to be read.
    async fn look_at(&mut self, index: u64) -> Result<Option<Option<BlockHash>>, NbdError> {
        let start = index * BLOCK_BYTES;
        match self {
            Known::Zeros { expected, zeros } => {
                let all = zeros.all(start, start + expected.block_bytes(index)).await?;
                Ok(all.then_some(None))
            }
            Known::Below { expected, below, its_own } => {
                let (bytes, hash) = (expected.block_bytes(index), expected.get(index).copied());
                let own = its_own.runs(start, start + bytes).await?;
                let is_the_same = same(below, index, hash.as_ref(), bytes);
                Ok((own.is_empty() && is_the_same).then_some(hash))
            }
        }
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
