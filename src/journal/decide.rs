//! What each request changes, decided from the rows that were read for its group. Pure: reads and writes nothing, so that a
//! group costs one reading and a few writings, however many requests are in it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::batch::{Batch, NewOutboxRow};
use super::entry::{Admission, Counted, Draft, MessageKind, Place, Pruned, RunState, Settlement, Taken};
use super::letters::WrittenLetter;
use super::request::{Answer, Request};
use crate::failure::{Code, Failure};
use crate::model::id::{EventId, RepositoryId};
use crate::model::job::{JobKind, RunKey};

/// A run as its row says.
#[derive(Clone, Debug)]
pub(super) struct RunRow {
    pub(super) id: i64,
    pub(super) key: RunKey,
    pub(super) kind: JobKind,
    pub(super) instance: String,
    pub(super) repository_id: RepositoryId,
    pub(super) urgent: bool,
    pub(super) digest: Vec<u8>,
    pub(super) accepted_at: Timestamp,
    pub(super) state: RunState,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    pub(super) crashes: u32,
    pub(super) sequence: u64,
}

/// Numbers that are never given twice while the worker lives, whatever becomes of the rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NextIds {
    pub(super) run: i64,
    pub(super) outbox: i64,
}

/// What was read for a group, changed by each of its requests in turn.
#[derive(Default)]
pub(super) struct View {
    pub(super) ids: NextIds,
    /// Every run of each job that the group mentions.
    pub(super) runs: BTreeMap<RunKey, RunRow>,
    pub(super) tombstones: BTreeMap<RunKey, Value>,
    pub(super) kept: BTreeMap<(RunKey, String), Value>,
    /// Jobs, as their rows name them, with a run that could not be read.
    pub(super) unreadable_jobs: BTreeMap<String, Failure>,
    /// Runs of which something that was kept could not be read.
    pub(super) unreadable_kept: BTreeMap<RunKey, Failure>,
}

impl View {
    /// Decides on one request. An error changes nothing. `pruned` is what the group took away, if it was asked to.
    pub(super) fn decide(&mut self, request: Request, pruned: Pruned, batch: &mut Batch) -> Result<Answer, Failure> {
        if !self.unreadable_jobs.is_empty()
            && let Some(key) = request.key()
            && let Some(failure) = self.unreadable_jobs.get(&key.job_id.to_string())
        {
            return Err(failure.clone());
        }
        match request {
            Request::Take(taken) => Ok(Answer::Admission(self.take(*taken, batch))),
            Request::Start { key, rows } => self.start(key, rows, batch).map(Answer::Attempt),
            Request::Record { key, attempt, record } => {
                let id = self.running(key, attempt)?.id;
                let record = serde_json::to_string(&record).map_err(|error| not_encoded("record", &error))?;
                batch.records.push((id, attempt, record));
                Ok(Answer::Written)
            }
            Request::Keep { key, name, value } => self.keep(key, name, value, batch).map(Answer::Kept),
            Request::CutOff { key, attempt } => {
                let run = self.running(key, attempt)?;
                run.crashes += 1;
                let (id, crashes) = (run.id, run.crashes);
                batch.changed.insert(id, key);
                Ok(Answer::CutOffs(crashes))
            }
            Request::Settle { key, attempt, settlement, rows, letters } => {
                let at = match &settlement {
                    Settlement::Ended { at, .. } => Some(*at),
                    Settlement::Waiting { .. } => None,
                };
                let letter_id = self.settle(key, attempt, settlement, rows, batch)?;
                let letter = letter_id.map(|letter_id| WrittenLetter { key, letter_id });
                let written = letter.zip(letters.written).zip(at);
                batch.letters.written.extend(written.map(|((letter, subject), at)| (letter, subject, at)));
                batch.letters.superseded.extend(letters.superseded);
                Ok(Answer::Written)
            }
            Request::Post { key, rows } => {
                if let Some(key) = key {
                    self.run(key)?;
                }
                self.post(key, rows, batch);
                Ok(Answer::Written)
            }
            Request::Announce { key } => {
                let id = self.run(key)?.id;
                self.announce(id, batch);
                Ok(Answer::Written)
            }
            Request::Progress { key, attempt, row } => {
                self.running(key, attempt)?;
                self.post(Some(key), vec![row], batch);
                Ok(Answer::Written)
            }
            Request::Delivered { ids } => {
                batch.delivered.extend(ids);
                Ok(Answer::Written)
            }
            Request::Tombstone { key, until, reason } => {
                batch.tombstones.push((key, until, reason.to_string()));
                self.tombstones.insert(key, reason);
                Ok(Answer::Written)
            }
            Request::KeepOfHost { name, value, rows } => {
                batch.of_host.insert(name, value.map(|value| value.to_string()));
                self.post(None, rows, batch);
                Ok(Answer::Written)
            }
            Request::Prune { .. } => Ok(Answer::Pruned(pruned)),
            Request::KeepLeftOvers { left_overs } => {
                for (name, value) in left_overs {
                    batch.left_overs.insert(name, Some(value.to_string()));
                }
                Ok(Answer::Written)
            }
            Request::DropLeftOvers { names } => {
                batch.left_overs.extend(names.into_iter().map(|name| (name, None)));
                Ok(Answer::Written)
            }
        }
    }

    fn take(&mut self, taken: Taken, batch: &mut Batch) -> Admission {
        let digest = blake3::hash(&taken.message.body).as_bytes().to_vec();
        if let Some(known) = self.runs.get(&taken.key) {
            if known.digest != digest {
                return Admission::BodyDiffers;
            }
            let (id, state) = (known.id, known.state.clone());
            self.announce(id, batch);
            return Admission::Duplicate { state };
        }
        let runs_of_job = RunKey { run: 0, ..taken.key }..=RunKey { run: u32::MAX, ..taken.key };
        if let Some((highest, _)) = self.runs.range(runs_of_job).next_back()
            && highest.run > taken.key.run
        {
            return Admission::Superseded { known_run: highest.run };
        }
        let row = RunRow {
            id: self.ids.run,
            key: taken.key,
            kind: taken.kind,
            instance: taken.instance,
            repository_id: taken.repository_id,
            urgent: taken.urgent,
            digest,
            accepted_at: taken.accepted_at,
            state: RunState::Waiting { not_before: None, held: false },
            ended_at: None,
            attempt: 0,
            failures: 0,
            crashes: 0,
            sequence: 0,
        };
        self.ids.run += 1;
        batch.messages.push((row.id, taken.message));
        batch.changed.insert(row.id, taken.key);
        self.runs.insert(taken.key, row);
        self.post(Some(taken.key), taken.rows, batch);
        match self.tombstones.get(&taken.key) {
            Some(reason) => Admission::Tombstoned { reason: reason.clone() },
            None => Admission::New,
        }
    }

    /// Sends the run's last state event once more.
    fn announce(&mut self, id: i64, batch: &mut Batch) {
        batch.announced.push((id, self.ids.outbox));
        self.ids.outbox += 1;
    }

    fn start(&mut self, key: RunKey, rows: Vec<Draft>, batch: &mut Batch) -> Result<u32, Failure> {
        let run = self.run(key)?;
        if !matches!(run.state, RunState::Waiting { .. }) {
            return Err(out_of_turn(key, "start an attempt of a run that is not waiting"));
        }
        run.state = RunState::Running;
        run.attempt += 1;
        run.sequence = 0;
        let (id, attempt) = (run.id, run.attempt);
        batch.changed.insert(id, key);
        self.post(Some(key), rows, batch);
        Ok(attempt)
    }

    fn keep(&mut self, key: RunKey, name: String, value: Value, batch: &mut Batch) -> Result<Value, Failure> {
        if let Some(failure) = self.unreadable_kept.get(&key) {
            return Err(failure.clone());
        }
        let id = self.run(key)?.id;
        let kept = self.kept.entry((key, name)).or_insert_with_key(|(_, name)| {
            batch.kept.push((id, name.clone(), value.to_string()));
            value
        });
        Ok(kept.clone())
    }

    /// Answers the id of the letter among the rows, if there is one.
    fn settle(
        &mut self,
        key: RunKey,
        attempt: u32,
        settlement: Settlement,
        rows: Vec<Draft>,
        batch: &mut Batch,
    ) -> Result<Option<EventId>, Failure> {
        let run = self.run(key)?;
        if run.attempt != attempt || matches!(run.state, RunState::Ended { .. }) {
            return Err(out_of_turn(key, "settle an attempt that is not the last one of an open run"));
        }
        match settlement {
            Settlement::Waiting { not_before, counted } => {
                run.state = RunState::Waiting { not_before, held: counted == Counted::Held };
                match counted {
                    Counted::Failure => run.failures += 1,
                    Counted::Nothing | Counted::Held => {}
                }
            }
            Settlement::Ended { outcome, at } => {
                run.state = RunState::Ended { outcome };
                run.ended_at = Some(at);
                batch.ended.push(run.id);
            }
        }
        batch.changed.insert(run.id, key);
        Ok(self.post(Some(key), rows, batch))
    }

    /// Answers the id of the first that is for the queue of dead letters.
    fn post(&mut self, key: Option<RunKey>, rows: Vec<Draft>, batch: &mut Batch) -> Option<EventId> {
        let mut letter_id = None;
        for row in rows {
            let run = key.and_then(|key| self.runs.get_mut(&key));
            let (attempt, sequence) = run.as_ref().map_or((0, 0), |run| (run.attempt, run.sequence + 1));
            let event_id = EventId::draw();
            let message = row.finish(Place { event_id, attempt, sequence });
            if message.kind == MessageKind::Letter {
                letter_id = letter_id.or(Some(event_id));
            }
            let run_id = run.as_ref().map(|run| run.id);
            if let (Some(run), Some(key), true) = (run, key, message.kind.is_event_of_run()) {
                run.sequence = sequence;
                batch.changed.insert(run.id, key);
            }
            let progress_of = run_id.filter(|_| message.kind == MessageKind::Progress);
            batch.post(progress_of, NewOutboxRow { id: self.ids.outbox, run_id, event_id, message });
            self.ids.outbox += 1;
        }
        letter_id
    }

    fn run(&mut self, key: RunKey) -> Result<&mut RunRow, Failure> {
        self.runs.get_mut(&key).ok_or_else(|| out_of_turn(key, "change a run that was never taken"))
    }

    fn running(&mut self, key: RunKey, attempt: u32) -> Result<&mut RunRow, Failure> {
        let run = self.run(key)?;
        if run.attempt != attempt || run.state != RunState::Running {
            return Err(out_of_turn(key, "write to an attempt that is not running"));
        }
        Ok(run)
    }
}

fn out_of_turn(key: RunKey, what: &str) -> Failure {
    Failure::new(Code::Internal, format!("cannot {what}: `{key}`"))
}

fn not_encoded(what: &str, error: &serde_json::Error) -> Failure {
    Failure::new(Code::Internal, format!("cannot encode a {what} for the journal")).because(error)
}
