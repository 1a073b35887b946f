//! `longshore dead replay`.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;

use super::audit::Audit;
use super::perform::{PerformArgs, Work};
use super::select::SelectArgs;
use crate::broker::Outgoing;
use crate::broker::topology::{JOBS_EXCHANGE, jobs_key, urgent_jobs_key};
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::CliError;
use crate::cli::publish::{read_credentials, sealed};
use crate::letters::replay::{Draft, Wish, draft};
use crate::letters::{Deed, Edit, Filter, Letter, Strays, Summary};
use crate::message::Encoded;
use crate::message::event::{LetterDetail, Replayed};
use crate::message::job::CredentialsPart;
use crate::model::id::HostId;
use crate::mover::sealed::PublicKey;

#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    perform: PerformArgs,
    /// Send the jobs to this host, and not to those that gave them up
    #[arg(long, value_name = "HOST")]
    to_host: Option<HostId>,
    /// Give a field of the jobs another value: its path in words with dots between (`backup.quiesce=off`) or as a JSON pointer, and a
    /// JSON value or a text; `null` takes it away. May be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<Edit>,
    /// Name of the file with the share's credentials in the host's credentials directory, in place of what the jobs have
    #[arg(long, value_name = "NAME")]
    credentials: Option<String>,
    /// File with the share's credentials, `-` for stdin, which go along sealed to the host
    #[arg(long, value_name = "FILE", conflicts_with = "credentials", requires = "host_key", requires = "to_host")]
    seal_credentials: Option<PathBuf>,
    /// The host's public key, as `longshore host key` prints it there
    #[arg(long, value_name = "KEY", requires = "seal_credentials")]
    host_key: Option<PublicKey>,
    /// As this run, and not as the one after the dead run: where somebody has asked for that one already
    #[arg(long, value_name = "N")]
    as_run: Option<u32>,
    /// Why, for those who read the events
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// How the letters are to be replayed.
struct Replay<'r> {
    args: &'r ReplayArgs,
    wish: Wish,
    credentials: Option<Zeroizing<String>>,
    audit: Audit,
}

pub fn run(args: &ReplayArgs) -> Result<Exit, CliError> {
    let filter = args.select.filter_or_all(args.perform.all)?;
    let replay = Replay {
        args,
        wish: Wish {
            to_host: args.to_host.clone(),
            edits: args.set.clone(),
            as_run: args.as_run,
            brings_credentials: args.credentials.is_some() || args.seal_credentials.is_some(),
        },
        credentials: args.seal_credentials.as_deref().map(read_credentials).transpose()?,
        audit: Audit::new(&args.select.config, &args.perform, args.reason.as_deref())?,
    };
    block_on(async {
        let broker = connect(&args.select.config, "dead replay")?;
        let work = Work {
            args: &args.perform,
            broker: broker.as_ref(),
            filter: &filter,
            done: "replayed",
            strays: Strays::Old,
            spared: &spared,
            plan: &|letter| replay.message(letter).map(|(draft, _)| draft.words()),
            deed: &|letter| replay.deed(letter),
        };
        work.run().await
    })
}

impl Replay<'_> {
    fn message(&self, letter: &Letter) -> Result<(Draft, Encoded), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut draft = draft(letter, &self.wish).map_err(|error| text(&error))?;
        if let Some(credentials) = self.credentials(&draft)? {
            draft.bring(&credentials).map_err(|error| text(&error))?;
        }
        let message = draft.message(Timestamp::now()).map_err(|error| text(&error))?;
        Ok((draft, message))
    }

    fn credentials(&self, draft: &Draft) -> Result<Option<CredentialsPart>, String> {
        if let (Some(text), Some(key)) = (&self.credentials, &self.args.host_key) {
            let job = draft.job().map_err(|error| error.to_string())?;
            return sealed(text, key, &draft.host, &job).map(Some).map_err(|error| error.chain());
        }
        let reference = self.args.credentials.clone();
        Ok(reference.map(|name| CredentialsPart { reference: Some(name), sealed: None }))
    }

    fn deed(&self, letter: &Letter) -> Result<Deed, String> {
        let (draft, Encoded { properties, body }) = self.message(letter)?;
        let routing_key = if draft.urgent { urgent_jobs_key(&draft.host) } else { jobs_key(&draft.host) };
        let job = Outgoing { exchange: JOBS_EXCHANGE, routing_key, properties, body };
        let replayed = Replayed { run: draft.run, host: draft.host, changed: draft.changed };
        let event = self.audit.event(letter, LetterDetail::Replayed(replayed))?;
        Ok(Deed { job: Some(job), event: Some(event) })
    }
}

/// Its next run has been asked for; or a later job has done what it was for, and nobody said that it is wanted all the same.
fn spared(summary: &Summary, filter: &Filter) -> Option<String> {
    if let Some(run) = summary.superseded_by {
        return Some(format!("run {run} of the same job is dead as well: replay that, and discard this one"));
    }
    let by = summary.made_good_by.as_ref().filter(|_| !filter.superseded && !filter.names(summary))?;
    Some(format!(
        "superseded: job {}, run {}, has done the same at {}; name the letter by its id, or say `--superseded`, to replay it all the same",
        by.job_id, by.run, by.time
    ))
}
