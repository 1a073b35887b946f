//! The walls around a mover: mount and PID namespaces of its own.
//!
//! ```text
//!   worker ──stdin/stdout──▶ inner (PID 1 in its namespaces: does the work, starts the tools)
//!     │                        ▲ dies with the outer one, and all of its children with it
//!     └──owns, may kill──▶ outer (holds no pipe; waits, and exits as the inner one did)
//! ```
//!
//! The outer process does nothing but wait. It takes a SIGTERM as "kill the inner one, and go on waiting", and so it stays
//! there to be seen for as long as anything of the mover can't die, for instance behind a dead file server.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::{ForkResult, Pid};

use crate::failure::{Code, Failure};

/// Which side of the wall this process is on now.
pub(super) enum Side {
    /// Inside: do the work.
    Inner {
        /// The mount namespace outside.
        host: OwnedFd,
    },
    /// Outside: the inner process ended, exit like this.
    Outer(ExitCode),
}

/// Builds the walls and divides the process in two. The caller must have one thread.
pub(super) fn enter() -> Result<Side, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Code::HostUnfit,
            "a mover needs to be root: it mounts the share in namespaces of its own",
        ));
    }
    no_core_dumps()?;
    let host = File::open("/proc/self/ns/mnt").map_err(|error| {
        Failure::new(Code::HostUnfit, "the mover cannot see the mount namespace that it is in").because(&error)
    })?;
    wall(
        "leave the mount and PID namespaces",
        nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID),
    )?;
    let none = None::<&Path>;
    // Not MS_PRIVATE: what the host unmounts has to go here too, or a mover would keep it busy for as long as it works.
    let slave = nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none);
    wall("keep mounts from spreading to the host", slave)?;
    let watched = watched_signals();
    wall("block signals", watched.thread_block())?;
    let (reading, writing) = wall("make a pipe", nix::unistd::pipe2(OFlag::O_CLOEXEC))?;
    // SAFETY: the process has one thread, so that the child inherits no lock that another thread held.
    match wall("fork", unsafe { nix::unistd::fork() })? {
        ForkResult::Parent { child } => {
            drop(reading);
            Ok(Side::Outer(wait_for(child, &watched, writing)))
        }
        ForkResult::Child => {
            drop(writing);
            wall("unblock signals", watched.thread_unblock())?;
            die_with_the_outer(&reading)?;
            Ok(Side::Inner { host: host.into() })
        }
    }
}

/// No secret and no byte of a disk goes to a crash collector. The limit also holds for the tools that are started.
///
/// One byte and not none: a core pattern that is a pipe is given a core whatever the limit, but for a limit of 1, which the
/// kernel takes as "no core" there (`do_coredump` in its fs/coredump.c). Files of one byte are not written either.
fn no_core_dumps() -> Result<(), Failure> {
    wall("turn core dumps off", setrlimit(Resource::RLIMIT_CORE, 1, 1))?;
    wall("turn core dumps off", nix::sys::prctl::set_dumpable(false))
}

fn watched_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect()
}

/// The kernel kills this process when the outer one dies. One that died before it was asked to has closed its end of the
/// pipe: then there is nobody left to work for.
fn die_with_the_outer(pipe: &OwnedFd) -> Result<(), Failure> {
    wall("ask to die with the outer process", nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let ready = wall("look at the outer process", nix::poll::poll(&mut fds, PollTimeout::ZERO))?;
    if ready > 0 {
        return Err(Failure::new(Code::MoverDied, "the outer process ended before the inner one began"));
    }
    Ok(())
}

/// Waits for the inner process. `_alive` is the pipe that tells it that we are here.
fn wait_for(inner: Pid, watched: &SigSet, _alive: OwnedFd) -> ExitCode {
    // The worker's pipes belong to the inner process alone: their end must mean the inner one's end.
    let _closed = (nix::unistd::close(0), nix::unistd::close(1));
    loop {
        match nix::sys::wait::waitpid(inner, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => return ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return ExitCode::from(signal_status(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
        if let Ok(Signal::SIGTERM) = watched.wait() {
            // It may have ended this moment; the next round finds out.
            let _gone = nix::sys::signal::kill(inner, Signal::SIGKILL);
        }
    }
}

/// As a shell has it: 128 and the signal.
fn signal_status(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

fn wall<T>(what: &str, result: nix::Result<T>) -> Result<T, Failure> {
    result.map_err(|errno| {
        let code = match errno {
            Errno::EPERM | Errno::ENOSYS | Errno::EINVAL => Code::HostUnfit,
            _ => Code::MountFailed,
        };
        Failure::new(code, format!("the mover cannot {what}")).because(&errno)
    })
}
