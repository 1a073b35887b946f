//! `longshore dead list`.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::select::{SelectArgs, Selected, exit_of, selected};
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Group, GroupBy, Summary, groups};

#[derive(Debug, Args)]
#[command(after_long_help = FIELDS)]
pub struct ListArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Count them by what they have in common, in place of listing them
    #[arg(long, value_name = "BY")]
    group_by: Option<By>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
const FIELDS: &str = "\
JSON, a letter: letter_id; time (when it was given up); host; kind; job_id; run; attempts; instance (uuid or name, as the job has it);
  repository; code; class (transient, permanent, bug); text; labels; doubt (why it is not believed, or null); superseded_by (a later run of
  the same job that is dead as well, or null); made_good_by (of a superseded letter the later success: job_id, run, time; or null).
With --group-by: key (null for those that do not say); count; made_good (how many of them are superseded); oldest; newest.
Fields may be added. What is null is not known, or is not so.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Code,
    Host,
    Kind,
    Instance,
    Repository,
}

pub fn run(args: &ListArgs) -> Result<Exit, CliError> {
    let Selected { letters, strays, look, .. } = block_on(async {
        let broker = connect(&args.select.config, "dead list")?;
        selected(broker.as_ref(), &args.select.filter(), |_| ()).await
    })?;
    let letters: Vec<_> = letters.iter().map(|(summary, ())| summary).collect();
    match args.group_by {
        Some(by) => {
            let groups = groups(letters.iter().copied(), by.into());
            groups.iter().try_for_each(|group| print_group(group, args.json))?;
        }
        None => letters.iter().try_for_each(|letter| print(letter, args.json))?,
    }
    if !args.json && !letters.is_empty() {
        output::line(&totals(&letters))?;
    }
    if !args.json && strays > 0 {
        output::line(&format!("{strays} marks of letters that are gone; they go with the next replay or discard"))?;
    }
    Ok(exit_of(look))
}

/// What a list comes to.
fn totals(letters: &[&Summary]) -> String {
    let hosts: BTreeSet<_> = letters.iter().filter_map(|letter| letter.host.as_ref()).collect();
    let codes: BTreeSet<_> = letters.iter().map(|letter| &letter.code).collect();
    let superseded = letters.iter().filter(|letter| letter.made_good_by.is_some()).count();
    let times = || letters.iter().filter_map(|letter| letter.time);
    let of = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let mut line = format!("{}, {}, {}", of(letters.len(), "letter"), of(hosts.len(), "host"), of(codes.len(), "code"));
    if superseded > 0 {
        line.push_str(&format!(", {superseded} superseded"));
    }
    if let (Some(oldest), Some(newest)) = (times().min(), times().max()) {
        line.push_str(&format!(", {} to {}", time(Some(oldest)), time(Some(newest))));
    }
    line
}

fn print_group(group: &Group, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_line(group);
    }
    let (oldest, newest) = (time(group.oldest), time(group.newest));
    let superseded = match group.made_good {
        0 => String::new(),
        count => format!("  [{count} superseded]"),
    };
    output::line(&format!("{:>7}  {oldest}  {newest}  {}{superseded}", group.count, or_dash(group.key.as_deref())))
}

fn print(letter: &Summary, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_line(letter);
    }
    let host = letter.host.as_ref().map_or("-", |host| host.as_str());
    let mut line = format!(
        "{}  {}  {}  {:<13}  {}  {}  {:<22}  {}",
        if letter.letter_id.is_empty() { "-" } else { &letter.letter_id },
        time(letter.time),
        host,
        or_dash(letter.kind.as_deref()),
        or_dash(letter.instance.as_deref()),
        letter.job_id.map_or_else(|| "-".to_owned(), |job| format!("{job}/{}", letter.run.unwrap_or_default())),
        letter.code,
        letter.text,
    );
    if let Some(run) = letter.superseded_by {
        line.push_str(&format!("  [run {run} of the job is dead as well]"));
    }
    if let Some(by) = &letter.made_good_by {
        line.push_str(&format!("  [superseded by {}/{} at {}]", by.job_id, by.run, time(Some(by.time))));
    }
    if let Some(doubt) = &letter.doubt {
        line.push_str(&format!("  [not believed: {doubt}]"));
    }
    output::line(&line)
}

fn or_dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| format!("{:<20}", "-"), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

impl From<By> for GroupBy {
    fn from(by: By) -> Self {
        match by {
            By::Code => GroupBy::Code,
            By::Host => GroupBy::Host,
            By::Kind => GroupBy::Kind,
            By::Instance => GroupBy::Instance,
            By::Repository => GroupBy::Repository,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::broker::Properties;
    use crate::letters::Letter;

    #[test]
    fn the_help_names_every_field_of_the_json() {
        let letter = Letter::read("a.b.c".to_owned(), false, Properties::default(), Vec::new());
        let summary = Summary::of(&letter);
        for printed in [
            serde_json::to_value(&summary).unwrap(),
            serde_json::to_value(&groups([&summary], GroupBy::Code)[0]).unwrap(),
        ] {
            for name in printed.as_object().unwrap().keys() {
                let is_named = FIELDS.split(|c: char| !(c.is_ascii_alphabetic() || c == '_')).any(|word| word == name);
                assert!(is_named, "`{name}` is not in the help");
            }
        }
    }
}
