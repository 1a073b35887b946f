//! What can go wrong on a share, before it is given a failure code.

use std::ffi::OsStr;
use std::io;

use nix::errno::Errno;

use crate::failure::{Code, Failure};
use crate::mover::device;

/// Longest part of a path that is repeated in an error, characters: names on a share are not ours to trust.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// An operation on the share that did not work.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The file system refused.
    #[error("cannot {action} `{shown}`")]
    Refused {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        shown: String,
        /// The answer.
        #[source]
        errno: Errno,
    },
    /// Something else is there than its name says: a symbolic link in place of a directory, a pipe in place of a file.
    #[error("`{shown}` is not a {expected}")]
    NotWhatItSays {
        /// The entry.
        shown: String,
        /// What it should be.
        expected: &'static str,
    },
    /// More than anything honest would hold.
    #[error("`{shown}` has more than {limit} {unit}")]
    TooMuch {
        /// The entry.
        shown: String,
        /// The bound.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A name that could lead out of its directory.
    #[error("`{shown}` is not a plain name")]
    NotPlain {
        /// The name.
        shown: String,
    },
}

impl ShareError {
    pub(super) fn refused(action: &'static str, shown: String, errno: Errno) -> Self {
        Self::Refused { action, shown, errno }
    }

    pub(super) fn io(action: &'static str, shown: String, error: &io::Error) -> Self {
        Self::refused(action, shown, Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
    }

    /// What the file system answered, where it was asked.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// There is nothing of that name.
    pub fn is_missing(&self) -> bool {
        self.errno() == Some(Errno::ENOENT)
    }

    /// There is no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOSPC | Errno::EDQUOT))
    }

    /// The failure, where trouble with the storage means `device`.
    pub fn failure(&self, device: Code) -> Failure {
        let code = match self {
            Self::NotWhatItSays { .. } | Self::TooMuch { .. } | Self::NotPlain { .. } => device::replaced(device),
            Self::Refused { errno, .. } => device::refused(device, Some(*errno)),
        };
        let failure = Failure::new(code, self.to_string());
        match self {
            Self::Refused { errno, .. } => failure.because(errno),
            _ => failure,
        }
    }

    /// The failure of a rename of what others may have open: CIFS refuses that with what is a matter of rights elsewhere, and it passes.
    pub fn of_rename(&self) -> Failure {
        match self.errno() {
            Some(errno @ (Errno::EACCES | Errno::EPERM | Errno::EBUSY | Errno::ETXTBSY)) => {
                let text = format!("{self}, which somebody may have open");
                Failure::new(Code::RepositoryIo, text).because(&errno)
            }
            _ => self.failure(Code::RepositoryIo),
        }
    }

    /// There is something of that name already.
    pub fn is_taken(&self) -> bool {
        matches!(self.errno(), Some(Errno::EEXIST | Errno::ENOTEMPTY))
    }
}

impl From<ShareError> for Failure {
    fn from(error: ShareError) -> Self {
        error.failure(Code::RepositoryIo)
    }
}

/// A path or name as it may be printed.
pub(super) fn shown(name: &OsStr) -> String {
    name.to_string_lossy().chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect()
}
