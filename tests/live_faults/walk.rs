//! Walks through a job, one transaction of the worker's journal further each time, until there is none left: the worker is killed before
//! and after each one from the job's coming until all is told; the other processes of the job after each record of its saga, which the
//! worker has just written and goes on from.
#![allow(dead_code)] // The few cells that live_worker does are others than those of a walk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use longshore::message::JobMessage;
use longshore::model::id::JobId;
use longshore::saga::Record;

use crate::halt::Place;
use crate::kind::Kind;
use crate::lab::eventually;
use crate::matrix::{Item, Table};
use crate::processes::Victim;
use crate::scene::{ENDS, Scene};

/// Scenes that share a walk.
const LANES: usize = 5;
/// More steps than any job gives: who comes there walks in a circle.
const STEPS_MAX: u32 = 600;
/// Every record of a saga has it, and nothing else in the journal.
const ANY_RECORD: &str = r#"{"record":""#;

/// The walks of all kinds and victims.
pub fn items() -> Vec<Item> {
    let pairs = Kind::ALL.into_iter().flat_map(|kind| Victim::of(kind).iter().map(move |victim| (kind, *victim)));
    pairs.flat_map(|(kind, victim)| of(kind, victim)).collect()
}

fn of(kind: Kind, victim: Victim) -> Vec<Item> {
    let walk = Arc::new(Walk { kind, victim, next: AtomicU32::new(0), is_over: AtomicBool::new(false) });
    let lane = |lane: usize| {
        let walk = walk.clone();
        let name = format!("walk: {}: {}: {}", victim.name(), kind.name(), lane + 1);
        Item { name, run: Box::new(move |table: &Table| walk.go(table, lane)) }
    };
    (0..LANES).map(lane).collect()
}

/// Where a walk stands still: at the transaction of that number, of those that write a page with `text` in it.
pub struct Stop {
    place: Place,
    number: u32,
    text: String,
}

impl Stop {
    fn nth(place: Place, number: u32, text: &str) -> Self {
        Self { place, number, text: text.to_owned() }
    }

    /// At the journal's first record of that kind of that step.
    pub fn at(place: Place, record: &str, step: &str) -> Self {
        Self::nth(place, 1, &first_record(record, step))
    }
}

/// What is in the journal once it holds a record of that kind of that step, or of none.
pub fn first_record(record: &str, step: &str) -> String {
    match step {
        "" => format!(r#"{{"record":"{record}""#),
        step => format!(r#"{{"record":"{record}","step":"{step}""#),
    }
}

struct Walk {
    kind: Kind,
    victim: Victim,
    next: AtomicU32,
    is_over: AtomicBool,
}

impl Walk {
    fn go(&self, table: &Table, lane: usize) {
        let mut scene = None;
        let mut made = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let step = self.next.fetch_add(1, Ordering::SeqCst);
            assert!(step <= STEPS_MAX, "the walk has no end");
            let stop = match self.victim {
                Victim::Worker if step.is_multiple_of(2) => Stop::nth(Place::Before, step / 2 + 1, ""),
                Victim::Worker => Stop::nth(Place::After, step / 2 + 1, ""),
                _ => Stop::nth(Place::After, step + 1, ANY_RECORD),
            };
            let at_hand = scene.take().unwrap_or_else(|| {
                made += 1;
                let name = format!("walk{}{}-{lane}-{made}", self.victim as u8, self.kind as u8);
                Scene::new(&name, self.kind)
            });
            scene = self.cell(table, at_hand, stop);
        }
        if let Some(scene) = scene {
            scene.finish();
        }
    }

    /// Gives the scene back unless it was spoilt.
    fn cell(&self, table: &Table, mut scene: Scene, stop: Stop) -> Option<Scene> {
        let message = scene.kind.prepare(&mut scene);
        let moment = match comes_to(&mut scene, self.victim, &stop, &message) {
            true => format!("{} {}: {}", stop.place.word(), stop.number, label(&scene, id_of(&message))),
            false => {
                self.is_over.store(true, Ordering::SeqCst);
                format!("{} {}: there is none", stop.place.word(), stop.number)
            }
        };
        let fault = format!("kill -9 of the {}", self.victim.name());
        table.run([self.kind.name(), &fault, &moment], move || {
            let killed = is_killed(&mut scene, self.victim);
            let said = scene.all_is_well_after(&message);
            (if killed { said } else { format!("{said}; there was none to be killed") }, scene)
        })
    }
}

/// One cell of a walk alone.
pub fn stands(mut scene: Scene, victim: Victim, stop: &Stop) {
    let message = scene.kind.prepare(&mut scene);
    assert!(comes_to(&mut scene, victim, stop, &message), "there is no such moment");
    assert!(is_killed(&mut scene, victim), "there was none to be killed");
    scene.all_is_well_after(&message);
    scene.finish();
}

/// Publishes the job and waits until the worker has come there, and is dead or held up; or has told the end of the job and everything
/// else: then it has written all that there was to be written, and it says no.
fn comes_to(scene: &mut Scene, victim: Victim, stop: &Stop, message: &JobMessage) -> bool {
    match victim {
        Victim::Worker => scene.halt.kills(stop.place, stop.number, &stop.text),
        _ => scene.halt.holds(stop.place, stop.number, &stop.text),
    }
    let job = scene.fleet.publish(message);
    let mut came = false;
    eventually("the worker comes there, or the job ends", ENDS, || {
        let halted = scene.halt.has_halted();
        came = halted && (victim != Victim::Worker || scene.fleet.worker_has_ended());
        came || !halted && is_over(scene, job)
    });
    came
}

/// Kills the victim and lets the worker go on, or another one if it was the victim.
fn is_killed(scene: &mut Scene, victim: Victim) -> bool {
    let halted = scene.halt.has_halted();
    if victim == Victim::Worker {
        scene.halt.forget();
        if halted {
            scene.the_dead_are_gone();
            scene.fleet.start_worker();
        }
        return halted;
    }
    let killed = halted && victim.is_killed(scene);
    scene.halt.let_go();
    killed
}

fn is_over(scene: &Scene, job: JobId) -> bool {
    let has_ended = scene.fleet.heard.events_of(job).iter().any(|event| event.detail.is_final());
    has_ended && scene.fleet.journal(async |mut look| look.unsent_count().await.unwrap() == 0)
}

pub fn id_of(message: &JobMessage) -> JobId {
    message.job_id.parse().unwrap()
}

/// Where the job is, by the worker's journal.
fn label(scene: &Scene, job: JobId) -> String {
    let seen = scene.fleet.journal(async |mut look| {
        let seen = look.run(job, None).await.unwrap()?;
        let (key, attempt) = (seen.run.key, seen.run.attempt);
        Some((seen.ended_at.is_some(), attempt, look.records(key, attempt).await.unwrap()))
    });
    match seen {
        None => "not taken".to_owned(),
        Some((true, ..)) => "ended".to_owned(),
        Some((_, 0, _)) => "taken".to_owned(),
        Some((_, _, records)) => records.last().map_or_else(|| "started".to_owned(), in_short),
    }
}

fn in_short(record: &Record) -> String {
    let value = serde_json::to_value(record).unwrap();
    let word = |name: &str| value.get(name).and_then(|word| word.as_str()).unwrap_or_default().to_owned();
    format!("{} {}", word("record"), word("step")).trim_end().to_owned()
}
