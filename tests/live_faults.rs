//! The whole matrix of faults on real parts: job kind × fault × moment, each to an outcome, in a table. A cell has passed if after it
//! the run has ended once, the guest runs and is thawed, nothing is mounted, running or left, the backup is whole or not there, and the
//! next one of that instance works. Takes long: `scripts/test --faults` runs all of it, and with words only the items that have one of
//! them in their names. Needs the laboratory: `scripts/lab up`, then `eval "$(scripts/lab env)"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "live_faults/agent.rs"]
mod agent;
#[path = "live_faults/brokers.rs"]
mod brokers;
#[path = "support/consumer.rs"]
mod consumer;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/gate.rs"]
mod gate;
#[path = "support/halt.rs"]
mod halt;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/image.rs"]
mod image;
#[path = "live_faults/kind.rs"]
mod kind;
#[path = "support/lab.rs"]
mod lab;
#[path = "live_faults/matrix.rs"]
mod matrix;
#[path = "live_faults/moments.rs"]
mod moments;
#[path = "live_faults/named.rs"]
mod named;
#[path = "live_faults/processes.rs"]
mod processes;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/rabbit.rs"]
mod rabbit;
#[path = "live_faults/scene.rs"]
mod scene;
#[path = "support/share.rs"]
mod share;
#[path = "live_faults/shares.rs"]
mod shares;
#[path = "support/slate.rs"]
mod slate;
#[path = "live_faults/walk.rs"]
mod walk;

use std::process::ExitCode;

use matrix::{Item, Table};

/// Cells at a time: most of the time they wait, for one, until a dead worker's guard believes that all is well.
const AT_A_TIME: usize = 10;
/// Where the table is written as well.
const TABLE: &str = "LONGSHORE_FAULTS_TABLE";

/// Those that share the laboratory, and those that are alone in it.
fn items() -> (Vec<Item>, Vec<Item>) {
    let (named, kills_libvirt) = named::items();
    let items = [moments::items(), agent::items(), shares::items(), walk::items(), named];
    // A broker of its own takes a whole processor to start.
    (items.into_iter().flatten().collect(), brokers::items().into_iter().chain(kills_libvirt).collect())
}

fn main() -> ExitCode {
    let (lists, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument == "--list");
    let is_wanted = |item: &Item| words.is_empty() || words.iter().any(|word| item.name.contains(word.as_str()));
    let (items, alone) = items();
    let [items, alone] = [items, alone].map(|items| items.into_iter().filter(is_wanted).collect::<Vec<_>>());
    if !lists.is_empty() {
        items.iter().chain(&alone).for_each(|item| println!("{}", item.name));
        return ExitCode::SUCCESS;
    }
    let table = Table::default();
    matrix::run(items, AT_A_TIME, &table);
    matrix::run(alone, 1, &table);
    let (text, cells, failed) = table.end();
    println!("\n{text}");
    if let Ok(path) = std::env::var(TABLE) {
        std::fs::write(path, &text).unwrap();
    }
    println!("faults: {} cells passed, {failed} failed", cells - failed);
    if failed == 0 && cells > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
