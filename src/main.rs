//! The program: hands the command line to whoever it names.

use std::process::ExitCode;

/// Exit code for a command line that names nothing.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        #[cfg(feature = "libvirt")]
        Some(command) if command == "guard" => longshore::host::guard::main(),
        _ => ExitCode::from(USAGE),
    }
}
