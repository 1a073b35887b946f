//! The worst moments, each of which is a test of its own in another target: run by name, and a row of the table like all others.

use std::process::Command;

use crate::matrix::{Item, Table};

/// Job, fault, moment; target, and the test's name in it.
type Named = ([&'static str; 3], &'static str, &'static str);

const WORKER: &str = "live_worker";

const NAMED: [Named; 20] = [
    (
        ["pull and push", "kill -9 of the worker", "frozen; copying; QEMU writing"],
        WORKER,
        "killed::a_killed_worker_leaves_no_guest_frozen_and_the_next_one_finishes_its_jobs",
    ),
    (
        ["push", "kill -9 of the worker", "the share hangs"],
        WORKER,
        "push::a_worker_that_dies_while_its_share_hangs_leaves_qemu_to_the_next_one",
    ),
    (["push", "share hanging", "QEMU writing"], WORKER, "push::a_share_that_hangs_keeps_neither_qemu_nor_its_guest"),
    (["push", "share full", "the guest is paused"], WORKER, "push::a_guest_that_a_full_share_has_paused_runs_again"),
    (
        ["pull", "share hanging", "others go on"],
        WORKER,
        "bad_share::a_share_that_hangs_costs_its_own_job_and_nobody_else",
    ),
    (
        ["pull", "share hanging", "the mover is stuck"],
        WORKER,
        "bad_share::a_mover_stuck_behind_a_dead_share_is_named_and_gone_when_the_share_is_back",
    ),
    (["pull", "share lying", "15 ways"], WORKER, "bad_share::bytes_that_did_not_reach_the_share_are_not_published"),
    (
        ["push", "share lying", "5 ways"],
        WORKER,
        "push::what_libvirt_calls_a_success_is_not_published_where_its_content_is_not_there",
    ),
    (
        ["pull", "broker killed", "copying"],
        WORKER,
        "broker_lost::the_end_of_a_job_is_told_though_the_broker_was_killed_meanwhile",
    ),
    (
        ["pull", "silent agent", "always"],
        WORKER,
        "agentless::an_instance_without_an_agent_is_never_said_to_be_quiesced",
    ),
    (
        ["any", "two workers with one host id", "at work"],
        WORKER,
        "stopping::a_second_worker_of_a_host_gives_up_and_the_first_one_works_on",
    ),
    (
        ["backup", "migrated away", "between publish and take"],
        WORKER,
        "migrated::a_migrated_instance_stays_incremental_on_either_host",
    ),
    (
        ["backup and deletion", "one instance on two hosts", "either first"],
        WORKER,
        "two_hosts::a_deletion_and_a_backup_of_one_instance_on_two_hosts_wait_for_each_other",
    ),
    (
        ["all that write", "lease taken over by another host", "movers stand still"],
        WORKER,
        "fenced::who_stood_still_while_another_host_took_over_publishes_nothing_and_leaves_nothing",
    ),
    (
        ["restore over a block device", "kill -9 of the worker", "writing"],
        WORKER,
        "block::a_worker_that_is_killed_amid_the_writing_is_followed_by_one_that_writes_nothing",
    ),
    (
        ["new instance", "kill -9 of the worker", "libvirt defines"],
        WORKER,
        "elsewhere::a_worker_that_is_killed_while_libvirt_defines_is_followed_by_one_that_finds_out_what_came_of_it",
    ),
    (
        ["stopped", "instance started", "copying"],
        WORKER,
        "stopped::an_instance_that_starts_during_its_backup_is_tried_again_while_it_runs",
    ),
    (
        ["pull of changes", "kill -9 of QEMU", "copying"],
        WORKER,
        "between::a_backup_whose_qemu_is_killed_is_made_by_the_next_attempt_and_the_chain_goes_on",
    ),
    (
        ["pull", "kill -9 of the worker", "frozen (guard)"],
        "live_guard",
        "when_the_worker_is_killed_the_frozen_guest_is_thawed_and_the_job_ends",
    ),
    (
        ["all", "kill -9 of libvirtd", "freeze, begin, attach, moving, ending"],
        "live_libvirtd",
        "a_killed_daemon_costs_no_job_and_no_guest",
    ),
];

/// Those that share a laboratory with others, and those that are alone in theirs.
pub fn items() -> (Vec<Item>, Vec<Item>) {
    NAMED.into_iter().map(item).partition(|item| !item.name.contains("live_libvirtd"))
}

fn item((names, target, test): Named) -> Item {
    let run = move |table: &Table| {
        table.run(names, || (passes(target, test), ()));
    };
    Item { name: format!("named: {target}: {test}"), run: Box::new(run) }
}

fn passes(target: &str, test: &str) -> String {
    let variable = format!("LONGSHORE_PROGRAM_{target}");
    let program =
        std::env::var(&variable).unwrap_or_else(|_| panic!("`{variable}` does not say where that target's program is"));
    let output = Command::new(program).args(["--exact", test]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // A name that is none makes no test fail.
    let passed = output.status.success() && said.contains("test result: ok. 1 passed");
    if !passed {
        eprintln!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(passed, "{target}: {test}: {}", output.status);
    "as the test says".to_owned()
}
