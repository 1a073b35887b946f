//! The process that holds a lease, so that a mover of the same host can know that it is gone instead of waiting until it must be.
//!
//! A mover is the first process of its PID namespace, which the kernel lets end only after all others in it (pid_namespaces(7)): where it
//! is gone, nothing of it runs any more, and one that can't die behind a dead share is still there to be seen. Whoever can't tell,
//! because it sees the processes of another boot, another host or another container, says that it is not gone.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where the kernel shows the processes that this one can know of: those of its worker, and not of its own namespace.
const PROC: &str = "/proc";

/// A process, among all that ever were on any host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::mover) struct Seat {
    /// The kernel's name for the time since it was started; drawn at each boot.
    boot: String,
    /// The PID namespace that `pid` is a number of.
    namespace: String,
    pid: u32,
    /// When it was started, clock ticks since the boot: a number is given to another process once it is free.
    started: u64,
}

impl Seat {
    /// The PID namespace that this process is in: for a mover, before it goes into its own. None where it can't be told. Blocks.
    pub fn namespace() -> Option<String> {
        Some(std::fs::read_link(Path::new(PROC).join("self/ns/pid")).ok()?.to_str()?.to_owned())
    }

    /// That of this process, as it is seen in `namespace`, whose processes are in `/proc`; none where it can't be told. Blocks.
    pub fn own(namespace: String) -> Option<Self> {
        let proc = Path::new(PROC);
        let boot = std::fs::read_to_string(proc.join("sys/kernel/random/boot_id")).ok()?.trim().to_owned();
        let pid = std::fs::read_link(proc.join("self")).ok()?.to_str()?.parse().ok()?;
        let started = started(&std::fs::read_to_string(proc.join(pid_name(pid)).join("stat")).ok()?)?;
        Some(Self { boot, namespace, pid, started })
    }

    /// The process has ended for certain, as `own` sees it. Blocks.
    pub fn is_gone(&self, own: &Self) -> bool {
        if (&self.boot, &self.namespace) != (&own.boot, &own.namespace) {
            return false;
        }
        match std::fs::read_to_string(Path::new(PROC).join(pid_name(self.pid)).join("stat")) {
            Ok(stat) => started(&stat).is_some_and(|started| started != self.started),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

fn pid_name(pid: u32) -> String {
    pid.to_string()
}

/// The 22nd field of proc_pid_stat(5). The second one is a name that may hold blanks and brackets.
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn own() -> Seat {
        Seat::own(Seat::namespace().unwrap()).unwrap()
    }

    #[test]
    fn this_process_is_there_and_one_that_has_ended_is_gone() {
        let own = own();
        assert_eq!(own.pid, std::process::id());
        assert!(!own.is_gone(&own));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let seat = Seat { pid: child.id(), started: started(&stat).unwrap(), ..own.clone() };
        assert!(!seat.is_gone(&own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seat.is_gone(&own));
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_none_of_it() {
        let own = own();
        assert!(Seat { started: own.started + 1, ..own.clone() }.is_gone(&own));
    }

    #[test]
    fn nothing_is_known_of_another_boot_and_another_namespace() {
        let own = own();
        let pid = u32::MAX;
        assert!(Seat { pid, ..own.clone() }.is_gone(&own));
        assert!(!Seat { pid, boot: "another".to_owned(), ..own.clone() }.is_gone(&own));
        assert!(!Seat { pid, namespace: "pid:[1]".to_owned(), ..own.clone() }.is_gone(&own));
    }

    #[test]
    fn a_name_with_blanks_and_brackets_hides_no_field() {
        let stat = "4242 (a) b) S 1 4242 4242 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 100 200";
        assert_eq!(started(stat), Some(987_654));
        assert_eq!(started("4242 (cut off) S 1"), None);
    }
}
