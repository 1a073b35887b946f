//! The one binary. `mover` is a child process of a worker, not for people.

use std::process::ExitCode;

use longshore::{mover, telemetry};

/// What a mover logs, where its worker's `LONGSHORE_LOG` says nothing else.
const MOVER_LOG: &str = "longshore=info";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == mover::protocol::SUBCOMMAND) {
        let filter = std::env::var("LONGSHORE_LOG").unwrap_or_default();
        // A filter that can't be read is the worker's to complain about; a mover without a log still works.
        let _unreadable =
            telemetry::init(if filter.is_empty() { MOVER_LOG } else { &filter }, telemetry::LogFormat::Text);
        return mover::main(arguments);
    }
    ExitCode::SUCCESS
}
