//! Bringing a whole staging directory to stable storage, proving what is in it, and saying it. Blocks.

use super::protocol::SealedFile;
use super::share::{self, Staging, must_be_stored};
use crate::failure::{Code, Failure};

/// Files of one backup: three records and two for each disk, with room to spare.
const FILES_MAX: usize = 4096;

/// Fsyncs the files of our own making and the directory itself. What was written here is read back from the storage; images
/// are not, as comparing them is a step of its own. One that is anything but a regular file is `repository_unsafe`, one that
/// is not as it was sent `content_mismatch`. Whatever else is there was put there by others: it is warned of and left out.
pub(super) fn seal(staging: &Staging) -> Result<Vec<SealedFile>, Failure> {
    let made = staging.made();
    for entry in staging.dir.list(FILES_MAX)? {
        if !entry.name.to_str().is_some_and(|name| made.contains_key(name)) {
            let name = entry.name.to_string_lossy().escape_debug().to_string();
            tracing::warn!(name, "something that is not ours lies in the staging directory");
        }
    }
    let mut files = Vec::with_capacity(made.len());
    for (file, sent) in made {
        files.push(match sent {
            Some(sent) => {
                must_be_stored(&staging.dir, &file, &sent)?;
                SealedFile { file, bytes: sent.bytes, blake3: Some(sent.blake3.to_hex().to_string()) }
            }
            None => SealedFile { bytes: fsync_image(staging, &file)?, file, blake3: None },
        });
    }
    staging.dir.sync()?;
    Ok(files)
}

/// Answers its length.
fn fsync_image(staging: &Staging, name: &str) -> Result<u64, Failure> {
    let failed = |action: &str, error: std::io::Error| {
        Failure::new(Code::RepositoryIo, format!("cannot {action} `{}`", name.escape_debug())).because(&error)
    };
    let file = staging.dir.open_file(name, false)?;
    share::sync(&file).map_err(|error| failed("fsync", error))?;
    Ok(file.metadata().map_err(|error| failed("stat", error))?.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::id::{BackupId, InstanceId};
    use crate::mover::share::{self, Dir};

    fn staging() -> (tempfile::TempDir, Staging) {
        let directory = tempfile::tempdir().unwrap();
        share::init(directory.path()).unwrap();
        let root = Dir::open_root(directory.path()).unwrap();
        let staging = Staging::make(&root, InstanceId::draw(), BackupId::draw(), "a.1").unwrap();
        (directory, staging)
    }

    #[test]
    fn sealing_names_every_file_of_ours_with_length_and_hash_but_for_images() {
        let (_share, staging) = staging();
        staging.dir.write_new("vda.qcow2", b"image").unwrap();
        staging.note_made("vda.qcow2", None);
        staging.record("domain.xml", b"<domain/>").unwrap();
        let hash = blake3::hash(b"<domain/>").to_hex().to_string();
        std::fs::File::create(staging.dir.path().join("stray")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(
            seal(&staging).unwrap(),
            [
                SealedFile { file: "domain.xml".into(), bytes: 9, blake3: Some(hash) },
                SealedFile { file: "vda.qcow2".into(), bytes: 5, blake3: None },
            ]
        );
    }

    #[test]
    fn a_record_that_is_not_as_it_was_sent_is_not_sealed() {
        let (_share, staging) = staging();
        staging.record("domain.xml", b"<domain/>").unwrap();
        for stored in ["<domaim/>", "<domain/>\n", "<domain", ""] {
            std::fs::write(staging.dir.path().join("domain.xml"), stored).unwrap();
            assert_eq!(seal(&staging).unwrap_err().code, Code::ContentMismatch, "{stored:?}");
        }
    }

    #[test]
    fn what_is_not_a_regular_file_is_not_sealed() {
        let (_share, staging) = staging();
        staging.note_made("vda.qcow2", None);
        let path = staging.dir.path().join("vda.qcow2");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(seal(&staging).unwrap_err().code, Code::RepositoryUnsafe);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(seal(&staging).unwrap_err().code, Code::RepositoryUnsafe);
    }
}
