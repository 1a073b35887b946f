//! `longshore dead list`.

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::select::{SelectArgs, Selected, exit_of, selected};
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Group, GroupBy, Summary, groups};

#[derive(Debug, Args)]
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Code,
    Host,
    Kind,
    Instance,
    Repository,
}

pub fn run(args: &ListArgs) -> Result<Exit, CliError> {
    let Selected { letters, look } = block_on(async {
        let broker = connect(&args.select.config, "dead list")?;
        selected(broker.as_ref(), &args.select.filter(), |_| ()).await
    })?;
    let letters = letters.iter().map(|(summary, ())| summary);
    match args.group_by {
        Some(by) => groups(letters, by.into()).iter().try_for_each(|group| print_group(group, args.json))?,
        None => letters.into_iter().try_for_each(|letter| print(letter, args.json))?,
    }
    Ok(exit_of(look))
}

fn print_group(group: &Group, json: bool) -> Result<(), CliError> {
    if json {
        return output::json_line(group);
    }
    let (oldest, newest) = (time(group.oldest), time(group.newest));
    output::line(&format!("{:>7}  {oldest}  {newest}  {}", group.count, or_dash(group.key.as_deref())))
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
