//! Which letters a command means, and one look at them.

use std::collections::HashMap;
use std::ops::ControlFlow;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::unread;
use crate::broker::Broker;
use crate::cli::ConfigArgs;
use crate::cli::exit::Exit;
use crate::cli::output::CliError;
use crate::cli::publish::pair;
use crate::cli::when::past;
use crate::failure::Class;
use crate::letters::{Filter, LETTERS_MAX, Letter, Look, Marks, NAME_CHARACTERS_MIN, Summary, look, mark_superseded};
use crate::model::id::{HostId, JobId};

#[derive(Debug, Args)]
pub struct SelectArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Letters, by the ids that `dead list` prints, or by the first or last characters of one, 6 or more, that no other has
    #[arg(value_name = "LETTER")]
    letters: Vec<String>,
    /// Of this job, by its id or so much of either end as no other one has; may be repeated, as those that follow
    #[arg(long, value_name = "UUID", value_parser = job_name)]
    job: Vec<String>,
    /// Of this run of the job
    #[arg(long, value_name = "N")]
    run: Vec<u32>,
    /// Of this kind of job
    #[arg(long)]
    kind: Vec<String>,
    /// Given up by this host
    #[arg(long)]
    host: Vec<HostId>,
    /// About this instance, by uuid or name, whichever the job has
    #[arg(long)]
    instance: Vec<String>,
    /// That use this repository
    #[arg(long, value_name = "UUID")]
    repository: Vec<String>,
    /// That failed with this code
    #[arg(long)]
    code: Vec<String>,
    /// Whether trying again can help
    #[arg(long)]
    class: Option<Classes>,
    /// With this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Given up at this moment or later: RFC 3339, or how long ago (`90m`, `2h`, `3d`)
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<Timestamp>,
    /// Given up before this moment: RFC 3339, or how long ago
    #[arg(long, value_name = "TIME", value_parser = past)]
    until: Option<Timestamp>,
    /// Those that a later success of the same kind, instance, repository, schedule and wish, or of a later run of the same job, has superseded
    #[arg(long)]
    superseded: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Classes {
    Transient,
    Permanent,
    Bug,
}

impl SelectArgs {
    pub fn filter(&self) -> Filter {
        Filter {
            letters: self.letters.iter().cloned().collect(),
            jobs: self.job.iter().cloned().collect(),
            whole: false,
            runs: self.run.iter().copied().collect(),
            kinds: self.kind.iter().cloned().collect(),
            hosts: self.host.iter().cloned().collect(),
            instances: self.instance.iter().cloned().collect(),
            repositories: self.repository.iter().cloned().collect(),
            codes: self.code.iter().cloned().collect(),
            class: self.class.map(|class| match class {
                Classes::Transient => Class::Transient,
                Classes::Permanent => Class::Permanent,
                Classes::Bug => Class::Bug,
            }),
            labels: self.label.iter().cloned().collect(),
            since: self.since,
            until: self.until,
            superseded: self.superseded,
        }
    }

    /// For what changes something: all letters are meant only where that is said.
    pub fn filter_or_all(&self, all: bool) -> Result<Filter, CliError> {
        let filter = self.filter();
        match (filter.is_open(), all) {
            (true, false) => Err(CliError::usage("name letters or what they have in common, or say `--all`")),
            (false, true) => Err(CliError::usage("`--all` leaves no choice: leave it out, or what chooses")),
            _ => Ok(filter),
        }
    }
}

/// What stands for a job's id.
fn job_name(text: &str) -> Result<String, String> {
    // As it is printed, however it is typed.
    if let Ok(job) = text.parse::<JobId>() {
        return Ok(job.to_string());
    }
    let could_be =
        text.chars().count() >= NAME_CHARACTERS_MIN && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
    if could_be {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("it is neither a uuid nor {NAME_CHARACTERS_MIN} or more characters of one"))
    }
}

/// Letters that are meant, and what else one look has shown.
pub struct Selected<T> {
    pub letters: Vec<(Summary, T)>,
    /// The filter with whole ids.
    pub filter: Filter,
    /// Marks on letters that are there no more.
    pub strays: usize,
    /// Whether more were not looked at.
    pub look: Look,
}

/// More letters than one look goes through: said, and told by the exit status.
pub fn exit_of(look: Look) -> Exit {
    match look {
        Look::Whole => Exit::Done,
        Look::CutOff => {
            eprintln!(
                "there are more than {LETTERS_MAX} letters, or too many marks among them; those after them were not looked at"
            );
            Exit::Warnings
        }
    }
}

/// One look at all letters: those that are meant, each with what `also` makes of it.
pub async fn selected<T>(
    broker: &dyn Broker,
    filter: &Filter,
    also: impl Fn(&Letter) -> T,
) -> Result<Selected<T>, CliError> {
    let mut summaries = Vec::new();
    let mut made = HashMap::new();
    let mut marks = Marks::default();
    let see = |letter: Letter| {
        if let Some(letter) = marks.take(letter) {
            let summary = Summary::of(&letter);
            if filter.takes(&summary) {
                made.insert(summaries.len(), also(&letter));
            }
            summaries.push(summary);
        }
        ControlFlow::Continue(())
    };
    let look = match look(broker, see).await {
        Ok(look) => look,
        Err(error) => return Err(unread(broker, error).await),
    };
    mark_superseded(&mut summaries);
    let strays = marks.put(&mut summaries);
    let filter = filter.resolved(&summaries).map_err(CliError::usage)?;
    let meant = |letter: &Summary| filter.takes(letter) && (!filter.superseded || letter.made_good_by.is_some());
    let selected = summaries.into_iter().enumerate().filter(|(_, summary)| meant(summary));
    let letters = selected.filter_map(|(place, summary)| Some((summary, made.remove(&place)?))).collect();
    Ok(Selected { letters, filter, strays, look })
}
