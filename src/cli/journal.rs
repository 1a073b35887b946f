//! `longshore journal`: what a worker of this host has written down, for whoever is on call. Looking needs no worker and disturbs none; nor does
//! the word that a left-over is to be named no more.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ConfigArgs;
use super::broker::{block_on, load};
use super::exit::Exit;
use super::output::{self, CliError};
use super::worker;
use crate::journal::{ForgetError, JournalError, JournalLook, RunState, SeenRun, forget_left_over, forgotten};
use crate::message::{Properties, read_fields};
use crate::model::id::JobId;

/// Unsent messages that are shown.
const UNSENT_SHOWN_MAX: u32 = 100;

#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// List the runs that have not ended, whether the host is paused, what could not be removed yet, and how much waits to be sent
    List(ListArgs),
    /// Show a run: its job, where it stands, and every step that its attempts have written down
    Show(ShowArgs),
    /// Take back what attempts have begun that were cut off, without a worker: as its next start would. It must be down
    Unwind(UnwindArgs),
    /// Have what could not be removed named no more, where nobody can look whether it is gone. Nothing is removed: the worker, or its next
    /// start, logs the reason and forgets it
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also runs that have ended, as long as they are kept
    #[arg(long)]
    all: bool,
    /// The last so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
    /// One JSON object a line: runs, a pause, left-overs, and last the outbox
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The job
    job_id: JobId,
    /// Run of the job; the latest that is there
    #[arg(long, value_name = "N")]
    run: Option<u32>,
}

#[derive(Debug, Args)]
pub struct UnwindArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The job; without it all of them
    job_id: Option<JobId>,
}

#[derive(Debug, Args)]
pub struct ForgetArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The left-over, as `journal list` names it
    name: String,
    /// Why it can be forgotten
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub fn run(command: &JournalCommand) -> Result<Exit, CliError> {
    match command {
        JournalCommand::List(args) => block_on(list(args)),
        JournalCommand::Show(args) => block_on(show(args)),
        JournalCommand::Unwind(args) => worker::unwind(&args.config, args.job_id),
        JournalCommand::Forget(args) => block_on(forget(args)),
    }
}

async fn open(config: &ConfigArgs) -> Result<JournalLook, CliError> {
    let directory = load(config)?.worker.state_dir;
    JournalLook::open(&directory).await.map_err(|error| unopened(error, &directory))
}

/// Why a journal cannot be looked at.
pub fn unopened(error: JournalError, directory: &Path) -> CliError {
    match error {
        JournalError::File { action: "find", .. } => {
            CliError::not_found(format!("no worker has ever kept a journal in `{}`", directory.display()))
        }
        error => CliError::failed(error),
    }
}

async fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let mut journal = open(&args.config).await?;
    let paused = journal.pause().await?;
    for seen in journal.runs(args.all, args.limit).await? {
        if args.json {
            output::json_line(&json!({ "run": run_json(&seen) }))?;
        } else {
            let SeenRun { run, .. } = &seen;
            let waits = matches!(run.state, RunState::Waiting { .. }) && paused.is_some();
            output::line(&format!(
                "{}  run {}  {:<13}  {}  {}{}  attempt {}, {} failed, {} cut off{}",
                run.key.job_id,
                run.key.run,
                run.kind.as_str(),
                run.instance,
                state(&seen),
                if waits { ", paused" } else { "" },
                run.attempt,
                run.failures,
                run.crashes,
                if run.cancelled.is_some() { "  [cancelled]" } else { "" },
            ))?;
        }
    }
    if let Some(paused) = paused {
        if args.json {
            output::json_line(&json!({ "paused": paused }))?;
        } else {
            let text = |field: &str| paused.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
            let [since, user, reason] = ["since", "user", "reason"].map(text);
            output::line(&format!("the host is paused since {since}, by {user}, until {}: {reason}", text("until")))?;
        }
    }
    for (name, value) in journal.left_overs().await? {
        if args.json {
            output::json_line(&json!({ "left_over": { "name": name, "value": value } }))?;
        } else {
            let text = |field: &str| value.pointer(field).and_then(Value::as_str).unwrap_or("-").to_owned();
            let told = forgotten(&value).map_or_else(String::new, |why| format!(" [to be forgotten: {why}]"));
            output::line(&format!("left over of {name}: {}: {}{told}", text("/report/what"), text("/report/reason")))?;
        }
    }
    let (unsent, installation) = (journal.unsent_count().await?, journal.installation());
    if args.json {
        let shown = journal.unsent(UNSENT_SHOWN_MAX).await?;
        let shown: Vec<_> = shown
            .into_iter()
            .map(|row| json!({ "id": row.id, "run": row.run.map(|key| key.to_string()), "routing_key": row.routing_key }))
            .collect();
        output::json_line(&json!({ "installation": installation, "unsent": unsent, "first_unsent": shown }))?;
    } else {
        output::line(&format!("{unsent} messages wait to be sent; installation {installation}"))?;
    }
    Ok(Exit::Done)
}

fn state(seen: &SeenRun) -> String {
    match &seen.run.state {
        RunState::Waiting { not_before: None, .. } => "waiting".to_owned(),
        RunState::Waiting { not_before: Some(time), held: false } => format!("waiting until {time}"),
        RunState::Waiting { not_before: Some(time), held: true } => {
            format!("waiting until {time}, or until its repository works")
        }
        RunState::Running => "running".to_owned(),
        RunState::Ended { outcome } => {
            let at = seen.ended_at.map_or_else(String::new, |time| format!(" at {time}"));
            format!("ended{at}: {}", output::word(outcome))
        }
    }
}

fn run_json(seen: &SeenRun) -> Value {
    let SeenRun { run, ended_at } = seen;
    let (word, not_before, outcome) = match &run.state {
        RunState::Waiting { not_before, .. } => ("waiting", *not_before, None),
        RunState::Running => ("running", None, None),
        RunState::Ended { outcome } => ("ended", None, Some(outcome)),
    };
    json!({
        "job_id": run.key.job_id,
        "run": run.key.run,
        "kind": run.kind,
        "instance": run.instance,
        "repository_id": run.repository_id,
        "urgent": run.urgent,
        "accepted_at": run.accepted_at,
        "state": word,
        "not_before": not_before,
        "outcome": outcome,
        "ended_at": ended_at,
        "attempt": run.attempt,
        "failures": run.failures,
        "crashes": run.crashes,
        "cancelled": run.cancelled,
    })
}

async fn show(args: &ShowArgs) -> Result<Exit, CliError> {
    let mut journal = open(&args.config).await?;
    let seen = journal.run(args.job_id, args.run).await?.ok_or_else(|| unknown(args.job_id))?;
    let key = seen.run.key;
    let message = journal.message(key).await?;
    let job = message.map(|message| {
        let properties: Properties = serde_json::from_value(message.properties).unwrap_or_default();
        read_fields(&properties, &message.body).map_or(Value::Null, |(_, fields)| fields)
    });
    let mut attempts = Vec::new();
    for attempt in 1..=seen.run.attempt {
        attempts.push(json!({ "attempt": attempt, "records": journal.records(key, attempt).await? }));
    }
    let shown = json!({ "run": run_json(&seen), "job": job, "kept": journal.kept(key).await?, "attempts": attempts });
    output::json(&shown)?;
    Ok(Exit::Done)
}

async fn forget(args: &ForgetArgs) -> Result<Exit, CliError> {
    if args.reason.trim().is_empty() {
        return Err(CliError::usage("`--reason` says nothing"));
    }
    let directory = load(&args.config)?.worker.state_dir;
    forget_left_over(&directory, &args.name, &args.reason).await.map_err(|error| match error {
        ForgetError::Journal(error) => unopened(error, &directory),
        ForgetError::Failed(failure) => failure.into(),
        ForgetError::None => CliError::not_found(error),
    })?;
    output::told("the worker forgets it within a heartbeat, or when it starts; nothing was removed")?;
    Ok(Exit::Done)
}

fn unknown(job: JobId) -> CliError {
    CliError::not_found(format!("the journal of this host has no such run of job `{job}`"))
}
