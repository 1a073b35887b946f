//! Bringing a whole staging directory to stable storage, and saying what is in it. Blocks.

use std::io::Read;

use super::protocol::SealedFile;
use super::share::Dir;
use crate::failure::{Code, Failure};

/// Files of one backup: three records and two for each disk, with room to spare.
const FILES_MAX: usize = 4096;
/// Last part of the names whose content the block hashes vouch for.
const IMAGE_ENDING: &str = ".qcow2";

/// Longest file that is hashed here, bytes: the block hashes of a disk of 64 TiB have half of it, and a record far less.
const HASHED_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Fsyncs the files `names`, which are those of our own making, and the directory itself. One that is anything but a regular
/// file is `repository_unsafe`. Whatever else is there was put there by others: it is warned of and left out.
pub(super) fn seal(staging: &Dir, names: &[String]) -> Result<Vec<SealedFile>, Failure> {
    for entry in staging.list(FILES_MAX)? {
        if !names.iter().any(|name| name.as_str() == entry.name) {
            let name = entry.name.to_string_lossy().escape_debug().to_string();
            tracing::warn!(name, "something that is not ours lies in the staging directory");
        }
    }
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let mut file = staging.open_file(name, false)?;
        let shown = || name.escape_debug().to_string();
        let failed = |action: &str, error: std::io::Error| {
            Failure::new(Code::RepositoryIo, format!("cannot {action} `{}`", shown())).because(&error)
        };
        file.sync_all().map_err(|error| failed("fsync", error))?;
        let bytes = file.metadata().map_err(|error| failed("stat", error))?.len();
        let blake3 = if name.ends_with(IMAGE_ENDING) {
            None
        } else {
            if bytes > HASHED_BYTES_MAX {
                return Err(Failure::new(Code::RepositoryUnsafe, format!("`{}` has {bytes} bytes", shown())));
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader((&mut file).take(bytes)).map_err(|error| failed("read", error))?;
            Some(hasher.finalize().to_hex().to_string())
        };
        files.push(SealedFile { file: name.clone(), bytes, blake3 });
    }
    staging.sync()?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sealing_names_every_file_of_ours_with_length_and_hash_but_for_images() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(directory.path()).unwrap();
        dir.write_new("vda.qcow2", b"image").unwrap();
        dir.write_new("domain.xml", b"<domain/>").unwrap();
        let hash = blake3::hash(b"<domain/>").to_hex().to_string();
        std::fs::File::create(directory.path().join("stray")).unwrap().set_len(1 << 40).unwrap();
        let sealed = seal(&dir, &["domain.xml".into(), "vda.qcow2".into()]).unwrap();
        assert_eq!(
            sealed,
            [
                SealedFile { file: "domain.xml".into(), bytes: 9, blake3: Some(hash) },
                SealedFile { file: "vda.qcow2".into(), bytes: 5, blake3: None },
            ]
        );
    }

    #[test]
    fn what_is_not_a_regular_file_is_not_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(directory.path()).unwrap();
        let path = directory.path().join("vda.qcow2");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(seal(&dir, &["vda.qcow2".into()]).unwrap_err().code, Code::RepositoryUnsafe);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(seal(&dir, &["vda.qcow2".into()]).unwrap_err().code, Code::RepositoryUnsafe);
    }
}
