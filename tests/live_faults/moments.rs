//! The worst moments for a host, each a cell of its own: a worker that dies for good while its guest writes, or while its share hangs, a
//! journal that is lost, and an instance that goes away before its job is taken.

use std::path::PathBuf;
use std::time::Duration;

use crate::fleet::{JOB, Settings};
use crate::gate::{BEGIN, Gate, Keeps};
use crate::kind::Kind;
use crate::lab::{LabInstance, Twin, eventually, virsh};
use crate::matrix::{Item, Table};
use crate::scene::{Props, Scene};
use crate::slate;
use crate::walk::id_of;

/// Longest time for what the guard sees to.
const SOON: Duration = Duration::from_secs(60);
/// Scratch that a backup may take, less than which no worker takes, and half of what the instance writes meanwhile.
const SCRATCH_BYTES: u64 = 64 << 20;
const BIG_DISKS: &str = "vda:qcow2:128,vdb:raw:2";

type Cell = ([&'static str; 3], fn() -> String);

const CELLS: [Cell; 4] = [
    (
        ["pull", "kill -9 of the worker, for good", "the guest writes past the scratch limit"],
        dies_for_good_while_the_guest_writes,
    ),
    (["pull", "kill -9 of the worker", "frozen, a thread behind a hung share"], dies_behind_a_hung_share),
    (["pull", "journal lost", "copying"], loses_its_journal),
    (["pull", "instance migrated away", "between publish and take"], goes_away_before_it_is_taken),
];

pub fn items() -> Vec<Item> {
    let item = |(names, cell): Cell| Item {
        name: format!("moment: {}: {}", names[1], names[2]),
        run: Box::new(move |table: &Table| {
            table.run(names, || (cell(), ()));
        }),
    };
    CELLS.into_iter().map(item).collect()
}

fn usual() -> Settings {
    Settings { heartbeat_seconds: 300, ..Settings::default() }
}

pub fn dies_for_good_while_the_guest_writes() -> String {
    let limit = PathBuf::from(SCRATCH_BYTES.to_string());
    let settings = Settings { environment: vec![("LONGSHORE__SCRATCH__LIMIT_BYTES", limit)], ..usual() };
    let props = Props { settings, faulty: true, disks: BIG_DISKS, is_first: true, ..Props::default() };
    let mut scene = Scene::with("for-good", Kind::PullFull, props);
    scene.share.order(r#"{"bw_mb": 1}"#);
    let message = scene.kind.prepare(&mut scene);
    let job = scene.fleet.publish(&message);
    scene.fleet.is_copying(job);
    scene.fleet.kill_worker();
    // At once, whether or not the backup job is there still.
    scene.write(0, "0 64M");
    scene.write(0, "64M 64M");
    assert_eq!(virsh(&["domstate", &scene.bare.name]), "running");
    let ended = eventually("the pull job is gone", SOON, || !scene.bare.has_backup_job());
    scene.write(0, "0 128M");
    assert_eq!(virsh(&["domstate", &scene.bare.name]), "running");
    scene.share.heal();
    scene.the_dead_are_gone();
    scene.fleet.start_worker();
    let said = scene.all_is_well_after(&message);
    scene.finish();
    format!("the job gone after {} ms, {said}", ended.as_millis())
}

pub fn dies_behind_a_hung_share() -> String {
    let guest = LabInstance::guest();
    let gate = Gate::new(&guest.folder, BEGIN, Keeps::Call);
    gate.open();
    let settings = Settings { libvirt_uri: gate.uri(), ..usual() };
    let props = Props { settings, faulty: true, guest: Some(guest), ..Props::default() };
    let mut scene = Scene::with("behind-hung", Kind::PullFull, props);
    gate.close();
    let message = scene.kind.prepare(&mut scene);
    scene.fleet.publish(&message);
    eventually("the begin is kept back", SOON, || gate.has_held());
    assert!(scene.bare.is_frozen());
    scene.share.order(r#"{"mode": "hang"}"#);
    // Whoever looks at it waits from now on: a lease is kept every few seconds.
    let is_stuck = || slate::movers_of(&scene.fleet.folder).iter().any(|pid| has_thread_that_waits(*pid));
    eventually("a thread of the mover waits for the share", SOON, is_stuck);
    scene.fleet.kill_worker();
    let thawed = eventually("the guest is thawed, though the share hangs", SOON, || !scene.bare.is_frozen());
    let before = scene.bare.writes_done();
    eventually("the guest writes", SOON, || scene.bare.writes_done() > before);
    scene.share.heal();
    gate.open();
    scene.the_dead_are_gone();
    scene.fleet.start_worker();
    let said = scene.all_is_well_after(&message);
    scene.finish();
    format!("thawed after {} ms, {said}", thawed.as_millis())
}

/// In a request to a FUSE file system.
fn has_thread_that_waits(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let waits =
        |folder: PathBuf| std::fs::read_to_string(folder.join("stack")).is_ok_and(|calls| calls.contains("fuse"));
    threads.filter_map(Result::ok).any(|thread| waits(thread.path()))
}

pub fn loses_its_journal() -> String {
    let mut scene =
        Scene::with("lost-journal", Kind::PullFull, Props { settings: usual(), faulty: true, ..Props::default() });
    scene.share.order(r#"{"bw_mb": 1}"#);
    let message = scene.kind.prepare(&mut scene);
    let job = scene.fleet.publish(&message);
    scene.fleet.is_copying(job);
    scene.fleet.kill_worker();
    std::fs::remove_dir_all(scene.fleet.folder.join("state")).unwrap();
    scene.share.heal();
    scene.the_dead_are_gone();
    scene.fleet.start_worker();
    // Nobody here knows of the run any more: who published it sees by the installation that it is lost. What it left is swept.
    eventually("nothing of it is on the host", SOON, || !scene.bare.has_backup_job());
    let next = scene.fleet.publish(&scene.backup("pull", "auto"));
    let backup = scene.ended_well(next).backup.unwrap();
    scene.is_whole(&backup);
    scene.nothing_is_left();
    scene.back_up_now();
    scene.nothing_is_left();
    let ends = scene.fleet.heard.events_of(job).iter().filter(|event| event.detail.is_final()).count();
    assert_eq!(ends, 0, "a run that nobody knows of has no end");
    scene.finish();
    "swept, and the next one completed".to_owned()
}

pub fn goes_away_before_it_is_taken() -> String {
    let twin = Twin::start();
    let mut scene = Scene::new("goes-away", Kind::PullFull);
    let message = scene.kind.prepare(&mut scene);
    // Published, and not taken: there is no worker.
    scene.fleet.signal(nix::sys::signal::Signal::SIGTERM);
    scene.fleet.worker_ends(JOB);
    let job = scene.fleet.publish(&message);
    twin.migrate_to_it(&scene.bare);
    scene.fleet.start_worker();
    let failed = scene.fleet.failed(job).failure;
    assert_eq!(failed.code, "instance_not_here", "{failed:?}");
    assert_eq!(scene.fleet.heard.events_of(id_of(&message)).iter().filter(|event| event.detail.is_final()).count(), 1);
    twin.migrate_back(&scene.bare);
    scene.back_up_now();
    scene.nothing_is_left();
    scene.finish();
    "failed with instance_not_here; back again: completed".to_owned()
}
