//! The one binary. `mover` is a child process of a worker, not for people.
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == longshore::mover::SUBCOMMAND) {
        return longshore::mover::main(arguments);
    }
    ExitCode::SUCCESS
}
