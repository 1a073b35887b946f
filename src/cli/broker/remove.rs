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
    /// Throw away the messages that its queues hold, un-acked ones too
    #[arg(long)]
    discard_messages: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &RemoveArgs) -> Result<Exit, CliError> {
    let management = args.server.connect()?;
    let ground = Ground { management: &management, vhost: &args.server.vhost, passwords: None, new_passwords: false };
    // Told when all is done: a reader that has gone away ends the command.
    let mut removed = Vec::new();
    let ended = ground.remove_host(&args.host, args.discard_messages, &mut removed);
    removed.iter().try_for_each(|one| args.tell(one))?;
    ended.map_err(failed)?;
    if removed.is_empty() {
        return Err(CliError::not_found(format!("host `{}` has neither user nor queues here", args.host)));
    }
    Ok(Exit::Done)
}

impl RemoveArgs {
    fn tell(&self, removed: &Removed) -> Result<(), CliError> {
        let (kind, name) = match removed {
            Removed::User(name) => ("user", name),
            Removed::Binding(name) => ("binding", name),
            Removed::Queue(name) => ("queue", name),
        };
        if self.json {
            return output::json_line(&json!({ "removed": kind, "name": name }));
        }
        let of = if kind == "binding" { "binding of" } else { kind };
        output::line(&format!("{:<8} {of} {name}", "removed"))
    }
}
