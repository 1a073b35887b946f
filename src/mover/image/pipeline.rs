//! Blocks under way: a bounded number of tasks, and their buffers, which are used again.

use tokio::task::JoinSet;

use crate::failure::{Code, Failure};

/// Most blocks under way: what QEMU's servers take at once, at both ends. With a block of 1 MiB each this is what copying
/// needs of memory; comparing needs twice that.
const BLOCKS_IN_FLIGHT_MAX: usize = 24;

/// Tasks that each do one block and return what came of it. Dropping it stops them all.
#[derive(Debug)]
pub(super) struct Pipeline<T> {
    tasks: JoinSet<Result<T, Failure>>,
}

impl<T: Send + 'static> Pipeline<T> {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new() }
    }

    /// Room for one more block: what came of an earlier one if there is none, which is to be asked again.
    pub(super) async fn make_room(&mut self) -> Result<Option<T>, Failure> {
        if self.tasks.len() < BLOCKS_IN_FLIGHT_MAX { Ok(None) } else { self.next().await }
    }

    /// What came of the next block that is done; none when none is under way.
    pub(super) async fn next(&mut self) -> Result<Option<T>, Failure> {
        match self.tasks.join_next().await {
            None => Ok(None),
            Some(Ok(outcome)) => outcome.map(Some),
            Some(Err(error)) => Err(Failure::new(Code::Internal, "the task of a block ended early").because(&error)),
        }
    }

    /// Starts on a block.
    pub(super) fn start(&mut self, block: impl Future<Output = Result<T, Failure>> + Send + 'static) {
        self.tasks.spawn(block);
    }
}

/// Buffers for blocks. At most as many are kept as blocks were ever under way.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    /// A buffer of that many bytes, with anything in it.
    pub(super) fn take(&mut self, bytes: u64) -> Vec<u8> {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
        buffer
    }

    /// Takes one back.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.0.push(buffer);
    }
}
