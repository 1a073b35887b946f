//! The table. A further way for the bytes is a further [`Mode`] and its lines here.

use crate::fleet::{Fleet, Settings};
use crate::lab::LabInstance;
use crate::nas::{Nas, give_credentials};
use crate::row::{Fault, Mode, Place};
use crate::times;

/// Large enough that a fault comes while bytes are on their way.
const DISKS: &str = "vda:qcow2:8,vdb:raw:2";

/// Nobody waits for heartbeats, which cost something where everything is emulated.
const HEARTBEAT: u64 = 15;

/// What goes wrong is followed by a job that must complete. A full share is not among what goes wrong with a push: QEMU is done with
/// disks of this size before anybody can fill it (`live_worker/push.rs` has a share that fills up when told to).
const JOBS: [(Mode, Fault); 9] = [
    (Mode::Push, Fault::ServerStopped),
    (Mode::Pull, Fault::Nothing),
    (Mode::Pull, Fault::ShareFull),
    (Mode::Pull, Fault::ServerStopped),
    (Mode::Push, Fault::Nothing),
    (Mode::Stopped, Fault::ReadOnly),
    (Mode::Stopped, Fault::WrongName),
    (Mode::Stopped, Fault::WrongPassword),
    (Mode::Stopped, Fault::Nothing),
];

fn try_out(nas: Nas) {
    let fleet = Fleet::with(nas.name(), Settings { heartbeat_seconds: HEARTBEAT, ..Settings::default() });
    give_credentials(&fleet);
    let (running, stopped) = (LabInstance::bare_with(DISKS), LabInstance::bare_off_with(DISKS));
    let share = |export: &str| nas.share(&fleet, export);
    let (good, small, read_only) = (share("good"), share(&format!("small-{}", nas.name())), share("read-only"));
    let place = Place { nas, fleet, running, stopped, good, small, read_only };
    let mut wrong = Vec::new();
    for (mode, fault) in JOBS {
        // NFS knows no passwords.
        if nas == Nas::Nfs && fault == Fault::WrongPassword {
            continue;
        }
        match place.try_out(mode, fault) {
            Ok(line) => eprintln!("{line}"),
            Err(line) => {
                eprintln!("{line}");
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let Place { fleet, running, stopped, good, small, read_only, .. } = place;
    times::beside(nas, &fleet, &stopped).iter().for_each(|line| eprintln!("{line}"));
    fleet.finish(&[&running, &stopped], &[&good, &small, &read_only]);
}

#[test]
fn jobs_on_nfs_end_as_they_must_and_leave_nothing() {
    try_out(Nas::Nfs);
}

#[test]
fn jobs_on_cifs_end_as_they_must_and_leave_nothing() {
    try_out(Nas::Cifs);
}
