//! How soon a guest that was frozen for a worker that is dead is thawed, and how soon a run ends that a controller cancels. Printed, since
//! another machine has other figures; what has to come about all the same is asserted.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore::message::event::RunDetail;

use crate::fleet::{Fleet, JOB, Settings};
use crate::gate::{FREEZE, Gate, Keeps};
use crate::lab::{LabInstance, eventually, variable};
use crate::share::{LONGSHORE, Share};
use crate::slate::processes_of;

/// Times that each is measured.
const ROUNDS: usize = 3;
/// Longest time for what is measured.
const SOON: Duration = Duration::from_secs(30);

fn show(what: &str, mut took: Vec<Duration>, aim: &str) {
    took.sort();
    let millis: Vec<_> = took.iter().map(Duration::as_millis).collect();
    let [least, .., most] = millis[..] else { panic!("too few") };
    println!("\n| {what} | {} ms ({least}–{most}) | | | {aim} |", millis[millis.len() / 2]);
}

#[test]
fn a_guest_is_thawed_soon_after_its_worker_was_killed() {
    let guest = LabInstance::guest();
    let gate = Gate::new(&guest.folder, FREEZE, Keeps::Answer);
    let mut fleet = Fleet::with("soak-thaw", Settings { libvirt_uri: gate.uri(), ..Settings::default() });
    let share = fleet.share();
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        gate.close();
        let job = fleet.back_up(&guest, &share, "require");
        // It has returned, and the worker is not told.
        eventually("the guest is frozen", SOON, || guest.is_frozen());
        let killed = Instant::now();
        fleet.kill_worker();
        eventually("the guest is thawed", SOON, || !guest.is_frozen());
        took.push(killed.elapsed());
        eventually("the movers are gone", JOB, || processes_of(&fleet.folder).is_empty());
        release_the_lease_of_the_dead(&share, &guest);
        gate.open();
        fleet.start_worker();
        let RunDetail::Completed(_) = fleet.heard.end_of(job, JOB) else { panic!("it was not made good") };
    }
    show("kill -9 of the worker to thawed, the looks included", took, "≤ 1000 ms");
    fleet.finish(&[&guest], &[&share]);
}

/// As if it had been watched until it was clear that nobody holds it any more, which takes minutes.
fn release_the_lease_of_the_dead(share: &Share, instance: &LabInstance) {
    let locks = share.path.join("locks").join(instance.id.to_string());
    let number = |path: &std::path::PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
    let leases = fs::read_dir(locks).unwrap().map(|lease| lease.unwrap().path());
    let latest = leases.filter(|lease| number(lease).is_some()).max_by_key(|lease| number(lease)).unwrap();
    fs::write(latest.join("released"), "").unwrap();
}

#[test]
fn a_run_that_is_cancelled_ends_soon() {
    let bare = LabInstance::bare();
    let ops = format!("ops-soak.{}", std::process::id());
    let fleet = Fleet::with("soak-cancel", Settings { controllers: vec![ops.clone()], ..Settings::default() });
    let (password, port) = (fleet.controller(&ops), variable("LONGSHORE_LAB_AMQP_PORT"));
    let uri = format!("amqp://{ops}:{password}@127.0.0.1:{port}");
    let share = Share::faulty("soak-cancel");
    share.order(r#"{"bw_mb": 2}"#);
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let job = fleet.back_up(&bare, &share, "off");
        fleet.is_copying(job);
        let asked = Instant::now();
        let cancel = ["job", "cancel", &job.to_string(), "--host", &fleet.host];
        let told = Command::new(LONGSHORE).args(cancel).env("LONGSHORE__BROKER__URI", &uri).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let RunDetail::Cancelled(_) = fleet.heard.end_of(job, SOON) else { panic!("it was not cancelled") };
        took.push(asked.elapsed());
        assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    }
    show("cancel of a running backup, the command included", took, "≤ 2000 ms");
    share.heal();
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    fleet.finish(&[&bare], &[&share]);
}
