//! The command line: one noun a file. stdout is data, stderr is everything else, exit codes are in [`exit`].
//!
//! Nothing is decided here. A command reads its options, builds the doors it needs, calls one public function and
//! prints what came back.

mod backup;
mod broker;
mod cancel;
mod chain;
mod check;
mod codes;
mod control;
mod dead;
mod destination;
mod events;
pub mod exit;
mod findings;
mod host;
#[cfg(feature = "libvirt")]
mod instance;
mod job;
#[cfg(feature = "libvirt")]
mod journal;
mod options;
mod output;
#[cfg(feature = "libvirt")]
mod plan_restore;
mod planned;
mod publish;
mod refused;
mod repository;
mod validate;
mod watch;
mod when;
#[cfg(feature = "libvirt")]
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use exit::Exit;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Backs up KVM instances to shared storage and restores them, driven by messages.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, max_term_width = 100, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker of this host
    #[cfg(feature = "libvirt")]
    Worker(worker::WorkerArgs),
    /// Make a directory or share a backup repository, or look whether one is whole
    #[command(subcommand)]
    Repository(repository::RepositoryCommand),
    /// Publish jobs and watch them
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Look at the dead letters, and ask for their jobs again
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Print events as they come
    Events(events::EventsArgs),
    /// Look at the backups of a repository, straight from its directory
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Secure the broker of a fleet
    #[command(subcommand)]
    Broker(broker::command::BrokerCommand),
    /// What the worker of this host has written down
    #[cfg(feature = "libvirt")]
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// What others have to know of this host; hosts paused, resumed, drained and asked how they stand
    #[command(subcommand)]
    Host(host::HostCommand),
    /// What Longshore has done to an instance of this host
    #[cfg(feature = "libvirt")]
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// Check a configuration, this host or a repository: one line each, with the remedy
    #[command(subcommand)]
    Check(check::CheckCommand),
    /// Print every failure code with its class and its meaning
    Codes(codes::CodesArgs),
}

/// Where the configuration is. Every key can also be set in the environment, as in `LONGSHORE__BROKER__URI`.
#[derive(Clone, Debug, Args)]
struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "LONGSHORE_CONFIG")]
    config: Option<PathBuf>,
}

fn after_help() -> String {
    let codes = Exit::ALL.iter().map(|(exit, meaning)| format!("  {:<4} {meaning}\n", exit.status()));
    format!(
        "Configuration keys can be set in the environment as well: broker.uri is LONGSHORE__BROKER__URI.\n\n\
         Exit codes:\n{}",
        codes.collect::<String>()
    )
}

/// Parses the command line, runs the command and turns its end into an exit status.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing a usage error can fail only when the terminal is gone.
            let _nobody_reads = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    if let Err(error) = no_core_dumps() {
        eprintln!("longshore: cannot turn core dumps off: {error}");
        return Exit::Failed.into();
    }
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("longshore: {}", output::printable(&error.chain()));
            error.exit().into()
        }
    }
}

/// The broker's password is in the memory of most commands, and no crash collector's business. A guard or mover that is started
/// inherits the limit.
///
/// One byte and not none: a collector behind a pipe is given a core whatever the limit, but for a limit of 1, which the kernel takes
/// as "no core" there (`do_coredump` in its fs/coredump.c). Whoever was started with less cannot have it, and needs it less.
fn no_core_dumps() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, most.min(1), most.min(1))?;
    set_dumpable(false)
}

fn dispatch(command: Command) -> Result<Exit, output::CliError> {
    match command {
        #[cfg(feature = "libvirt")]
        Command::Worker(args) => worker::run(&args),
        Command::Repository(command) => repository::run(&command),
        Command::Job(command) => job::run(&command),
        Command::Dead(command) => dead::run(&command),
        Command::Events(args) => events::run(&args),
        Command::Backup(command) => backup::run(&command),
        Command::Broker(command) => broker::command::run(&command),
        #[cfg(feature = "libvirt")]
        Command::Journal(command) => journal::run(&command),
        Command::Host(command) => host::run(&command),
        #[cfg(feature = "libvirt")]
        Command::Instance(command) => instance::run(&command),
        Command::Check(command) => check::run(&command),
        Command::Codes(args) => codes::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
