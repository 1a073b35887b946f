//! `longshore dead show`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use clap::Args;
use serde_json::Value;

use super::export::{shown_fields, whole};
use super::select::exit_of;
use super::timeline::timeline;
use super::unread;
use crate::cli::ConfigArgs;
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Content, Letter, Marks, Summary, SupersededBy, is_whole, look, named, stands_for};

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
    /// The letter, by the id that `dead list` prints, or by the first or last characters of it, 6 or more, that no other has
    letter: String,
    /// As one JSON object, the message whole
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ShowArgs) -> Result<Exit, CliError> {
    let mut found = Found::default();
    let mut marks = Marks::default();
    let look = block_on(async {
        let broker = connect(&args.config, "dead show")?;
        let see = |letter: Letter| {
            if let Some(letter) = marks.take(letter) {
                found.see(&args.letter, letter);
            }
            ControlFlow::Continue(())
        };
        match look(broker.as_ref(), see).await {
            Ok(look) => Ok(look),
            Err(error) => Err(unread(broker.as_ref(), error).await),
        }
    })?;
    let exit = exit_of(look);
    let letters = found.named(&args.letter)?;
    if letters.is_empty() {
        return Err(CliError::not_found(format!("there is no dead letter `{}`", args.letter)));
    }
    for letter in &letters {
        let superseded = marks.of(&Summary::of(letter));
        if args.json {
            output::json(&whole(letter, superseded))?;
        } else {
            lines(letter, superseded).iter().try_for_each(|line| output::line(line))?;
        }
    }
    Ok(exit)
}

/// Letters that could be meant. Ids are their makers' and may not be unique.
#[derive(Default)]
struct Found {
    /// Those of the very id.
    whole: Vec<Letter>,
    /// Those whose id begins or ends so.
    near: Vec<Letter>,
    near_ids: BTreeSet<String>,
}

impl Found {
    fn see(&mut self, word: &str, letter: Letter) {
        if is_whole(word, letter.id()) {
            if self.whole.len() < SAME_ID_MAX {
                self.whole.push(letter);
            }
        } else if stands_for(word, letter.id()) {
            self.near_ids.insert(letter.id().to_owned());
            if self.near.len() < SAME_ID_MAX {
                self.near.push(letter);
            }
        }
    }

    fn named(self, word: &str) -> Result<Vec<Letter>, CliError> {
        if !self.whole.is_empty() {
            return Ok(self.whole);
        }
        // One that is refused here has several ids, and else all of these are of the one.
        named(word, self.near_ids.iter().map(String::as_str)).map_err(CliError::usage)?;
        Ok(self.near)
    }
}

fn field(name: &str, text: &str) -> String {
    format!("{name:<12}{text}")
}

fn lines(letter: &Letter, superseded: Option<&SupersededBy>) -> Vec<String> {
    let mut lines = vec![field("letter", letter.id())];
    if let Some(doubt) = &letter.doubt {
        lines.push(field("not believed", &format!(": {doubt}")));
    }
    let user = letter.properties.user_id.as_deref().unwrap_or("nobody");
    lines.push(field("written by", &format!("broker user `{user}`, with the key `{}`", letter.routing_key)));
    if let Content::Letter(dead) = &letter.content {
        lines.push(field("given up", &format!("{} by host {}", dead.time, dead.host)));
        if let (Some(job), Some(run)) = (dead.job_id, dead.run) {
            lines.push(field("job", &format!("{job}, run {run}, {} attempts", dead.attempts)));
        }
        if let Some(step) = &dead.failure.step {
            lines.push(field("step", step));
        }
    }
    lines.push(field("code", &format!("{} ({})", letter.code(), output::word(&letter.class()))));
    lines.push(field("failure", &letter.text()));
    if let Content::Letter(dead) = &letter.content {
        lines.extend(dead.failure.causes.iter().map(|cause| field("because", cause)));
        lines.extend(timeline(dead).iter().map(|line| field("told", line)));
        if dead.original.altered {
            lines.push(field("original", "not as it was published: a secret was taken out, or it was cut"));
        }
    }
    if let Some(by) = superseded {
        let text = format!("job {}, run {}, has done the same at {}", by.job_id, by.run, by.time);
        lines.push(field("superseded", &text));
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
