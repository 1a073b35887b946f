//! `longshore events`: everything that happens, as it happens.

use clap::Args;

use super::ConfigArgs;
use super::broker::{block_on, connect};
use super::exit::Exit;
use super::output::{self, CliError};
use super::refused::Refused;
use crate::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use crate::broker::{EventMessage, Heard};
use crate::message::vouch::{self, Disbelief};
use crate::message::{Refusal, decode_dead_letter, decode_event, decode_superseded};

#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Binding key, such as `backup.#`, `*.failed.kvm-07` or `letter.#`; may be repeated
    #[arg(long, value_name = "KEY", default_value = "#")]
    key: Vec<String>,
    /// Copies of dead letters, and of the marks on superseded ones, as they come, in place of events; the letters themselves go to their queue
    #[arg(long)]
    dead: bool,
    /// One JSON object a line, with the whole event; `connection` in place of it where the connection was lost or is back
    #[arg(long)]
    json: bool,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub fn run(args: &EventsArgs) -> Result<Exit, CliError> {
    block_on(async {
        let broker = connect(&args.config, "events")?;
        let exchange = if args.dead { DEAD_EXCHANGE } else { EVENTS_EXCHANGE };
        let mut events = broker.subscribe(exchange, &args.key).await.map_err(CliError::failed)?;
        let mut seen = 0;
        let mut refused = Refused::default();
        while args.count.is_none_or(|count| seen < count) {
            let heard = tokio::select! {
                heard = events.next() => heard,
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
            };
            match heard.ok_or_else(|| CliError::failed("the subscription to the events has ended"))? {
                Heard::Message(message) => match believed(args, &message) {
                    Ok(body) => {
                        print(args, &message, &body?)?;
                        seen += 1;
                    }
                    Err(reason) => {
                        refused.add(&message.routing_key, &reason).into_iter().for_each(|line| eprintln!("{line}"));
                    }
                },
                Heard::Lost(reason) => tell_gap(args, "lost", &format!("events are missed from now on: {reason}"))?,
                Heard::Back => tell_gap(args, "back", "the broker is back; what was published meanwhile is missed")?,
            }
        }
        Ok(Exit::Done)
    })
}

/// A gap in what is printed is told to people, and to a program in its own language.
fn tell_gap(args: &EventsArgs, connection: &str, text: &str) -> Result<(), CliError> {
    eprintln!("{}", output::printable(text));
    if args.json {
        output::json_line(&serde_json::json!({ "connection": connection, "text": text }))?;
    }
    Ok(())
}

/// The body of a message that comes from whom it speaks for. A newer version's is shown as far as it can be.
fn believed(args: &EventsArgs, message: &EventMessage) -> Result<Result<serde_json::Value, CliError>, Disbelief> {
    let unreadable = |refusal: Refusal| Ok(serde_json::json!({ "unreadable": refusal.to_string() }));
    if args.dead {
        if let Ok(mark) = decode_superseded(&message.properties, &message.body) {
            return vouch::mark(message.sent(), &mark).map(|_host| json(&mark));
        }
        let sender = vouch::letter(message.sent())?;
        return match decode_dead_letter(&message.properties, &message.body) {
            Ok(letter) => vouch::same_host(&sender, &letter.host).map(|()| json(&letter)),
            Err(refusal) => Ok(unreadable(refusal)),
        };
    }
    let speaker = vouch::speaker(message.sent())?;
    match decode_event(&message.properties, &message.body) {
        Ok(event) => speaker.said(&event).map(|()| json(&event)),
        Err(refusal) => Ok(unreadable(refusal)),
    }
}

fn json(value: &impl serde::Serialize) -> Result<serde_json::Value, CliError> {
    serde_json::to_value(value).map_err(CliError::failed)
}

fn print(args: &EventsArgs, message: &EventMessage, body: &serde_json::Value) -> Result<(), CliError> {
    if args.json {
        let line = serde_json::json!({
            "routing_key": message.routing_key,
            "type": message.properties.message_type,
            "id": message.properties.message_id,
            "body": body,
        });
        return output::json_line(&line);
    }
    let time = body.get("time").and_then(|time| time.as_str()).unwrap_or("-");
    let job = body.get("job_id").and_then(|job| job.as_str()).unwrap_or("-");
    output::line(&format!("{time}  {}  {job}  {}", message.routing_key, own_part(body)))
}

/// What is in a body besides what stands before it in the line.
fn own_part(body: &serde_json::Value) -> serde_json::Value {
    let mut own = body.get("detail").or_else(|| body.get("failure")).unwrap_or(body).clone();
    // Which letter it was, and why something was done with it, is what its event is read for.
    if let Some(own) = own.as_object_mut() {
        let of_letter = ["letter_id", "letter_host", "code", "requested_by", "reason"];
        if body.get("letter_id").is_some() {
            own.extend(of_letter.iter().filter_map(|name| Some(((*name).to_owned(), body.get(name)?.clone()))));
        }
    }
    own
}
