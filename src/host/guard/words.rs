//! What a guard says on the worker's stderr, written by a thread of its own: a pipe or terminal that nobody reads any more holds
//! up its writer for ever, and that must not be the one who is to thaw a guest.

use std::io::{ErrorKind, Result, Write};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that wait to be written; what comes beyond is lost.
const LINES_WAITING_MAX: usize = 256;
/// How long the end of the process waits for its last words.
const LAST_WORDS: Duration = Duration::from_millis(200);

enum Word {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    End(SyncSender<()>),
}

static WORDS: LazyLock<SyncSender<Word>> = LazyLock::new(|| writer_to(std::io::stderr()));

/// Starts the thread that writes.
fn writer_to(mut out: impl Write + Send + 'static) -> SyncSender<Word> {
    let (words, waiting) = sync_channel(LINES_WAITING_MAX);
    std::thread::spawn(move || {
        for word in waiting {
            match word {
                // The worker may be gone, and its stderr with it.
                Word::Line(line) => drop(out.write_all(&line)),
                Word::End(written) => drop(written.try_send(())),
            }
        }
    });
    words
}

fn give(words: &SyncSender<Word>, bytes: &[u8]) -> Result<usize> {
    match words.try_send(Word::Line(bytes.to_vec())) {
        Ok(()) | Err(TrySendError::Full(_)) => Ok(bytes.len()),
        Err(TrySendError::Disconnected(_)) => Err(ErrorKind::BrokenPipe.into()),
    }
}

/// Takes lines, and never waits.
pub(super) struct Words;

impl Write for Words {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        give(&WORDS, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Says a sentence.
pub(super) fn say(text: &str) {
    // Whole, so that it is one line among the worker's own.
    let _ = Words.write(format!("longshore guard: {text}\n").as_bytes());
}

/// Gives what was said a moment to be written.
pub(super) fn finish() {
    let (written, told) = sync_channel(1);
    if WORDS.try_send(Word::End(written)).is_ok() {
        let _ = told.recv_timeout(LAST_WORDS);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_but_the_thread() {
        let (_unread, pipe) = std::io::pipe().unwrap();
        let words = writer_to(pipe);
        // More than a pipe and the waiting lines hold; written here, the first 64 KiB would be the last.
        for _ in 0..2 * LINES_WAITING_MAX {
            assert_eq!(give(&words, &[b'x'; 4096]).unwrap(), 4096);
        }
        let (written, told) = sync_channel(1);
        assert!(words.try_send(Word::End(written)).is_err() || told.recv_timeout(LAST_WORDS).is_err());
    }
}
