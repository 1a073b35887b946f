//! `longshore host`: what others have to know of this host, and what controllers want of hosts.

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};

use super::ConfigArgs;
use super::broker::{block_on, connect, load};
use super::control;
use super::exit::Exit;
use super::output::{self, CliError};
use crate::config::Config;
use crate::message::{Announce, Control, Drain, Pause, Resume};
use crate::model::id::HostId;
use crate::mover::protocol::CredentialPlaces;
use crate::mover::sealed::HostKey;

/// The file with the host's key in the worker's state directory: what opens sealed credentials is kept like the journal.
const KEY_FILE: &str = "host.key";

/// A drain that a worker reads later than this was meant for the one before it. Long enough for clocks that differ.
const OBEY_WITHIN: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Print the public key to which a share's credentials are sealed for this host. Its worker makes it when it first starts
    Key(ConfigArgs),
    /// Have hosts begin no job until `host resume`: what is at work goes on, and all else waits, retries and restores included. It holds through
    /// restarts of the worker. Needs a broker user who is one of the hosts' `broker.controllers`
    Pause(PauseArgs),
    /// Have paused hosts go on
    Resume(ResumeArgs),
    /// Have hosts come to rest, for an upgrade: what is at work may end in its time, the rest is taken back and kept for the worker's next start, and
    /// the worker ends. A second drain changes the first. A restore that writes over a block device has no way back: where its time is over it ends as
    /// `restore_unfinished`, and its instance must not be started before another restore
    Drain(DrainArgs),
    /// Have hosts tell anew how they stand: `worker.online`, a heartbeat, an inventory, and the last event of each run that has not ended
    Announce(AnnounceArgs),
}

/// Whom it is for, and who wants it.
#[derive(Debug, Args)]
struct Wish {
    #[command(flatten)]
    config: ConfigArgs,
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<HostId>,
    /// Why, for those who read it in events and heartbeats
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who wants it
    #[arg(long, value_name = "WHO")]
    requested_by: Option<String>,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    wish: Wish,
    /// It ends by itself after so long, such as `90m` or `2h 30m`; never where neither this nor --until is given
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, conflicts_with = "until")]
    for_so_long: Option<Duration>,
    /// It ends by itself at this moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    wish: Wish,
}

#[derive(Debug, Args)]
pub struct AnnounceArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<HostId>,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    wish: Wish,
    /// How long what is at work may go on; as long as `worker.drain_seconds` of the host's configuration says where it is absent
    #[arg(long, value_name = "SECONDS")]
    limit_seconds: Option<u64>,
    /// Keep nothing: what waits in the journal ends at once, and what is at work when its time is over, as failed with the code `host_draining`, in
    /// the dead letters. What is in the host's queues stays there
    #[arg(long)]
    evict: bool,
    /// The worker does not end, and the host stays paused until `host resume`; with --evict it keeps nothing until then either, restarted or not
    #[arg(long)]
    stay: bool,
}

pub fn run(command: &HostCommand) -> Result<Exit, CliError> {
    match command {
        HostCommand::Key(args) => key(args),
        HostCommand::Pause(args) => pause(args),
        HostCommand::Drain(args) => drain(args),
        HostCommand::Announce(args) => tell(&args.config, &args.hosts, &Control::Announce(Announce {})),
        HostCommand::Resume(ResumeArgs { wish }) => {
            let (requested_by, reason) = (wish.requested_by.clone(), wish.reason.clone());
            tell(&wish.config, &wish.hosts, &Control::Resume(Resume { requested_by, reason }))
        }
    }
}

fn drain(args: &DrainArgs) -> Result<Exit, CliError> {
    let DrainArgs { wish, limit_seconds, evict, stay } = args;
    let drain = Drain {
        requested_by: wish.requested_by.clone(),
        reason: wish.reason.clone(),
        limit_seconds: *limit_seconds,
        evict: *evict,
        stay: *stay,
        obey_before: Timestamp::now().checked_add(OBEY_WITHIN).ok(),
    };
    tell(&wish.config, &wish.hosts, &Control::Drain(drain))
}

fn pause(args: &PauseArgs) -> Result<Exit, CliError> {
    let now = Timestamp::now();
    let until = match args.for_so_long {
        Some(pause) => Some(now.checked_add(pause).map_err(CliError::usage)?),
        None => args.until,
    };
    if until.is_some_and(|until| until <= now) {
        return Err(CliError::usage("a pause ends in the future: `--until` names a moment that has passed"));
    }
    let (requested_by, reason) = (args.wish.requested_by.clone(), args.wish.reason.clone());
    tell(&args.wish.config, &args.wish.hosts, &Control::Pause(Pause { requested_by, reason, until }))
}

fn tell(config: &ConfigArgs, hosts: &[HostId], control: &Control) -> Result<Exit, CliError> {
    block_on(async {
        let broker = connect(config, control.command())?;
        control::tell(broker.as_ref(), hosts, control).await
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(duration).map_err(|_| "it is not negative".to_owned())
}

fn key(args: &ConfigArgs) -> Result<Exit, CliError> {
    let file = credential_places(&load(args)?).host_key;
    // Made here, it would be another one wherever the configuration is not the worker's.
    if !file.exists() {
        let text = format!("there is no key `{}`: the host's worker makes it when it first starts", file.display());
        return Err(CliError::not_found(text));
    }
    output::line(&HostKey::read(&file)?.public().to_string()).map(|()| Exit::Done)
}

/// Where the configuration has the credentials of shares.
pub fn credential_places(config: &Config) -> CredentialPlaces {
    CredentialPlaces { dir: config.credentials.dir.clone(), host_key: config.worker.state_dir.join(KEY_FILE) }
}
