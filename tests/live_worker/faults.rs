//! A few cells of the matrix of faults (`scripts/test --faults`): a process of a job is killed at a moment that the worker's journal
//! names, and everything is looked at.

use crate::halt::Place::{self, After, Before};
use crate::kind::Kind;
use crate::processes::Victim;
use crate::scene::{Props, Scene};
use crate::walk::{Stop, stands};

fn cell(name: &str, kind: Kind, victim: Victim, place: Place, record: &str, step: &str) {
    // The first record of the step is the job's, since a backup before it has none such, or is none.
    let props = Props { is_first: kind.backs_up(), ..Props::default() };
    stands(Scene::with(&format!("cell-{name}"), kind, props), victim, &Stop::at(place, record, step));
}

#[test]
fn a_pull_whose_worker_is_killed_between_begin_and_copy() {
    cell("begun", Kind::PullFull, Victim::Worker, After, "done", "moment");
}

#[test]
fn a_backup_whose_worker_is_killed_before_it_has_written_that_it_was_published() {
    cell("commit", Kind::PullFull, Victim::Worker, Before, "committed", "");
}

#[test]
fn a_push_whose_worker_is_killed_before_it_waits_for_qemu() {
    cell("push", Kind::Push, Victim::Worker, After, "began", "push");
}

#[test]
fn a_restore_whose_worker_is_killed_before_it_asks_for_the_exchange() {
    cell("exchange", Kind::Restore, Victim::Worker, After, "committing", "exchange");
}

#[test]
fn a_backup_whose_mover_is_killed_before_it_is_published() {
    cell("mover", Kind::Stopped, Victim::Mover, After, "committing", "publish");
}

#[test]
fn a_backup_whose_qemu_is_killed_before_it_is_compared() {
    cell("qemu", Kind::PullFull, Victim::Qemu, After, "began", "compare");
}
