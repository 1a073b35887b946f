//! Bringing a whole staging directory to stable storage, and saying what is in it. Blocks.

use super::protocol::SealedFile;
use super::share::Dir;
use crate::failure::{Code, Failure};

/// Files of one backup: three records and two for each disk, with room to spare.
const FILES_MAX: usize = 4096;
/// Last part of the names whose content the block hashes vouch for.
const IMAGE_ENDING: &str = ".qcow2";

/// Fsyncs every file and the directory itself. Files by name; anything but a regular file is `repository_unsafe`.
pub(super) fn seal(staging: &Dir) -> Result<Vec<SealedFile>, Failure> {
    let mut names: Vec<_> = staging.list(FILES_MAX)?.into_iter().map(|entry| entry.name).collect();
    names.sort();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let mut file = staging.open_file(&name, false)?;
        let shown = || name.to_string_lossy().escape_debug().to_string();
        let failed = |action: &str, error: std::io::Error| {
            Failure::new(Code::RepositoryIo, format!("cannot {action} `{}`", shown())).because(&error)
        };
        file.sync_all().map_err(|error| failed("fsync", error))?;
        let bytes = file.metadata().map_err(|error| failed("stat", error))?.len();
        let Some(plain) = name.to_str() else {
            return Err(Failure::new(Code::RepositoryUnsafe, format!("`{}` is not ours", shown())));
        };
        let blake3 = if plain.ends_with(IMAGE_ENDING) {
            None
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&mut file).map_err(|error| failed("read", error))?;
            Some(hasher.finalize().to_hex().to_string())
        };
        files.push(SealedFile { file: plain.to_owned(), bytes, blake3 });
    }
    staging.sync()?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sealing_names_every_file_with_length_and_hash_but_for_images() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(directory.path()).unwrap();
        dir.write_new("vda.qcow2", b"image").unwrap();
        dir.write_new("domain.xml", b"<domain/>").unwrap();
        let hash = blake3::hash(b"<domain/>").to_hex().to_string();
        let sealed = seal(&dir).unwrap();
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
        assert_eq!(seal(&dir).unwrap_err().code, Code::RepositoryUnsafe);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(seal(&dir).unwrap_err().code, Code::RepositoryUnsafe);
    }
}
