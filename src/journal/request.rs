//! What the journal's handles ask of its writer.

use jiff::Timestamp;
use serde_json::Value;

use super::entry::{Admission, Draft, Keep, Pruned, Settlement, Taken};
use super::letters::LettersAtEnd;
use crate::model::job::RunKey;
use crate::saga::Record;

/// One change.
pub(super) enum Request {
    Take(Box<Taken>),
    Start { key: RunKey, rows: Vec<Draft> },
    Record { key: RunKey, attempt: u32, record: Record },
    Keep { key: RunKey, name: String, value: Value },
    CutOff { key: RunKey, attempt: u32 },
    Settle { key: RunKey, attempt: u32, settlement: Settlement, rows: Vec<Draft>, letters: LettersAtEnd },
    Post { key: Option<RunKey>, rows: Vec<Draft> },
    Announce { key: RunKey },
    Progress { key: RunKey, attempt: u32, row: Draft },
    Delivered { ids: Vec<i64> },
    Tombstone { key: RunKey, until: Timestamp, reason: Value },
    KeepOfHost { name: &'static str, value: Option<Value>, rows: Vec<Draft> },
    Prune { now: Timestamp, keep: Keep },
    KeepLeftOvers { left_overs: Vec<(String, Value)> },
    DropLeftOvers { names: Vec<String> },
}

impl Request {
    /// The run whose row has to be known to decide on it.
    pub(super) fn key(&self) -> Option<RunKey> {
        match self {
            Request::Take(taken) => Some(taken.key),
            Request::Start { key, .. }
            | Request::Record { key, .. }
            | Request::Keep { key, .. }
            | Request::CutOff { key, .. }
            | Request::Settle { key, .. }
            | Request::Announce { key }
            | Request::Progress { key, .. } => Some(*key),
            Request::Post { key, .. } => *key,
            Request::Delivered { .. }
            | Request::Tombstone { .. }
            | Request::KeepOfHost { .. }
            | Request::Prune { .. }
            | Request::KeepLeftOvers { .. }
            | Request::DropLeftOvers { .. } => None,
        }
    }
}

/// What came of it, once it is durable.
#[derive(Debug)]
pub(super) enum Answer {
    Written,
    Admission(Admission),
    Attempt(u32),
    CutOffs(u32),
    Kept(Value),
    Pruned(Pruned),
}
