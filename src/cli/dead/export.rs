//! `longshore dead export`: letters whole, for other programs and for later.

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::select::{SelectArgs, exit_of};
use super::unread;
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Content, Letter, Summary, look};
use crate::message::{read_fields, redact};

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    select: SelectArgs,
}

pub fn run(args: &ExportArgs) -> Result<Exit, CliError> {
    let filter = args.select.filter();
    let mut printed = Ok(());
    let look = block_on(async {
        let broker = connect(&args.select.config, "dead export")?;
        let see = |letter: Letter| {
            if filter.takes(&Summary::of(&letter)) {
                printed = output::json_line(&whole(&letter));
            }
            if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        look(broker.as_ref(), see).await.map_err(unread)
    })?;
    printed.map(|()| exit_of(look))
}

/// The job's fields without secrets, as far as they can be read.
pub fn shown_fields(letter: &Letter) -> Option<Value> {
    let (properties, body) = letter.original()?;
    read_fields(&properties, &redact(&body, &properties.content_type)).ok().map(|(_, fields)| fields)
}

/// All that there is of a letter: the message as it came, what it is, and the job in it, as far as that can be read.
pub fn whole(letter: &Letter) -> Value {
    let dead = match &letter.content {
        Content::Letter(dead) => json!(dead),
        Content::GivenUp { .. } | Content::Unreadable { .. } => Value::Null,
    };
    let body = letter.shown_body();
    json!({
        "letter_id": letter.id(),
        "routing_key": letter.routing_key,
        "code": letter.code(),
        "class": letter.class(),
        "text": letter.text(),
        "doubt": letter.doubt,
        "letter": dead,
        "job": shown_fields(letter),
        "properties": letter.properties,
        "body_base64": STANDARD.encode(&body),
        "body_redacted": body != letter.body,
    })
}
