//! What replaying and discarding have in common: a look that freezes the selection, then each letter of it, and a line for each.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::select::{Selected, exit_of, selected};
use super::unread;
use crate::broker::Broker;
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::letters::{Deal, Dealt, Deed, Filter, Fingerprint, Letter, Strays, Summary, deal};

#[derive(Debug, Args)]
pub struct PerformArgs {
    /// All letters
    #[arg(long)]
    pub all: bool,
    /// Do nothing, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// No more than so many within a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    per_second: Option<u32>,
    /// Who wants it, for those who read the events
    #[arg(long, value_name = "WHO")]
    pub requested_by: Option<String>,
    /// What became of each letter as a JSON object a line
    #[arg(long)]
    json: bool,
}

/// Why a letter stays that was named by its id.
const SEVERAL: &str =
    "several letters have this id: `dead show` shows them; choose by `--run`, `--host` or `--code` as well";

/// What is done with letters.
pub struct Work<'w> {
    pub args: &'w PerformArgs,
    pub broker: &'w dyn Broker,
    pub filter: &'w Filter,
    /// Its word, as in `replayed`.
    pub done: &'static str,
    /// Which marks go whose letter is not there.
    pub strays: Strays,
    /// Why a letter stays that could be dealt with.
    pub spared: &'w dyn Fn(&Summary, &Filter) -> Option<String>,
    /// What is done with it, in words, or why nothing can be.
    pub plan: &'w dyn Fn(&Letter) -> Result<String, String>,
    /// What is to be published for it.
    pub deed: &'w dyn Fn(&Letter) -> Result<Deed, String>,
}

/// How many letters there were of each end.
#[derive(Default)]
struct Count {
    done: u64,
    kept: u64,
    failed: u64,
}

impl Work<'_> {
    pub async fn run(&self) -> Result<Exit, CliError> {
        let plan = |letter: &Letter| (letter.fingerprint(), (self.plan)(letter));
        let Selected { letters, filter, strays, look } = selected(self.broker, self.filter, plan).await?;
        let mut count = Count::default();
        if letters.is_empty() {
            // Nothing else would take marks away where no letters lie.
            let may_go = strays > 0 && !self.args.dry_run;
            if may_go && self.perform(BTreeMap::new(), &mut count).await? > 0 && filter.letters.is_empty() {
                return Ok(exit_of(look));
            }
            return Err(CliError::not_found("there is no such dead letter"));
        }
        let mut selection = BTreeMap::new();
        let missing = missing(&filter, letters.iter().map(|(summary, _)| summary));
        let ambiguous =
            ambiguous(&filter, letters.iter().map(|(summary, (fingerprint, _))| (&summary.letter_id, *fingerprint)));
        for (summary, (fingerprint, plan)) in letters {
            let several = ambiguous.contains(&summary.letter_id).then(|| SEVERAL.to_owned());
            match several.or_else(|| (self.spared)(&summary, &filter)).map_or(plan, Err) {
                Err(reason) => {
                    count.kept += 1;
                    self.tell(&summary.letter_id, "kept", &reason)?;
                }
                Ok(words) if self.args.dry_run => self.tell(&summary.letter_id, "would be", &words)?,
                Ok(words) => _ = selection.insert(fingerprint, words),
            }
        }
        if !selection.is_empty() {
            self.perform(selection, &mut count).await?;
        }
        Ok(match exit_of(look) {
            _ if count.failed > 0 => Exit::Failed,
            _ if missing > 0 => Exit::NotFound,
            Exit::Done if count.kept == 0 => Exit::Done,
            _ => Exit::Warnings,
        })
    }

    /// What was begun is finished, also after an interruption. Of each letter there are the words of what is done with it. Says how many
    /// marks went that were on no letter, and answers it.
    async fn perform(&self, planned: BTreeMap<Fingerprint, String>, count: &mut Count) -> Result<u64, CliError> {
        let stop = CancellationToken::new();
        let mut told = Ok(());
        let selection = planned.keys().copied().collect();
        let (deed, per_second, strays) = (self.deed, self.args.per_second, self.strays);
        let work = Deal { selection, deed, strays, per_second, stop: stop.clone() };
        let tell = |letter: &Letter, dealt: Dealt| {
            let (counted, word, words) = match dealt {
                Dealt::Gone => {
                    (&mut count.done, self.done, planned.get(&letter.fingerprint()).cloned().unwrap_or_default())
                }
                Dealt::Kept(reason) => (&mut count.kept, "kept", reason),
                Dealt::Failed(reason) => (&mut count.failed, "failed", reason),
            };
            *counted += 1;
            if let Err(error) = self.tell(letter.id(), word, &words) {
                // Nobody may be shown what is done from here on, so nothing more is.
                stop.cancel();
                told = Err(error);
            }
        };
        let mut interrupted = false;
        let dealt = {
            let working = deal(self.broker, work, tell);
            tokio::pin!(working);
            loop {
                tokio::select! {
                    dealt = &mut working => break dealt,
                    _ = tokio::signal::ctrl_c(), if !interrupted => {
                        interrupted = true;
                        stop.cancel();
                    }
                }
            }
        };
        let strays = match dealt {
            Ok(strays) => strays,
            Err(error) => return Err(unread(self.broker, error).await),
        };
        if strays > 0 {
            eprintln!("{strays} marks were taken away whose letters are there no more");
        }
        told?;
        if interrupted {
            Err(CliError::interrupted("interrupted; the other letters are where they were"))
        } else {
            Ok(strays)
        }
    }

    fn tell(&self, letter: &str, outcome: &str, words: &str) -> Result<(), CliError> {
        if self.args.json {
            return output::told_json(&json!({ "letter_id": letter, "outcome": outcome, "text": words }));
        }
        output::told(&format!("{letter}  {outcome:<9}  {words}"))
    }
}

/// How many were named that are not there, each told.
fn missing<'l>(filter: &Filter, letters: impl Iterator<Item = &'l Summary>) -> usize {
    let there: BTreeSet<_> = letters.map(|letter| &letter.letter_id).collect();
    let missing: Vec<_> = filter.letters.iter().filter(|id| !there.contains(id)).collect();
    missing.iter().for_each(|id| eprintln!("there is no such dead letter: `{}`", output::printable(id)));
    missing.len()
}

/// Of letters that were named, ids that several have: whoever looked at one of them has not seen the others.
fn ambiguous<'l>(filter: &Filter, letters: impl Iterator<Item = (&'l String, Fingerprint)>) -> BTreeSet<String> {
    let mut first = BTreeMap::new();
    let named = letters.filter(|(id, _)| filter.letters.contains(*id));
    named.filter(|(id, print)| *first.entry(*id).or_insert(*print) != *print).map(|(id, _)| id.clone()).collect()
}
