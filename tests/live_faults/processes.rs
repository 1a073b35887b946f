//! The processes of a job that are killed, but for the worker: its mover, its guard, and the instance's QEMU, which is started again.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kind::Kind;
use crate::lab::{eventually, virsh};
use crate::scene::Scene;
use crate::slate::{self, process_of_qemu};

/// Longest time for a killed process to be gone.
const GONE: Duration = Duration::from_secs(20);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Worker,
    Mover,
    Guard,
    Qemu,
}

impl Victim {
    /// Which a job of that kind has.
    pub fn of(kind: Kind) -> &'static [Victim] {
        match kind {
            Kind::PullFull | Kind::PullIncremental | Kind::Push | Kind::PushIncremental => {
                &[Victim::Worker, Victim::Mover, Victim::Guard, Victim::Qemu]
            }
            _ => &[Victim::Worker, Victim::Mover],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Victim::Worker => "worker",
            Victim::Mover => "mover",
            Victim::Guard => "guard",
            Victim::Qemu => "QEMU",
        }
    }

    /// Kills those of the scene, and says whether there were any. The worker is not killed here: it is halted.
    pub fn is_killed(self, scene: &Scene) -> bool {
        let folder = &scene.fleet.folder;
        let those = || match self {
            Victim::Worker => Vec::new(),
            Victim::Mover => slate::movers_of(folder),
            Victim::Guard => slate::guards_of(folder),
            Victim::Qemu => vec![process_of_qemu(&format!("guest={},", scene.bare.name))],
        };
        let killed = those();
        for pid in &killed {
            // A tool of a mover that is killed dies with it.
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if self == Victim::Qemu {
            eventually("libvirt sees it", GONE, || virsh(&["domstate", &scene.bare.name]) == "shut off");
            scene.bare.start();
        } else {
            eventually("they are gone", GONE, || those().is_empty());
        }
        !killed.is_empty()
    }
}
