//! What really is on a share: a file read back past this host's cache, and held against what was sent there. Blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Dir, ShareError};
use crate::failure::{Code, Failure};

/// Bytes that are read back at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What reads past the cache are aligned to, bytes: the largest block that devices have.
const ALIGN_BYTES: usize = 4096;

/// The content that a file was given, by its length and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3.
    pub blake3: blake3::Hash,
}

impl Sent {
    /// Of that content.
    pub fn of(content: &[u8]) -> Self {
        Self { bytes: u64::try_from(content.len()).unwrap_or(u64::MAX), blake3: blake3::hash(content) }
    }
}

/// Brings a file to stable storage and reads it back from there. Other than it was sent: `content_mismatch`.
pub(crate) fn must_be_stored(dir: &Dir, name: &str, sent: &Sent) -> Result<(), Failure> {
    let failed =
        |action: &'static str| move |error: io::Error| ShareError::io(action, dir.shown(name.as_ref()), &error);
    let file = dir.open_file(name, false)?;
    super::sync(&file).map_err(failed("fsync"))?;
    let file = match dir.open_direct(name)? {
        Some(direct) => direct,
        None => {
            // Clean pages are dropped; they are all clean after the fsync.
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|errno| failed("drop from the cache")(errno.into()))?;
            file
        }
    };
    let found = hash(&file, sent.bytes).map_err(failed("read back"))?;
    if found == *sent {
        return Ok(());
    }
    let text =
        format!("`{}` was read back from the share with another content than was sent", dir.shown(name.as_ref()));
    Err(Failure::new(Code::ContentMismatch, text))
}

/// Reads to the end, or until it is clear that there are more than `bytes`.
fn hash(file: &File, bytes: u64) -> io::Result<Sent> {
    let mut room = vec![0; CHUNK_BYTES + ALIGN_BYTES];
    let start = room.as_ptr().align_offset(ALIGN_BYTES);
    let chunk = room.get_mut(start..).and_then(|aligned| aligned.get_mut(..CHUNK_BYTES)).unwrap_or_default();
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    loop {
        let got = match file.read_at(chunk, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            got => got?,
        };
        hasher.update(chunk.get(..got).unwrap_or_default());
        at += u64::try_from(got).unwrap_or(u64::MAX);
        // A short read where the end should be is the end; asking beyond it would not be aligned.
        if got == 0 || at > bytes || (at == bytes && got < CHUNK_BYTES) {
            return Ok(Sent { bytes: at, blake3: hasher.finalize() });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_as_it_was_sent_or_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(directory.path()).unwrap();
        for length in [0, 1, 4095, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let (name, sent) = (format!("file-{length}"), Sent::of(&content));
            dir.write_new(&name, &content).unwrap();
            must_be_stored(&dir, &name, &sent).unwrap();

            let path = directory.path().join(&name);
            std::fs::write(&path, [&content[..], b"x"].concat()).unwrap();
            assert_eq!(must_be_stored(&dir, &name, &sent).unwrap_err().code, Code::ContentMismatch, "{length}: longer");
            if let Some((last, others)) = content.split_last() {
                std::fs::write(&path, [others, &[!last][..]].concat()).unwrap();
                assert_eq!(must_be_stored(&dir, &name, &sent).unwrap_err().code, Code::ContentMismatch, "{length}");
                std::fs::write(&path, others).unwrap();
                assert!(must_be_stored(&dir, &name, &sent).is_err(), "{length}: shorter");
            }
        }
    }
}
