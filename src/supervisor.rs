//! What whoever started this process is told, where that is somebody who asks for it as systemd does (sd_notify(3)): that it is ready, how it
//! goes, that it lives, and that it comes to its end.
//!
//! It promises never to wait and never to fail its caller. That the process lives is for its main loop to say, and for nobody on a
//! timer of its own: a loop that is stuck has to be missed.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Who started this process, if it wants to be told.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name), std::process::id()).unwrap_or_else(|error| {
            tracing::warn!(%error, "whoever started the worker cannot be told how it goes");
            Self::default()
        })
    }

    /// As these variables of a process with that id say.
    ///
    /// # Errors
    /// There is no such socket, or none can be made.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> io::Result<Self> {
        let Some(address) = variable("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Ok(Self::default());
        };
        let to = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&address)?,
        };
        let from = UnixDatagram::unbound()?;
        from.set_nonblocking(true)?;
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // Inherited from a process that was meant, it is not for us.
        let is_meant = number("WATCHDOG_PID").is_none_or(|meant| meant == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_meant).map(Duration::from_micros);
        Ok(Self { socket: Some((from, to)), watchdog: watchdog.filter(|limit| !limit.is_zero()) })
    }

    /// Time between two signs of life: half of what may pass without one.
    pub fn sign_of_life_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Whether anybody is told.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The process works.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// How it goes, in a line for people.
    pub fn status(&self, text: &str) {
        self.tell(&format!("STATUS={}", text.replace(char::is_control, " ")));
    }

    /// The main loop goes round.
    pub fn lives(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// The process comes to its end, within that time.
    pub fn stopping(&self, within: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    fn tell(&self, state: &str) {
        let Some((from, to)) = &self.socket else { return };
        if let Err(error) = from.send_to_addr(state.as_bytes(), to) {
            tracing::debug!(%error, state, "whoever started the worker was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Supervisor {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Supervisor::of(variable, 7).unwrap()
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn what_is_told_comes_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("longshore-test-{}", uuid::Uuid::new_v4());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let by_path = UnixDatagram::bind(&path).unwrap();
        for (address, socket) in [(path.to_str().unwrap().to_owned(), by_path), (format!("@{name}"), by_name)] {
            let supervisor = of(&[("NOTIFY_SOCKET", &address), ("WATCHDOG_USEC", "5000000"), ("WATCHDOG_PID", "7")]);
            supervisor.ready();
            supervisor.status("one line\nREADY=0");
            supervisor.lives();
            supervisor.stopping(Duration::from_secs(2));
            let all: Vec<_> = (0..4).map(|_| heard(&socket)).collect();
            assert_eq!(
                all,
                ["READY=1", "STATUS=one line READY=0", "WATCHDOG=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000"]
            );
        }
    }

    #[test]
    fn a_watchdog_is_kept_quiet_only_by_whom_it_is_meant_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").to_str().unwrap().to_owned();
        let every = |variables: &[(&str, &str)]| {
            of(&[&[("NOTIFY_SOCKET", path.as_str())], variables].concat()).sign_of_life_every()
        };
        assert_eq!(every(&[("WATCHDOG_USEC", "5000000")]), Some(Duration::from_millis(2500)));
        assert_eq!(every(&[("WATCHDOG_USEC", "5000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_millis(2500)));
        assert_eq!(every(&[("WATCHDOG_USEC", "5000000"), ("WATCHDOG_PID", "8")]), None);
        for odd in ["0", "", "soon"] {
            assert_eq!(every(&[("WATCHDOG_USEC", odd)]), None, "{odd}");
        }
        assert!(!of(&[("WATCHDOG_USEC", "5000000")]).is_there(), "without a socket there is nobody to tell");
    }

    #[test]
    fn nobody_who_listens_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone");
        drop(UnixDatagram::bind(&path).unwrap());
        of(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).ready();
        // A reader that never reads: its buffer is full at some time, and nothing waits for it.
        let full = folder.path().join("full");
        let _reader = UnixDatagram::bind(&full).unwrap();
        let supervisor = of(&[("NOTIFY_SOCKET", full.to_str().unwrap())]);
        (0..10_000).for_each(|_| supervisor.ready());
    }
}
