//! The keys that a mover was given, and the files by which its tools read them: in the mover's own directory, nobody else's, for as long as
//! what they open is in use.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::failure::{Code, Failure};
use crate::model::network::SecretRef;
use crate::mover::protocol::NamedKey;

/// All keys of a mover.
#[derive(Clone, Debug, Default)]
pub(in crate::mover) struct Keys {
    directory: PathBuf,
    keys: Vec<NamedKey>,
    written: Arc<AtomicU32>,
}

impl Keys {
    /// These, with files in `directory`, which is nobody else's.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, ..Self::default() }
    }

    /// These, in place of those that were there.
    pub fn replace(&mut self, keys: Vec<NamedKey>) {
        self.keys = keys;
    }

    /// The key of that name as a file.
    pub fn file(&self, secret: &SecretRef) -> Result<KeyFile, Failure> {
        let known = self.keys.iter().find(|known| known.secret == *secret);
        let known = known.ok_or_else(|| {
            Failure::new(Code::Internal, format!("the mover was given no key for the secret `{secret}`"))
        })?;
        let path = self.directory.join(format!("key-{}", self.written.fetch_add(1, Ordering::Relaxed)));
        // Removed also when writing fails half way.
        let file = KeyFile { path };
        let mut opened = OpenOptions::new();
        opened.write(true).create_new(true).mode(0o600);
        opened.open(&file.path).and_then(|mut opened| opened.write_all(known.key.expose().as_bytes())).map_err(
            |error| Failure::new(Code::HostIo, "cannot write a key for the tools that need it").because(&error),
        )?;
        Ok(file)
    }
}

/// A file with a key, removed when this is dropped.
#[derive(Debug)]
pub(in crate::mover) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "cannot remove the file of a key; it goes with the mover");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::mover::protocol::StorageKey;

    #[test]
    fn a_key_is_in_a_file_of_our_own_for_as_long_as_it_is_held() {
        let place = tempfile::tempdir().unwrap();
        let secret = SecretRef::Usage("client.vm".into());
        let mut keys = Keys::new(place.path().to_owned());
        assert_eq!(keys.file(&secret).unwrap_err().code, Code::Internal);
        let key = StorageKey::new("QUJD".to_owned().into());
        keys.replace(vec![NamedKey { secret: secret.clone(), key }]);
        let (one, other) = (keys.file(&secret).unwrap(), keys.file(&secret).unwrap());
        assert_eq!(std::fs::read_to_string(one.path()).unwrap(), "QUJD");
        assert_eq!(std::fs::metadata(one.path()).unwrap().mode() & 0o777, 0o600);
        drop(one);
        assert!(other.path().exists(), "one that is used goes with nobody else's");
        drop(other);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
