//! Small files with secrets: read with suspicion, into memory that is zeroed.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use secrecy::zeroize::Zeroizing;

use crate::failure::{Code, Failure};

/// Longest such file, bytes.
pub const BYTES_MAX: usize = 4096;
/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// What is in the file.
///
/// # Errors
/// `credentials_unreadable`: missing, a link, another's, open to others, too long or no UTF-8.
pub fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let shown = path.display();
    let failed = |error: std::io::Error| unreadable(format!("cannot read `{shown}`")).because(&error);
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    trusted(&file, path)?;
    // With its room from the start: a text that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(BYTES_MAX + 1));
    let read = file.take(BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if read > BYTES_MAX {
        return Err(unreadable(format!("`{shown}` has more than {BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn trusted(file: &File, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let status = file.metadata().map_err(|error| unreadable(format!("cannot look at `{shown}`")).because(&error))?;
    if !status.is_file() {
        return Err(unreadable(format!("`{shown}` is no regular file")));
    }
    let us = nix::unistd::geteuid();
    if status.uid() != us.as_raw() || status.mode() & OTHERS != 0 {
        return Err(unreadable(format!("`{shown}` is open to others: `chown {us}` and `chmod 600` it")));
    }
    Ok(())
}

fn unreadable(text: String) -> Failure {
    Failure::new(Code::CredentialsUnreadable, text)
}
