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
use crate::failure::Class;
use crate::letters::{Filter, LETTERS_MAX, Letter, Look, Summary, look, mark_superseded};
use crate::model::id::{HostId, JobId};

#[derive(Debug, Args)]
pub struct SelectArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Letters, by the ids that `dead list` prints
    #[arg(value_name = "LETTER")]
    letters: Vec<String>,
    /// Of this job; may be repeated, as those that follow
    #[arg(long, value_name = "UUID")]
    job: Vec<JobId>,
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
    /// Given up at this moment or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Given up before this moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
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
            jobs: self.job.iter().copied().collect(),
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

/// Letters that are meant, and whether more were not looked at.
pub struct Selected<T> {
    pub letters: Vec<(Summary, T)>,
    pub look: Look,
}

/// More letters than one look goes through: said, and told by the exit status.
pub fn exit_of(look: Look) -> Exit {
    match look {
        Look::Whole => Exit::Done,
        Look::CutOff => {
            eprintln!("there are more than {LETTERS_MAX} letters; those after them were not looked at");
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
    let see = |letter: Letter| {
        let summary = Summary::of(&letter);
        if filter.takes(&summary) {
            made.insert(summaries.len(), also(&letter));
        }
        summaries.push(summary);
        ControlFlow::Continue(())
    };
    let look = look(broker, see).await.map_err(unread)?;
    mark_superseded(&mut summaries);
    let selected = summaries.into_iter().enumerate();
    let letters = selected.filter_map(|(place, summary)| Some((summary, made.remove(&place)?))).collect();
    Ok(Selected { letters, look })
}
