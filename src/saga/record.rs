//! What a saga writes down, and the pure fold from its records to where it stands.
//!
//! The fold refuses a sequence that the engine can't have written, so that a damaged log is seen before anything is undone
//! because of it. Every prefix of a legal sequence is legal: a crash may cut it anywhere.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;

/// The shape of a step that has a way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A lasting thing.
    Make,
    /// A held thing.
    Hold,
}

/// One line of a saga's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
#[allow(
    missing_docs,
    reason = "the fields say the same in every variant: which step, what it returned, what went wrong"
)]
pub enum Record {
    /// The effect may happen from now on.
    Began { step: String, shape: Shape },
    /// The effect happened.
    Done { step: String, value: Value },
    /// Something went wrong before the commit, or the commit did not happen: from here on it unwinds.
    Failed { failure: Failure },
    /// A stop was asked for before the commit: from here on it unwinds.
    Stopped { failure: Failure },
    /// The undo of a made thing may happen from now on.
    Undoing { step: String },
    /// It happened.
    Undone { step: String },
    /// It did not work, for the last time.
    UndoFailed { step: String, failure: Failure },
    /// The release of a held thing may happen from now on.
    Releasing { step: String },
    /// It happened.
    Released { step: String },
    /// It did not work, for the last time.
    ReleaseFailed { step: String, failure: Failure },
    /// The commit may happen from now on.
    Committing { step: String },
    /// It happened.
    Committed { value: Value },
    /// It could not be found out whether it happened: from here on, only releases.
    CommitUnknown { failure: Failure },
    /// A step after the commit went wrong.
    Warned { failure: Failure },
    /// So did this one, and what it was to remove is still there.
    LeftOver { step: String, failure: Failure },
}

impl Record {
    /// What the effect of a step returned, if the records say that it happened and it can be read as that.
    pub fn done_value<T: DeserializeOwned>(records: &[Record], wanted: &str) -> Option<T> {
        records.iter().find_map(|record| match record {
            Record::Done { step, value } if step == wanted => T::deserialize(value).ok(),
            _ => None,
        })
    }

    /// Whether it is about giving back what was taken.
    pub fn is_of_way_back(&self) -> bool {
        use Record::{ReleaseFailed, Released, Releasing, UndoFailed, Undoing, Undone};
        matches!(
            self,
            Undoing { .. }
                | Undone { .. }
                | UndoFailed { .. }
                | Releasing { .. }
                | Released { .. }
                | ReleaseFailed { .. }
        )
    }
}

/// How far a step that was begun is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// May have happened.
    Begun,
    /// Happened.
    Done,
    /// Being undone or released.
    Leaving,
    /// Could not be undone or released or, after the commit, done.
    LeftOver(Failure),
}

/// A step that was begun and not taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its name.
    pub step: String,
    /// Its shape.
    pub shape: Shape,
    /// What its effect returned, if that is known.
    pub value: Option<Value>,
    /// How far it is.
    pub stage: Stage,
}

/// Whether the commit happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CommitState {
    /// It did not.
    #[default]
    NotYet,
    /// It may have.
    Begun,
    /// It was looked for and could not be found out.
    Unknown,
    /// It did, and returned this.
    Committed(Value),
}

/// Why a saga unwinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fall {
    /// Something went wrong.
    Failed(Failure),
    /// It was asked to stop.
    Stopped(Failure),
    /// It could not be found out whether the commit happened.
    Unknown(Failure),
}

/// Where a saga stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    open: Vec<Open>,
    names: BTreeSet<String>,
    commit: CommitState,
    fall: Option<Fall>,
    warnings: Vec<Failure>,
}

/// A record that can't follow the ones before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record `{record}` cannot follow the {before} records before it")]
pub struct IllegalRecord {
    record: String,
    before: usize,
}

impl Progress {
    /// Where the saga that wrote these records stands.
    pub fn fold(records: &[Record]) -> Result<Progress, IllegalRecord> {
        let mut progress = Progress::default();
        for (before, record) in records.iter().enumerate() {
            if !progress.apply(record) {
                return Err(IllegalRecord { record: format!("{record:?}"), before });
            }
        }
        Ok(progress)
    }

    /// Takes one more record; false, and nothing changed, if it can't follow.
    #[must_use]
    pub fn apply(&mut self, record: &Record) -> bool {
        match record {
            Record::Began { step, shape } => self.begin(step, *shape),
            Record::Done { step, value } => self.done(step, value),
            Record::Failed { failure } => self.fall_back(Fall::Failed(failure.clone())),
            Record::Stopped { failure } => {
                self.commit == CommitState::NotYet && self.fall_back(Fall::Stopped(failure.clone()))
            }
            Record::Undoing { step } => self.leave(step, Shape::Make),
            Record::Releasing { step } => self.leave(step, Shape::Hold),
            Record::Undone { step } => self.left(step, Shape::Make, None),
            Record::Released { step } => self.left(step, Shape::Hold, None),
            Record::UndoFailed { step, failure } => self.left(step, Shape::Make, Some(failure)),
            Record::ReleaseFailed { step, failure } => self.left(step, Shape::Hold, Some(failure)),
            Record::Committing { step } => {
                let legal = self.may_begin() && self.names.insert(step.clone());
                if legal {
                    self.commit = CommitState::Begun;
                }
                legal
            }
            Record::Committed { value } => self.settle_commit(CommitState::Committed(value.clone()), None),
            Record::CommitUnknown { failure } => {
                self.settle_commit(CommitState::Unknown, Some(Fall::Unknown(failure.clone())))
            }
            Record::Warned { failure } => {
                let legal = self.is_committed();
                if legal {
                    self.warnings.push(failure.clone());
                }
                legal
            }
            Record::LeftOver { step, failure } => self.leave_over(step, failure),
        }
    }

    /// Steps begun and not taken back, in the order in which they were begun.
    pub fn open(&self) -> &[Open] {
        &self.open
    }

    /// The open step of that name.
    pub fn open_step(&self, step: &str) -> Option<&Open> {
        self.open.iter().find(|open| open.step == step)
    }

    /// Whether the commit happened.
    pub fn commit(&self) -> &CommitState {
        &self.commit
    }

    /// Why it unwinds, if it does.
    pub fn fall(&self) -> Option<&Fall> {
        self.fall.as_ref()
    }

    /// What went wrong after the commit.
    pub fn warnings(&self) -> &[Failure] {
        &self.warnings
    }

    /// Whether the commit is known to have happened.
    pub fn is_committed(&self) -> bool {
        matches!(self.commit, CommitState::Committed(_))
    }

    /// Before the commit nothing begins unless all before it was done.
    fn may_begin(&self) -> bool {
        let all_done = self.open.iter().all(|open| open.stage == Stage::Done);
        self.commit == CommitState::NotYet && self.fall.is_none() && all_done
    }

    fn begin(&mut self, step: &str, shape: Shape) -> bool {
        let now = match self.commit {
            CommitState::NotYet => self.may_begin(),
            CommitState::Committed(_) => shape == Shape::Make,
            CommitState::Begun | CommitState::Unknown => false,
        };
        let legal = now && self.names.insert(step.to_owned());
        if legal {
            self.open.push(Open { step: step.to_owned(), shape, value: None, stage: Stage::Begun });
        }
        legal
    }

    fn done(&mut self, step: &str, value: &Value) -> bool {
        let falling = self.fall.is_some();
        match self.open.iter_mut().find(|open| open.step == step && open.stage == Stage::Begun) {
            Some(open) if !falling => {
                open.value = Some(value.clone());
                open.stage = Stage::Done;
                true
            }
            _ => false,
        }
    }

    fn fall_back(&mut self, fall: Fall) -> bool {
        let legal = match self.commit {
            CommitState::NotYet | CommitState::Begun => self.fall.is_none(),
            CommitState::Unknown => true,
            CommitState::Committed(_) => false,
        };
        if legal {
            self.commit = CommitState::NotYet;
            self.fall = Some(fall);
        }
        legal
    }

    fn settle_commit(&mut self, commit: CommitState, fall: Option<Fall>) -> bool {
        let legal = matches!(self.commit, CommitState::Begun | CommitState::Unknown);
        if legal {
            self.commit = commit;
            self.fall = fall;
        }
        legal
    }

    fn leave(&mut self, step: &str, shape: Shape) -> bool {
        let undoing = self.commit == CommitState::NotYet && self.fall.is_some();
        let releasing = shape == Shape::Hold && self.commit != CommitState::Begun;
        let Some(place) = self.open.iter().position(|open| open.step == step && open.shape == shape) else {
            return false;
        };
        let in_turn = self
            .open
            .iter()
            .skip(place + 1)
            .all(|later| matches!(later.stage, Stage::LeftOver(_)) || (!undoing && later.shape == Shape::Make));
        let Some(open) = self.open.get_mut(place) else { return false };
        let known = undoing || self.fall.is_some() || open.stage != Stage::Begun;
        let legal = (undoing || releasing) && in_turn && known;
        if legal {
            open.stage = Stage::Leaving;
        }
        legal
    }

    fn leave_over(&mut self, step: &str, failure: &Failure) -> bool {
        let committed = self.is_committed();
        let begun = |open: &&mut Open| open.step == step && open.shape == Shape::Make && open.stage == Stage::Begun;
        let Some(open) = self.open.iter_mut().find(begun).filter(|_| committed) else { return false };
        open.stage = Stage::LeftOver(failure.clone());
        self.warnings.push(failure.clone());
        true
    }

    fn left(&mut self, step: &str, shape: Shape, failure: Option<&Failure>) -> bool {
        let leaving = |open: &Open| open.step == step && open.shape == shape && open.stage == Stage::Leaving;
        let Some(place) = self.open.iter().position(leaving) else { return false };
        match (failure, self.open.get_mut(place)) {
            (Some(failure), Some(open)) => {
                open.stage = Stage::LeftOver(failure.clone());
                if self.is_committed() {
                    self.warnings.push(failure.clone());
                }
            }
            _ => drop(self.open.remove(place)),
        }
        true
    }
}
