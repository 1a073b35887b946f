//! Which repository a share holds: `longshore.json` in its root. A job names the repository that it means, and nothing is
//! written to a share that does not say the same: a share that failed to mount leaves an empty directory behind, and
//! backups written there have been lost in the field.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Dir, INSTANCES, LOCKS};
use crate::failure::{Code, Failure};
use crate::model::id::RepositoryId;

/// The file.
const FILE: &str = "longshore.json";
/// Longest that is read, bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// Content of `longshore.json`. A reader skips fields that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the layout; 1.
    pub format: u32,
    /// The repository.
    pub repository_id: RepositoryId,
}

impl Identity {
    /// Layout that this version reads and writes.
    pub const FORMAT: u32 = 1;

    /// The share holds the repository that is meant, else `repository_identity_mismatch`.
    pub fn must_be(&self, wanted: RepositoryId, shown: &str) -> Result<(), Failure> {
        if self.repository_id == wanted {
            return Ok(());
        }
        let text = format!("`{shown}` holds the repository `{}` and not `{wanted}`", self.repository_id);
        Err(Failure::new(Code::RepositoryIdentityMismatch, text))
    }
}

/// Reads the identity of the repository in `root`. None there: `repository_not_found`; one that can't be understood:
/// `repository_identity_mismatch`.
pub fn read_identity(root: &Dir) -> Result<Identity, Failure> {
    let shown = root.path().display();
    let content = root.read(FILE, BYTES_MAX).map_err(|error| match error.is_missing() {
        true => Failure::new(Code::RepositoryNotFound, format!("`{shown}` has no `{FILE}`")),
        false => Failure::from(error),
    })?;
    let identity: Identity = serde_json::from_slice(&content).map_err(|error| {
        Failure::new(Code::RepositoryIdentityMismatch, format!("cannot read `{FILE}` in `{shown}`")).because(&error)
    })?;
    if identity.format != Identity::FORMAT {
        let text =
            format!("`{FILE}` in `{shown}` is of format {}; this version reads {}", identity.format, Identity::FORMAT);
        return Err(Failure::new(Code::RepositoryIdentityMismatch, text));
    }
    Ok(identity)
}

/// Makes a repository in an existing directory and answers its new id. The identity file is made last and exclusively,
/// so of two at once one fails, and a directory that holds a repository already is refused with
/// `repository_identity_mismatch`.
pub fn init(path: &Path) -> Result<RepositoryId, Failure> {
    let root = Dir::open_root(path).map_err(|error| match error.is_missing() {
        true => Failure::new(Code::RepositoryNotFound, format!("there is no directory `{}`", path.display())),
        false => Failure::from(error),
    })?;
    let refused = || {
        let text = format!("`{}` holds a repository already: it has a `{FILE}`", path.display());
        Err(Failure::new(Code::RepositoryIdentityMismatch, text))
    };
    if root.stat(FILE)?.is_some() {
        return refused();
    }
    root.ensure_dir(INSTANCES)?;
    root.ensure_dir(LOCKS)?;
    let identity = Identity { format: Identity::FORMAT, repository_id: RepositoryId::draw() };
    let mut content = serde_json::to_vec_pretty(&identity)
        .map_err(|error| Failure::new(Code::Internal, format!("cannot write `{FILE}`")).because(&error))?;
    content.push(b'\n');
    let file = match root.create_file(FILE) {
        Err(error) if error.is_taken() => return refused(),
        created => created?,
    };
    if let Err(error) = root.fill(file, FILE, &content) {
        // Nobody else's, as it was made here. Left there, it would be taken for a repository by the next try.
        let mut failure = Failure::from(error);
        if let Err(stays) = root.remove_file(FILE) {
            failure = failure.because_of(&stays.into());
        }
        return Err(failure);
    }
    root.sync()?;
    Ok(identity.repository_id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_repository_is_made_once_and_known_again() {
        let directory = tempfile::tempdir().unwrap();
        let id = init(directory.path()).unwrap();
        let root = Dir::open_root(directory.path()).unwrap();
        let identity = read_identity(&root).unwrap();
        assert_eq!(identity.repository_id, id);
        assert!(identity.must_be(id, "x").is_ok());
        assert_eq!(identity.must_be(RepositoryId::draw(), "x").unwrap_err().code, Code::RepositoryIdentityMismatch);
        assert_eq!(init(directory.path()).unwrap_err().code, Code::RepositoryIdentityMismatch);
        assert_eq!(read_identity(&root).unwrap().repository_id, id, "the refused one changed nothing");
    }

    #[test]
    fn an_identity_that_is_missing_damaged_too_new_or_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = Dir::open_root(directory.path()).unwrap();
        assert_eq!(read_identity(&root).unwrap_err().code, Code::RepositoryNotFound);
        let file = directory.path().join(FILE);
        for content in
            ["", "{", "{\"format\":1}", "{\"format\":2,\"repository_id\":\"0198c0de-0000-7000-8000-000000000001\"}"]
        {
            std::fs::write(&file, content).unwrap();
            assert_eq!(read_identity(&root).unwrap_err().code, Code::RepositoryIdentityMismatch, "{content}");
        }
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert_eq!(read_identity(&root).unwrap_err().code, Code::RepositoryUnsafe);
        assert_eq!(init(directory.path()).unwrap_err().code, Code::RepositoryIdentityMismatch);
    }

    #[test]
    fn a_repository_is_not_made_where_there_is_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(init(&directory.path().join("nowhere")).unwrap_err().code, Code::RepositoryNotFound);
    }
}
