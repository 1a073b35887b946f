//! The table. A further way for the bytes is a further [`Mode`] and its lines here.

use crate::afterwards;
use crate::fleet::{Fleet, Settings};
use crate::lab::LabInstance;
use crate::nas::{Nas, give_credentials};
use crate::row::{Fault, Host, Mode, Place};
use crate::times;

/// Large enough that a fault comes while bytes are on their way.
const DISKS: &str = "vda:qcow2:8,vdb:raw:2";

/// Nobody waits for heartbeats, which cost something where one processor does all.
const HEARTBEAT: u64 = 15;

/// What goes wrong is followed by a job that must complete. A full share is not among what goes wrong with a push: QEMU is done with
/// disks of this size before anybody can fill it (`live_worker/push.rs` has a share that fills up when told to).
const JOBS: [(Mode, Fault); 11] = [
    (Mode::Push, Fault::ServerStopped),
    (Mode::Pull, Fault::Nothing),
    (Mode::Pull, Fault::Changed),
    (Mode::Push, Fault::Changed),
    (Mode::Pull, Fault::ShareFull),
    (Mode::Pull, Fault::ServerStopped),
    (Mode::Push, Fault::Nothing),
    (Mode::Stopped, Fault::ReadOnly),
    (Mode::Stopped, Fault::WrongName),
    (Mode::Stopped, Fault::WrongPassword),
    (Mode::Stopped, Fault::Nothing),
];

/// What CephFS does otherwise: who writes to it, and who may not.
const JOBS_ON_CEPH: [(Mode, Fault); 4] = [
    (Mode::Push, Fault::Nothing),
    (Mode::Stopped, Fault::ReadOnly),
    (Mode::Stopped, Fault::WrongPassword),
    (Mode::Stopped, Fault::Nothing),
];

fn try_out(name: &str, tables: &[(Nas, &[(Mode, Fault)])]) {
    let fleet = Fleet::with(name, Settings { heartbeat_seconds: HEARTBEAT, ..Settings::default() });
    let host = Host { fleet, running: LabInstance::bare_with(DISKS), stopped: LabInstance::bare_off_with(DISKS) };
    let (mut shares, mut wrong) = (Vec::new(), Vec::new());
    for &(nas, jobs) in tables {
        give_credentials(&host.fleet, nas);
        let share = |export: &str| nas.share(&host.fleet, export);
        let (good, small, read_only) = (share("good"), nas.small().map(share), share("read-only"));
        let place = Place { nas, host: &host, good, small, read_only };
        for &(mode, fault) in jobs {
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
        // Nothing can be said of backups that came out wrong.
        if wrong.is_empty() {
            if jobs.contains(&(Mode::Pull, Fault::Changed)) {
                eprintln!("{}", afterwards::restore(&place));
                eprintln!("{}", afterwards::restore_new(&place));
                eprintln!("{}", afterwards::delete(&place));
            }
            eprintln!("{}", afterwards::validate(&place));
        }
        // mount.ceph(8) takes its secret from another file than jobs have theirs in.
        if nas != Nas::Ceph {
            times::beside(nas, &host.fleet, &host.stopped).iter().for_each(|line| eprintln!("{line}"));
        }
        shares.extend([place.good, place.read_only].into_iter().chain(place.small));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let Host { fleet, running, stopped } = host;
    fleet.finish(&[&running, &stopped], &shares.iter().collect::<Vec<_>>());
}

#[test]
fn jobs_on_nfs_and_cephfs_end_as_they_must_and_leave_nothing() {
    try_out("nfs", &[(Nas::Nfs, &JOBS), (Nas::Ceph, &JOBS_ON_CEPH)]);
}

#[test]
fn jobs_on_cifs_end_as_they_must_and_leave_nothing() {
    try_out("cifs", &[(Nas::Cifs, &JOBS)]);
}
