//! `longshore job watch`: the events of one job, as a progress bar for people or as JSON lines for programs.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::ConfigArgs;
use super::broker::{block_on, connect};
use super::exit::Exit;
use super::findings;
use super::output::{self, CliError, printable};
use super::planned;
use super::refused::Refused;
use crate::broker::topology::EVENTS_EXCHANGE;
use crate::broker::{EventMessage, Heard, Outgoing, Publisher, Subscription};
use crate::message::event::{
    BackupSummary, Completed, DeleteSummary, FailureReport, HostDetail, NamedInstance, RestoreSummary, RunDetail,
};
use crate::message::vouch::{self, Disbelief, Speaker};
use crate::message::{Event, HostEvent, RunEvent, decode_event};
use crate::model::id::{HostId, JobId};

#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The job
    job_id: JobId,
    /// Only this run of it
    #[arg(long, value_name = "N")]
    run: Option<u32>,
    /// Print the events, one JSON object a line
    #[arg(long)]
    json: bool,
    /// Give up after so many seconds without an event of the job (one that has ended has no more events)
    #[arg(long, value_name = "SECONDS")]
    timeout_seconds: Option<u64>,
}

/// What to follow, and how to show it.
pub struct Follow {
    /// The job.
    pub job_id: JobId,
    /// Its run; none for whichever comes.
    pub run: Option<u32>,
    /// The host that does it; none until its first event names it. Another host can know the job's id, and has nothing to say.
    pub host: Option<HostId>,
    /// Lines of JSON in place of a bar.
    pub json: bool,
    /// Longest silence.
    pub timeout: Option<Duration>,
    /// The message itself, where we published it. After a gap it is published once more, whereupon the worker, which knows it,
    /// says how the run stands.
    pub again: Option<(Arc<dyn Publisher>, Outgoing)>,
}

pub fn run(args: &WatchArgs) -> Result<Exit, CliError> {
    let timeout = args.timeout_seconds.map(Duration::from_secs);
    let what = Follow { job_id: args.job_id, run: args.run, host: None, json: args.json, timeout, again: None };
    block_on(async {
        let broker = connect(&args.config, "watch")?;
        let events = broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await.map_err(CliError::failed)?;
        follow(events, what).await
    })
}

/// Shows the job's events up to the final one.
pub async fn follow(mut events: Box<dyn Subscription>, mut what: Follow) -> Result<Exit, CliError> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{msg:<10} [{bar:32}] {bytes}/{total_bytes}  {prefix}";
    bar.set_style(ProgressStyle::with_template(template).map_err(CliError::failed)?.progress_chars("=> "));
    let mut taken = false;
    let mut refused = Refused::default();
    loop {
        let event = tokio::select! {
            event = next(&mut events, &what, &bar, &mut refused) => event?,
            _ = tokio::signal::ctrl_c() => {
                bar.abandon();
                return Ok(Exit::Interrupted);
            }
        };
        what.host = what.host.or_else(|| event.host().cloned());
        if what.json {
            output::json_line(&Line { message_type: event.message_type(), event: &event })?;
        }
        let end = match &event {
            Event::Run(event) => {
                taken = true;
                show(event, &bar, what.json)?
            }
            // Of a run that was taken, a second message may well be refused; if it was not ours, the run goes on all the same.
            Event::Host(event) => show_refusal(event, &bar).filter(|_| !taken || what.again.is_some()),
            Event::Letter(_) => None,
        };
        if let Some(exit) = end {
            return Ok(exit);
        }
    }
}

/// An event for a program, with what tells one from another.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    message_type: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// Shows that a message for the job was refused.
fn show_refusal(event: &HostEvent, bar: &ProgressBar) -> Option<Exit> {
    let HostDetail::MessageRefused(refused) = &event.detail else { return None };
    bar.suspend(|| eprintln!("refused by {}: {} [{}]", event.host, printable(&refused.text), refused.code));
    Some(Exit::JobFailed)
}

/// The next event that is about the job.
async fn next(
    events: &mut Box<dyn Subscription>,
    what: &Follow,
    bar: &ProgressBar,
    refused: &mut Refused,
) -> Result<Event, CliError> {
    let wait = async {
        loop {
            let message = match events.next().await {
                Some(Heard::Message(message)) => message,
                Some(Heard::Lost(reason)) => {
                    bar.suspend(|| eprintln!("events are missed until the broker is back: {}", printable(&reason)));
                    continue;
                }
                Some(Heard::Back) => {
                    catch_up(what, bar).await;
                    continue;
                }
                None => return Err(CliError::failed("the subscription to the events has ended")),
            };
            match decode_event(&message.properties, &message.body) {
                Ok(event) if is_about(&event, what) => match told_by(&message, &event, what.host.as_ref()) {
                    Ok(()) => return Ok(event),
                    Err(reason) => {
                        let line = refused.add(&message.routing_key, &reason);
                        bar.suspend(|| line.into_iter().for_each(|line| eprintln!("{line}")));
                    }
                },
                _ => {}
            }
        }
    };
    match what.timeout {
        None => wait.await,
        Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| {
            Err(CliError::failed(format!("no event of job `{}` for {} s", what.job_id, limit.as_secs())))
        }),
    }
}

/// Whether the event comes from the host that it speaks for, which is the job's.
fn told_by(message: &EventMessage, event: &Event, host: Option<&HostId>) -> Result<(), Disbelief> {
    let sender = vouch::event(message.sent())?;
    Speaker::Host(sender.clone()).said(event)?;
    match host {
        Some(host) if *host != sender => Err(Disbelief::NotTheJobs { host: sender }),
        _ => Ok(()),
    }
}

/// Asks how the run stands after a gap, or says that nobody does.
async fn catch_up(what: &Follow, bar: &ProgressBar) {
    let Some((publisher, job)) = &what.again else {
        let advice =
            "the broker is back; if the job has ended meanwhile, nothing more comes (`--timeout-seconds` sets a limit)";
        bar.suspend(|| eprintln!("{advice}"));
        return;
    };
    bar.suspend(|| eprintln!("the broker is back; asking how the job stands"));
    // The events flow again, whatever comes of this.
    if let Err(error) = publisher.publish(job.clone()).await {
        bar.suspend(|| eprintln!("cannot ask how the job stands: {error}"));
    }
}

/// Whether an event is about the job.
fn is_about(event: &Event, what: &Follow) -> bool {
    let of_run = |run: u32| what.run.is_none_or(|wanted| wanted == run);
    match event {
        Event::Run(event) => event.job_id == what.job_id && of_run(event.run),
        Event::Host(HostEvent { detail: HostDetail::MessageRefused(refused), .. }) => {
            // What could not be read names no job, but the publisher gives the message the job's id.
            let ours = refused.job_id.map_or_else(|| refused.message_id.parse().ok(), Some) == Some(what.job_id);
            ours && refused.run.is_none_or(of_run)
        }
        // What becomes of the letters of a run that has ended is no part of the next one.
        Event::Host(_) | Event::Letter(_) => false,
    }
}

/// Shows one event; answers how to exit after the final one.
fn show(event: &RunEvent, bar: &ProgressBar, json: bool) -> Result<Option<Exit>, CliError> {
    let say = |text: String| {
        if !json {
            bar.suspend(|| eprintln!("{}", printable(&text)));
        }
    };
    match &event.detail {
        RunDetail::Accepted(_) => say(format!("accepted by {}", event.host)),
        RunDetail::Started(_) => say(format!("attempt {} started", event.attempt)),
        RunDetail::Progress(progress) if !json => {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
            bar.set_message(printable(&progress.step));
            let eta = progress.eta_seconds.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
            bar.set_prefix(format!("{}/s{eta}", output::bytes(progress.rate_bytes_per_second)));
        }
        RunDetail::Progress(_) => {}
        RunDetail::Retrying(retrying) => {
            say(format!("attempt {} failed: {}", event.attempt, reason(&retrying.failure)));
            retrying.warnings.iter().for_each(|warning| say(format!("warning: {warning}")));
            say(format!("next attempt at {}", retrying.next_attempt_at));
        }
        RunDetail::Completed(completed) => {
            bar.finish_and_clear();
            if !json {
                print_completed(completed)?;
            }
            let is_whole = completed.validate.as_ref().is_none_or(|found| found.errors + found.warnings == 0);
            let clean = is_whole && completed.warnings.is_empty() && completed.left_overs.is_empty();
            return Ok(Some(if clean { Exit::Done } else { Exit::Warnings }));
        }
        RunDetail::Failed(failed) => {
            bar.abandon();
            let attempts = if failed.attempts == 1 { "attempt" } else { "attempts" };
            say(format!("failed after {} {attempts}: {}", failed.attempts, reason(&failed.failure)));
            for warning in &failed.warnings {
                say(format!("warning: {warning}"));
            }
            for left in &failed.left_overs {
                say(format!("left over: {}: {}", left.what, left.reason));
            }
            return Ok(Some(Exit::JobFailed));
        }
        RunDetail::Cancelled(cancelled) => {
            bar.abandon();
            let by = cancelled.requested_by.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
            let why = cancelled.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            say(format!("cancelled{by}{why}"));
            return Ok(Some(Exit::JobFailed));
        }
    }
    Ok(None)
}

fn reason(failure: &FailureReport) -> String {
    let mut line = failure.text.clone();
    for cause in &failure.causes {
        line.push_str(": ");
        line.push_str(cause);
    }
    let step = failure.step.as_ref().map_or_else(String::new, |step| format!(", step {step}"));
    format!("{line} [{}{step}]", failure.code)
}

fn print_completed(completed: &Completed) -> Result<(), CliError> {
    if let Some(backup) = &completed.backup {
        print_backup(backup)?;
    }
    if let Some(restore) = &completed.restore {
        print_restore(restore)?;
    }
    if let Some(plan) = &completed.restore_plan {
        planned::print(plan)?;
    }
    if let Some(validation) = &completed.validate {
        findings::print(validation)?;
    }
    if let Some(delete) = &completed.delete {
        print_delete(delete)?;
    }
    for warning in &completed.warnings {
        output::line(&format!("warning      {warning}"))?;
    }
    for left in &completed.left_overs {
        output::line(&format!("left over    {}: {}", left.what, left.reason))?;
    }
    output::line(&format!("took         {:.1} s", completed.duration_ms as f64 / 1000.0))
}

fn print_restore(restore: &RestoreSummary) -> Result<(), CliError> {
    output::line(&format!("restored     backup {} (number {})", restore.backup_id, restore.number))?;
    output::line(&format!("moment       {}", restore.taken_at))?;
    for volume in &restore.volumes {
        let (data, size) = (output::bytes(volume.data_bytes), output::bytes(volume.virtual_bytes));
        output::line(&format!("volume       {}: {data} of data in {size}, `{}`", volume.target, volume.volume))?;
        if let Some(previous) = &volume.previous {
            output::line(&format!("previous     {}: `{previous}`", volume.target))?;
        }
    }
    if let Some(NamedInstance { id, name }) = &restore.new_instance {
        output::line(&format!("instance     {name} ({id}), new"))?;
    }
    if let Some(NamedInstance { id, name }) = &restore.attached_to {
        output::line(&format!("attached to  {name} ({id})"))?;
    }
    Ok(())
}

fn print_delete(delete: &DeleteSummary) -> Result<(), CliError> {
    let (deleted, merged) = if delete.dry_run { ("would go", "would merge") } else { ("deleted", "merged") };
    for merge in &delete.merged {
        output::line(&format!("{merged:<12} what backup {} held, into {}", merge.from, merge.backup_id))?;
    }
    for backup in &delete.deleted {
        let number = backup.number.map_or_else(|| "not known".to_owned(), |number| number.to_string());
        output::line(&format!("{deleted:<12} backup {} (number {number})", backup.backup_id))?;
    }
    output::line(&format!("free again   {}", output::bytes(delete.freed_bytes)))
}

fn print_backup(backup: &BackupSummary) -> Result<(), CliError> {
    output::line(&format!("backup       {} (number {})", backup.backup_id, backup.number))?;
    output::line(&format!("directory    {}", backup.directory))?;
    let frozen = backup.frozen_ms.map_or_else(String::new, |ms| format!(", guest frozen for {ms} ms"));
    let reason = backup.consistency_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    output::line(&format!("consistency  {}{frozen}{reason}", output::word(&backup.consistency)))?;
    if let Some(worst) = backup.guest.and_then(|guest| guest.worst_write_ms) {
        output::line(&format!("guest        its writes took {worst} ms in their slowest second"))?;
    }
    output::line(&format!("verified     {}", output::word(&backup.verification)))?;
    for disk in &backup.disks {
        let (data, size) = (output::bytes(disk.data_bytes), output::bytes(disk.virtual_bytes));
        output::line(&format!("disk         {}: {data} of data in {size}", disk.target))?;
    }
    for skipped in &backup.skipped_disks {
        output::line(&format!("left out     {}: {}", skipped.target, skipped.reason))?;
    }
    Ok(())
}
