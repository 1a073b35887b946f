//! `longshore dead show`.

use std::ops::ControlFlow;

use clap::Args;
use serde_json::Value;

use super::export::{shown_fields, whole};
use super::select::exit_of;
use super::unread;
use crate::cli::ConfigArgs;
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Content, Letter, look};

/// Letters of one id that are shown.
const SAME_ID_MAX: usize = 20;
/// Bytes of a body that nobody can read which are shown.
const SHOWN_BYTES_MAX: usize = 1024;
/// Bytes in a line of them.
const LINE_BYTES: usize = 16;

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The letter, by the id that `dead list` prints
    letter: String,
    /// As one JSON object, the message whole
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ShowArgs) -> Result<Exit, CliError> {
    let mut found = Vec::new();
    let look = block_on(async {
        let broker = connect(&args.config, "dead show")?;
        let see = |letter: Letter| {
            // Ids are their makers' and may not be unique.
            if letter.id() == args.letter && found.len() < SAME_ID_MAX {
                found.push(letter);
            }
            ControlFlow::Continue(())
        };
        look(broker.as_ref(), see).await.map_err(unread)
    })?;
    let exit = exit_of(look);
    if found.is_empty() {
        return Err(CliError::not_found(format!("there is no dead letter `{}`", args.letter)));
    }
    for letter in &found {
        if args.json {
            output::json(&whole(letter))?;
        } else {
            lines(letter).iter().try_for_each(|line| output::line(line))?;
        }
    }
    Ok(exit)
}

fn lines(letter: &Letter) -> Vec<String> {
    let field = |name: &str, text: String| format!("{name:<12}{text}");
    let mut lines = vec![field("letter", letter.id().to_owned())];
    if let Some(doubt) = &letter.doubt {
        lines.push(field("not believed", format!(": {doubt}")));
    }
    let user = letter.properties.user_id.as_deref().unwrap_or("nobody");
    lines.push(field("written by", format!("broker user `{user}`, with the key `{}`", letter.routing_key)));
    if let Content::Letter(dead) = &letter.content {
        lines.push(field("given up", format!("{} by host {}", dead.time, dead.host)));
        if let (Some(job), Some(run)) = (dead.job_id, dead.run) {
            lines.push(field("job", format!("{job}, run {run}, {} attempts", dead.attempts)));
        }
        if let Some(step) = &dead.failure.step {
            lines.push(field("step", step.clone()));
        }
    }
    lines.push(field("code", format!("{} ({})", letter.code(), output::word(&letter.class()))));
    lines.push(field("failure", letter.text()));
    if let Content::Letter(dead) = &letter.content {
        lines.extend(dead.failure.causes.iter().map(|cause| field("because", cause.clone())));
        if dead.original.altered {
            lines.push(field("original", "not as it was published: a secret was taken out, or it was cut".to_owned()));
        }
    }
    lines.extend(original(letter));
    lines
}

/// The job's fields, or the bytes that are there in their place.
fn original(letter: &Letter) -> Vec<String> {
    match (shown_fields(letter), &letter.content, letter.original()) {
        (Some(fields), ..) => pretty(&fields),
        (None, Content::Letter(_), Some((_, body))) => hex(&body),
        (None, ..) => hex(&letter.shown_body()),
    }
}

fn pretty(fields: &Value) -> Vec<String> {
    let text = serde_json::to_string_pretty(fields).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn hex(body: &[u8]) -> Vec<String> {
    let shown = body.get(..SHOWN_BYTES_MAX).unwrap_or(body);
    let mut lines: Vec<_> = shown
        .chunks(LINE_BYTES)
        .enumerate()
        .map(|(line, bytes)| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            let text: String =
                bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
            format!("{:08x}  {hex:<48}  {text}", line * LINE_BYTES)
        })
        .collect();
    if shown.len() < body.len() {
        lines.push(format!("… {} bytes in all; `dead export` has them", body.len()));
    }
    lines
}
