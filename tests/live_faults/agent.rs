//! A guest's agent that is silent before, during or after the freeze: the backup says what it is, and the guest is thawed for good.

use std::path::PathBuf;
use std::time::Duration;

use longshore::message::event::RunDetail;

use crate::fleet::Settings;
use crate::gate::{BEGIN, Gate, Keeps};
use crate::kind::Kind;
use crate::lab::{LabInstance, eventually};
use crate::matrix::{Item, Table};
use crate::scene::{ENDS, Props, Scene};
use crate::walk::id_of;

/// Seconds that the worker lets a freeze take.
const FREEZE_LIMIT: &str = "4";
/// Longest time for a guest to be frozen, or to be thawed by whoever sees to that.
const SOON: Duration = Duration::from_secs(60);

/// What the guest's own hook does before a freeze. `sleep` of what runs meanwhile is of the guest's initial file system, which nobody freezes.
struct Cell {
    moment: &'static str,
    hook: &'static str,
    /// The hook is the agent's own last word: it is stopped without a freeze.
    at_once: bool,
}

const STOPPED_FOR_A_WHILE: &str = "kill -STOP $(pidof qemu-ga); sleep 25; kill -CONT $(pidof qemu-ga)";

const CELLS: [Cell; 3] = [
    Cell { moment: "before the freeze", hook: STOPPED_FOR_A_WHILE, at_once: true },
    Cell { moment: "during the freeze, which comes late", hook: "sleep 12", at_once: false },
    Cell {
        moment: "after the freeze, so that the thaw times out",
        hook: "(sleep 1; kill -STOP $(pidof qemu-ga); sleep 25; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 </dev/null &\nsleep 0",
        at_once: false,
    },
];

pub fn items() -> Vec<Item> {
    let silent = CELLS.into_iter().map(|cell| Item {
        name: format!("agent: {}", cell.moment),
        run: Box::new(move |table: &Table| {
            table.run([Kind::PullFull.name(), "silent agent", cell.moment], || (stands(&cell), ()));
        }),
    });
    let between = Item {
        name: "agent: kill between freeze and begin".to_owned(),
        run: Box::new(|table: &Table| {
            let names = [Kind::PullFull.name(), "kill -9 of the worker", "between freeze and begin"];
            table.run(names, || (killed_between_freeze_and_begin(), ()));
        }),
    };
    silent.chain([between]).collect()
}

fn settings() -> Settings {
    let environment = vec![("LONGSHORE__BACKUP__FREEZE_LIMIT_SECONDS", PathBuf::from(FREEZE_LIMIT))];
    Settings { heartbeat_seconds: 300, environment, ..Settings::default() }
}

fn stands(cell: &Cell) -> String {
    let guest = LabInstance::guest();
    let props = Props { settings: settings(), guest: Some(guest), ..Props::default() };
    let mut scene = Scene::with(&format!("agent{}", cell.moment.len()), Kind::PullFull, props);
    if cell.at_once {
        scene.bare.runs_in_guest(&format!("sleep 1; {}", cell.hook));
        eventually("its agent is silent", SOON, || !scene.bare.agent_answers());
    } else {
        scene.bare.freeze_hook(&format!("[ \"$1\" != freeze ] || {{\n{}\n}}", cell.hook));
    }
    let message = scene.kind.prepare(&mut scene);
    let job = scene.fleet.publish(&message);
    // The hook is so once: the next attempt finds it as it was.
    let gave_up = |detail: &RunDetail| detail.word() == "retrying" || detail.is_final();
    let first = scene.fleet.heard.of_run(job, "the attempt ends", ENDS, |event| gave_up(&event.detail));
    eventually("the agent answers, and the guest is thawed", SOON, || {
        scene.bare.agent_answers() && !scene.bare.is_frozen()
    });
    let before = scene.bare.writes_done();
    eventually("the guest writes", SOON, || scene.bare.writes_done() > before);
    scene.bare.freeze_hook("");
    let said = scene.all_is_well_whatever_became_of(&message);
    scene.finish();
    let why = match first.detail {
        RunDetail::Retrying(told) => told.failure.code,
        RunDetail::Failed(told) => told.failure.code,
        other => other.word().to_owned(),
    };
    format!("first {why}, then {said}")
}

fn killed_between_freeze_and_begin() -> String {
    let guest = LabInstance::guest();
    let gate = Gate::new(&guest.folder, BEGIN, Keeps::Call);
    gate.open();
    let settings = Settings { libvirt_uri: gate.uri(), ..settings() };
    let mut scene = Scene::with("between", Kind::PullFull, Props { settings, guest: Some(guest), ..Props::default() });
    gate.close();
    let message = scene.kind.prepare(&mut scene);
    scene.fleet.publish(&message);
    eventually("the begin is kept back", SOON, || gate.has_held());
    assert!(scene.bare.is_frozen() && !scene.bare.has_backup_job(), "between freeze and begin");
    scene.fleet.kill_worker();
    let thawed = eventually("the guest is thawed", SOON, || !scene.bare.is_frozen());
    gate.open();
    scene.the_dead_are_gone();
    scene.fleet.start_worker();
    let events =
        scene.fleet.heard.of_run(id_of(&message), "it goes on", ENDS, |event| event.detail.word() == "retrying");
    assert!(matches!(events.detail, RunDetail::Retrying(told) if told.failure.code == "interrupted"));
    let said = scene.all_is_well_after(&message);
    scene.finish();
    format!("thawed after {} ms, {said}", thawed.as_millis())
}
