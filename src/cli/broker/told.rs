//! What a setup tells: a line for each thing that it looks at, does and tries out, and last of all one line for the whole; for
//! people, or as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::probes::Tried;
use crate::broker::setup::apply::Server;
use crate::broker::setup::look::Found;
use crate::broker::setup::step::Step;
use crate::broker::setup::version::ServerVersion;
use crate::cli::output::{self, CliError};

/// In which form.
#[derive(Clone, Copy, Debug)]
pub struct Teller {
    /// A JSON object a line.
    pub json: bool,
    /// Nothing is done: what would be is told.
    pub dry_run: bool,
}

impl Teller {
    /// The server, and how its version is known.
    pub fn server(&self, server: Server, vhost: &str, how: &str) -> Result<(), CliError> {
        let object = json!({ "server_version": server.version.to_string(), "how": how });
        self.tell(&object, || format!("RabbitMQ {} ({how}), virtual host `{vhost}`", server.version))
    }

    /// A step that was looked at, and done where it had to be.
    pub fn step(&self, step: &Step, found: Found) -> Result<(), CliError> {
        let state = match (found, self.dry_run) {
            (Found::AsWanted, _) => "is so",
            (Found::Missing, false) => "made",
            (Found::Otherwise, false) => "changed",
            (Found::Missing, true) => "make",
            (Found::Otherwise, true) => "change",
        };
        self.step_in(step, state)
    }

    /// A step in a word for what is to become of it.
    pub fn step_in(&self, step: &Step, state: &str) -> Result<(), CliError> {
        let object = json!({ "step": step.kind(), "what": step.to_string(), "state": state.replace(' ', "_") });
        self.tell(&object, || format!("{state:<8} {step}"))
    }

    /// Something that an operator should know.
    pub fn note(&self, text: &str) -> Result<(), CliError> {
        self.tell(&json!({ "note": text }), || format!("{:<8} {text}", "note"))
    }

    /// What was tried out: for people one line a user.
    pub fn tried(&self, tried: &[Tried], version: ServerVersion) -> Result<(), CliError> {
        if self.json {
            tried.iter().try_for_each(output::json_line)?;
        } else {
            let mut rest = tried;
            while let [first, ..] = rest {
                let (of_user, others) = rest.split_at(rest.iter().take_while(|one| one.user == first.user).count());
                output::line(&format!("{:<8} {}: {}", "tried", first.user, Score::of(of_user)))?;
                rest = others;
            }
        }
        if tried.iter().any(Tried::is_known_gap) {
            self.note(&format!(
                "RabbitMQ {version} is known to let hosts and letter operators copy messages to keys of others (CC, until {}): \
                 Longshore's readers look for themselves, and other readers of events have to",
                ServerVersion::CHECKS_FURTHER_KEYS
            ))?;
        }
        Ok(())
    }

    /// The last line.
    pub fn sum(&self, sum: &Sum) -> Result<(), CliError> {
        self.tell(&sum.object(), || if self.dry_run { sum.counts.planned() } else { sum.to_string() })
    }

    fn tell(&self, object: &Value, line: impl FnOnce() -> String) -> Result<(), CliError> {
        if self.json { output::json_line(object) } else { output::line(&line()) }
    }
}

/// How much was to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    made: usize,
    changed: usize,
    unchanged: usize,
}

impl Counts {
    /// Counts one step.
    pub fn add(&mut self, found: Found) {
        match found {
            Found::AsWanted => self.unchanged += 1,
            Found::Missing => self.made += 1,
            Found::Otherwise => self.changed += 1,
        }
    }

    fn planned(&self) -> String {
        let Self { made, changed, unchanged } = self;
        format!("nothing was done: {made} to make, {changed} to change, {unchanged} are so")
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { made, changed, unchanged } = self;
        match (made, changed) {
            (0, 0) => write!(f, "nothing was changed: all {unchanged} are so"),
            _ => write!(f, "{made} made, {changed} changed, {unchanged} were so"),
        }
    }
}

/// How many of the things that were tried are as they should be. A known gap of older brokers is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    good: usize,
    bad: usize,
    untried: usize,
}

impl Score {
    /// Counts.
    pub fn of(tried: &[Tried]) -> Self {
        let count = |wanted: fn(&Tried) -> bool| tried.iter().filter(|one| wanted(one)).count();
        let (bad, untried) = (count(Tried::is_bad), count(|one| !one.is_tried()));
        Self { good: tried.len().saturating_sub(bad + untried), bad, untried }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { good, bad, untried } = self;
        write!(f, "{good} of {} as they should be", good + bad)?;
        if *untried == 0 { Ok(()) } else { write!(f, ", {untried} not tried") }
    }
}

/// What came of trying things out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Trial {
    /// It was not asked for.
    Skipped,
    /// It could not be done, or not to its end.
    BrokenOff,
    /// Something is not as it should be.
    Failed(Score),
    /// Nothing is.
    Passed(Score),
}

impl Trial {
    /// The trial of all that was tried.
    pub fn of(tried: &[Tried]) -> Self {
        let score = Score::of(tried);
        if score.bad == 0 { Self::Passed(score) } else { Self::Failed(score) }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trial::Skipped => write!(f, "nothing was tried out"),
            Trial::BrokenOff => write!(f, "trying it out broke off"),
            Trial::Failed(score) => write!(f, "tried out and FAILED: {score}"),
            Trial::Passed(score) => write!(f, "tried out and passed: {score}"),
        }
    }
}

/// A setup in one line.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// What was to do.
    pub counts: Counts,
    /// Settings that lose messages.
    pub harms: usize,
    /// What came of trying it out.
    pub trial: Trial,
}

impl Sum {
    fn object(&self) -> Value {
        let Self { counts: Counts { made, changed, unchanged }, harms, trial } = self;
        json!({ "made": made, "changed": changed, "unchanged": unchanged, "harms": harms, "probes": trial })
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.counts, self.trial)?;
        if self.harms == 0 { Ok(()) } else { write!(f, "; messages are LOST: {} notes say how", self.harms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(made: usize, harms: usize, trial: Trial) -> Sum {
        Sum { counts: Counts { made, changed: 0, unchanged: 4 }, harms, trial }
    }

    #[test]
    fn the_last_line_says_whether_what_was_tried_out_passed() {
        let good = Score { good: 24, bad: 0, untried: 0 };
        let bad = Score { good: 20, bad: 3, untried: 1 };
        for (sum, line) in [
            (
                sum(2, 0, Trial::Passed(good)),
                "2 made, 0 changed, 4 were so; tried out and passed: 24 of 24 as they should be",
            ),
            (
                sum(0, 0, Trial::Failed(bad)),
                "nothing was changed: all 4 are so; tried out and FAILED: 20 of 23 as they should be, 1 not tried",
            ),
            (sum(0, 0, Trial::Skipped), "nothing was changed: all 4 are so; nothing was tried out"),
            (
                sum(1, 2, Trial::BrokenOff),
                "1 made, 0 changed, 4 were so; trying it out broke off; messages are LOST: 2 notes say how",
            ),
        ] {
            assert_eq!(sum.to_string(), line);
        }
        assert_eq!(sum(2, 0, Trial::Skipped).counts.planned(), "nothing was done: 2 to make, 0 to change, 4 are so");
    }

    #[test]
    fn programs_find_the_same_in_the_last_object() {
        let told = sum(2, 1, Trial::Failed(Score { good: 1, bad: 2, untried: 0 })).object();
        let wanted = json!({
            "made": 2, "changed": 0, "unchanged": 4, "harms": 1,
            "probes": { "state": "failed", "good": 1, "bad": 2, "untried": 0 },
        });
        assert_eq!(told, wanted);
        assert_eq!(sum(0, 0, Trial::Skipped).object()["probes"], json!({ "state": "skipped" }));
    }
}
