//! `longshore dead export`: letters whole, for other programs and for later.

use std::collections::HashMap;
use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::select::{SelectArgs, Selected, exit_of, selected};
use super::unread;
use crate::broker::letters::ReadLettersError;
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{
    Content, Filter, Fingerprint, IN_USE_PAUSE, IN_USE_WAIT, Letter, Marks, Summary, SupersededBy, look,
};
use crate::message::{read_fields, redact};

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    select: SelectArgs,
}

pub fn run(args: &ExportArgs) -> Result<Exit, CliError> {
    block_on(async {
        let broker = connect(&args.select.config, "dead export")?;
        // A mark lies behind its letter, so that all are looked for first; whole letters are not kept, since there may be many.
        let Selected { letters, filter, .. } =
            selected(broker.as_ref(), &args.select.filter(), Letter::fingerprint).await?;
        let superseded: HashMap<_, _> =
            letters.into_iter().map(|(summary, fingerprint)| (fingerprint, summary.made_good_by)).collect();
        let mut printed = Ok(());
        let mut marks = Marks::default();
        let mut see = |letter: Letter| {
            if let Some(letter) = marks.take(letter)
                && let Some(by) = known(&superseded, &filter, &letter)
            {
                printed = output::json_line(&whole(&letter, by.as_ref()));
            }
            if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        // Between two readings another one may have begun.
        let until = Instant::now() + IN_USE_WAIT;
        let looked = loop {
            match look(broker.as_ref(), &mut see).await {
                Err(ReadLettersError::InUse { .. }) if Instant::now() < until => sleep(IN_USE_PAUSE).await,
                looked => break looked,
            }
        };
        match looked {
            Ok(look) => printed.map(|()| exit_of(look)),
            Err(error) => Err(unread(broker.as_ref(), error).await),
        }
    })
}

/// Whether a letter is meant, and what superseded it: one that came after the first look is one that nothing is known of.
fn known(
    superseded: &HashMap<Fingerprint, Option<SupersededBy>>,
    filter: &Filter,
    letter: &Letter,
) -> Option<Option<SupersededBy>> {
    match superseded.get(&letter.fingerprint()) {
        Some(by) => Some(by.clone()),
        None => (!filter.superseded && filter.takes(&Summary::of(letter))).then_some(None),
    }
}

/// The job's fields without secrets, as far as they can be read.
pub fn shown_fields(letter: &Letter) -> Option<Value> {
    let (properties, body) = letter.original()?;
    read_fields(&properties, &redact(&body, &properties.content_type)).ok().map(|(_, fields)| fields)
}

/// All that there is of a letter: the message as it came, what it is, and the job in it, as far as that can be read.
pub fn whole(letter: &Letter, superseded: Option<&SupersededBy>) -> Value {
    let dead = match &letter.content {
        Content::Letter(dead) => json!(dead),
        Content::Mark(_) | Content::GivenUp { .. } | Content::Unreadable { .. } => Value::Null,
    };
    let body = letter.shown_body();
    json!({
        "letter_id": letter.id(),
        "routing_key": letter.routing_key,
        "code": letter.code(),
        "class": letter.class(),
        "text": letter.text(),
        "doubt": letter.doubt,
        "made_good_by": superseded,
        "letter": dead,
        "job": shown_fields(letter),
        "properties": letter.properties,
        "body_base64": STANDARD.encode(&body),
        "body_redacted": body != letter.body,
    })
}
