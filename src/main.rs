//! The one binary: the command line, and the two child processes that a worker starts of it.

use std::process::ExitCode;

use longshore::{cli, mover, telemetry};

/// What a mover logs, where its worker's `LONGSHORE_LOG` says nothing else.
const MOVER_LOG: &str = "longshore=info";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(role) if role == mover::protocol::SUBCOMMAND => {
            let filter = std::env::var("LONGSHORE_LOG").unwrap_or_default();
            // A filter that can't be read is the worker's to complain about; a mover without a log still works.
            let _unreadable =
                telemetry::init(if filter.is_empty() { MOVER_LOG } else { &filter }, telemetry::LogFormat::Text);
            mover::main(arguments)
        }
        #[cfg(feature = "libvirt")]
        Some(role) if role == "guard" => longshore::host::guard::main(),
        _ => cli::run(),
    }
}
