//! `longshore dead`: the dead letters, looked at, replayed, discarded.
//!
//! Each command reads the queue alone. Whoever comes second is told so, and a letter that is not dealt with stays in its place.

mod audit;
mod discard;
mod export;
mod list;
mod perform;
mod replay;
mod select;
mod show;
mod timeline;

use clap::Subcommand;
use jiff::Timestamp;

use super::exit::Exit;
use super::output::{CliError, printable};
use crate::broker::Broker;
use crate::broker::letters::{Holder, Occupation, ReadLettersError};

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List the dead letters, oldest first, or count them
    List(list::ListArgs),
    /// Show one: the job, why it failed, with all causes, what its last attempt told, and who says so
    Show(show::ShowArgs),
    /// Ask for dead jobs again, each as its next run; the letter goes when the job is in a host's queue
    Replay(Box<replay::ReplayArgs>),
    /// Throw letters away, with a reason that is told in an event
    Discard(discard::DiscardArgs),
    /// Print letters whole, one JSON object a line; they stay
    Export(export::ExportArgs),
}

pub fn run(command: &DeadCommand) -> Result<Exit, CliError> {
    match command {
        DeadCommand::List(args) => list::run(args),
        DeadCommand::Show(args) => show::run(args),
        DeadCommand::Replay(args) => replay::run(args),
        DeadCommand::Discard(args) => discard::run(args),
        DeadCommand::Export(args) => export::run(args),
    }
}

/// Why the letters could not be read; where somebody else reads them, who that is.
async fn unread(broker: &dyn Broker, error: ReadLettersError) -> CliError {
    let queue = match error {
        ReadLettersError::InUse { queue } => queue,
        ReadLettersError::NoQueue { .. } => return CliError::not_found(error),
        ReadLettersError::Broker(error) => return CliError::failed(error),
    };
    match broker.letters_holder().await {
        Ok(Some(holder)) => CliError::failed(held_by(&holder, Timestamp::now())),
        Ok(None) | Err(_) => CliError::failed(format!(
            "somebody else is reading the dead letters, and does not say who: try again when they have ended. The broker's list of \
             connections has theirs, `longshore dead … letters`, with user and address (management page, Connections; `rabbitmqctl \
             list_connections user peer_host client_properties`; `list_consumers` for queue `{queue}`)"
        )),
    }
}

/// Who reads the letters, for who wanted to.
fn held_by(holder: &Holder, now: Timestamp) -> String {
    let Occupation { doing, since, account, machine } = &holder.occupation;
    let unknown = || "unknown".to_owned();
    let place = format!("{}@{}", account.clone().unwrap_or_else(unknown), machine.clone().unwrap_or_else(unknown));
    // Their clock need not be ours.
    let seconds = now.duration_since(*since).as_secs().max(0);
    let ago = match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    };
    printable(&format!(
        "somebody else is reading the dead letters: broker user `{}` says that it reads them, as {place}, with `longshore {doing}`, since {} \
         ({ago}); try again when that has ended",
        holder.user,
        since.strftime("%Y-%m-%dT%H:%M:%SZ"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_comes_second_is_told_of_whom_and_by_what_they_say_of_themselves_steered_by_nothing() {
        let occupation = Occupation {
            doing: "dead replay\u{1b}[2J".to_owned(),
            since: "2026-11-30T13:00:00.5Z".parse().unwrap(),
            account: Some("ann".to_owned()),
            machine: None,
        };
        let holder = Holder { user: "fleet.letters".to_owned(), occupation };
        let told = held_by(&holder, "2026-11-30T14:30:00Z".parse().unwrap());
        assert!(
            told.contains("broker user `fleet.letters` says that it reads them, as ann@unknown, with `longshore dead replay\\u{1b}[2J`"),
            "{told}"
        );
        assert!(told.contains("since 2026-11-30T13:00:00Z (89 min)"), "{told}");
        assert!(held_by(&holder, Timestamp::UNIX_EPOCH).contains("(0 s)"), "a clock that is behind");
    }
}
