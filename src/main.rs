//! The program: hands the command line to whoever it names. `mover` and `guard` are children of a worker, not for people.

use std::process::ExitCode;

use longshore::{mover, telemetry};

/// What a mover logs, where its worker's `LONGSHORE_LOG` says nothing else.
const MOVER_LOG: &str = "longshore=info";

/// Exit code for a command line that names nothing.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        #[cfg(feature = "libvirt")]
        Some(command) if command == "guard" => longshore::host::guard::main(),
        Some(command) if command == mover::SUBCOMMAND => {
            let filter = std::env::var("LONGSHORE_LOG").unwrap_or_default();
            // A filter that can't be read is the worker's to complain about; a mover without a log still works.
            let _unreadable =
                telemetry::init(if filter.is_empty() { MOVER_LOG } else { &filter }, telemetry::LogFormat::Text);
            mover::main(arguments)
        }
        _ => ExitCode::from(USAGE),
    }
}
