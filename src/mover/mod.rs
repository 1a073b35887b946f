//! The mover: the child process of one job that mounts the share, reads, hashes, writes, verifies and publishes.
//!
//! The worker never touches a share; everything that could get stuck behind a dead one happens here, in a process with
//! mount and PID namespaces of its own. Kill it and nothing of it is left. It knows nothing of queues, journals or
//! libvirt: it does what it is asked, one request at a time, over [`protocol`].
//!
//! ```text
//!   open ─▶ lease ─▶ stage ─▶ record… ─▶ copy ─▶ compare ──────┬─▶ seal ─▶ publish ─▶ release ─▶ close
//!                      │                └▶ expose, (QEMU) ▶ inspect ┘     │
//!                      └────────────── discard, at any point ─────────────┘
//!                └─▶ restore ─▶ compare ─▶ [claim ─▶ overwrite] ─▶ exchange ─▶ remove the previous volumes
//!                      └──── or remove the new ones
//!                └─▶ make new files ─▶ compare ─▶ place them
//!                      └──── or take them back, and remove them
//!                └─▶ chains ─▶ merge ─▶ delete ─▶ remove what was deleted
//!   open to look ─▶ validate ─▶ sweep ─▶ close
//! ```

pub mod block_device;
pub mod command;
pub mod delete;
mod device;
pub mod image;
mod lease;
pub mod lvm;
mod mount;
mod namespace;
pub mod nbd;
pub mod new_files;
pub mod private_file;
pub mod protocol;
mod publish;
mod rbd;
mod seal;
pub mod sealed;
mod serve;
mod session;
pub mod share;
#[cfg(test)]
mod testing;
mod unmount;
mod validate;
mod volume;
pub mod weigh;
mod writer;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::{Code, Failure};
use lease::Seat;
pub use mount::{KINDS, Kind};
use protocol::{CredentialPlaces, FromMover};
pub use rbd::missing as missing_for_rbd;
use session::Places;

/// The whole life of a mover process. `arguments` are those after the subcommand. To be called before the process has a
/// second thread.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.peekable();
    match arguments.peek().and_then(|word| word.to_str()) {
        Some(protocol::UNMOUNT) => return unmount::main(arguments.skip(1)),
        Some(protocol::PROBE) => return writer::main(arguments.skip(1)),
        _ => {}
    }
    let mut absolute = || arguments.next().map(PathBuf::from).filter(|directory| directory.is_absolute());
    let (Some(directory), Some(dir), Some(host_key)) = (absolute(), absolute(), absolute()) else {
        return refuse(Failure::new(
            Code::Internal,
            "a mover is started by a worker, with absolute paths: a directory of its own, that of credentials, the host's key",
        ));
    };
    let credentials = CredentialPlaces { dir, host_key };
    // It is in another one from here on.
    let outside = Seat::namespace();
    match namespace::enter() {
        Ok(namespace::Side::Outer(code)) => code,
        Ok(namespace::Side::Inner { host }) => {
            let seat = outside.and_then(Seat::own);
            serve::run(Places { directory, credentials, host, seat }).unwrap_or_else(refuse)
        }
        Err(failure) => refuse(failure),
    }
}

/// Says why there will be no mover, to the worker and to the log.
fn refuse(failure: Failure) -> ExitCode {
    tracing::error!(failure = format!("{failure:#}"), "cannot start a mover");
    if let Ok(frame) = protocol::frame::encode(&FromMover::Started(Err(failure))) {
        // A worker that is gone needs no answer.
        let _gone = std::io::stdout().write_all(&frame).and_then(|()| std::io::stdout().flush());
    }
    ExitCode::FAILURE
}

/// Does something that blocks, perhaps for ever, on a thread of its own. Dropping the future does not end it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(Code::Internal, "a blocking call of the mover panicked").because(&error)),
    }
}
