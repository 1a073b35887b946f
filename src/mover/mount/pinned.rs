//! One directory of the share, or one block device, under a path that nobody else can change: the tools that write images want paths, and a path
//! across a share leads wherever somebody else puts a link. Nor is a link in the directory itself followed through that path:
//! between two tools that open a file of ours, somebody else may put one in its place.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{bind, bind_file, must_not_follow_links, unmount};
use crate::failure::{Code, Failure};
use crate::mover::share::Dir;

/// A directory or device that is bound, by its descriptor, on a place of the mover's own.
pub(in crate::mover) struct Pinned {
    place: PathBuf,
}

impl Pinned {
    /// Binds `dir` on `place`, which is made.
    pub fn new(dir: &Dir, place: PathBuf) -> Result<Self, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let text = format!("cannot bind `{}` on `{}`", dir.path().display(), place.display());
            Failure::new(Code::MountFailed, text).because(error)
        };
        std::fs::create_dir_all(&place).map_err(|error| failed(&error))?;
        bind(dir, &place).map_err(|errno| failed(&errno))?;
        // From here on it is unmounted whatever comes.
        let pinned = Self { place };
        match Dir::open_root(&pinned.place).map_err(Failure::from).and_then(|dir| must_not_follow_links(&dir)) {
            Ok(()) => Ok(pinned),
            Err(failure) => {
                // The failure says more than a warning about the way back.
                let _warning = pinned.close();
                Err(failure)
            }
        }
    }

    /// Binds the device that is open on `place`, which is made: whatever becomes of the names in `/dev`, it is that device.
    pub fn device(device: &File, place: PathBuf) -> Result<Self, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Code::MountFailed, format!("cannot bind a block device on `{}`", place.display()))
                .because(error)
        };
        // What an earlier one was bound on is a plain file again.
        std::fs::File::create(&place).map_err(|error| failed(&error))?;
        bind_file(device, &place).map_err(|errno| failed(&errno))?;
        Ok(Self { place })
    }

    /// The path.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Gives the path up. Who still uses it is the cause of the warning.
    pub fn close(self) -> Option<String> {
        unmount(&self.place)
    }
}
