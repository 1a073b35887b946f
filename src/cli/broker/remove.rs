//! `longshore broker remove-host`: a host taken out of the fleet.

use clap::Args;
use serde_json::json;

use super::server::{ServerArgs, failed};
use crate::broker::setup::apply::Ground;
use crate::broker::setup::removal::Removed;
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::model::id::HostId;

#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The host
    host: HostId,
    /// Throw away the messages that its queues hold
    #[arg(long)]
    discard_messages: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &RemoveArgs) -> Result<Exit, CliError> {
    let management = args.server.connect()?;
    let ground = Ground { management: &management, vhost: &args.server.vhost, passwords: None, new_passwords: false };
    let removed = ground.remove_host(&args.host, args.discard_messages).map_err(failed)?;
    for one in &removed {
        let (kind, name) = match one {
            Removed::User(name) => ("user", name),
            Removed::Queue(name) => ("queue", name),
        };
        if args.json {
            output::json_line(&json!({ "removed": kind, "name": name }))?;
        } else {
            output::line(&format!("{:<8} {kind} {name}", "removed"))?;
        }
    }
    if removed.is_empty() {
        return Err(CliError::not_found(format!("host `{}` has neither user nor queues here", args.host)));
    }
    Ok(Exit::Done)
}
