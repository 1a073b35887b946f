//! What a group of requests writes: a few statements of many rows each, in an order that doesn't depend on theirs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::decide::View;
use super::entry::{OutboxMessage, RunState, StoredMessage};
use super::letters::LetterChanges;
use super::script::Script;
use crate::model::id::EventId;
use crate::model::job::RunKey;

/// Under this run id, which no run has, stands what is kept of the host itself.
pub(super) const HOST: i64 = 0;

/// A row to be written to the outbox.
pub(super) struct NewOutboxRow {
    pub(super) id: i64,
    pub(super) run_id: Option<i64>,
    pub(super) event_id: EventId,
    pub(super) message: OutboxMessage,
}

/// Everything that a group writes.
#[derive(Default)]
pub(super) struct Batch {
    /// Runs whose row is new or changed, by row id.
    pub(super) changed: BTreeMap<i64, RunKey>,
    pub(super) messages: Vec<(i64, StoredMessage)>,
    pub(super) records: Vec<(i64, u32, String)>,
    pub(super) kept: Vec<(i64, String, String)>,
    pub(super) tombstones: Vec<(RunKey, Timestamp, String)>,
    /// Outbox rows that the broker has confirmed.
    pub(super) delivered: Vec<i64>,
    /// Runs that ended.
    pub(super) ended: Vec<i64>,
    /// Runs of which a duplicate came, or whose state was asked for, with the outbox id under which their last state event is sent again.
    pub(super) announced: Vec<(i64, i64)>,
    /// Left-overs by their names; none for one that is gone.
    pub(super) left_overs: BTreeMap<String, Option<String>>,
    /// What is kept of the host by its names; none for what is so no more.
    pub(super) of_host: BTreeMap<&'static str, Option<String>>,
    pub(super) letters: LetterChanges,
    posted: BTreeMap<i64, NewOutboxRow>,
    /// The outbox id of each run's latest progress.
    progress: BTreeMap<i64, i64>,
}

impl Batch {
    /// Adds a row to the outbox; as the progress of a run it takes the place of an earlier one that was not sent.
    pub(super) fn post(&mut self, progress_of: Option<i64>, row: NewOutboxRow) {
        if let Some(run) = progress_of
            && let Some(earlier) = self.progress.insert(run, row.id)
        {
            self.posted.remove(&earlier);
        }
        self.posted.insert(row.id, row);
    }

    /// Whether it adds something to be sent.
    pub(super) fn posts(&self) -> bool {
        !self.posted.is_empty() || !self.announced.is_empty()
    }

    /// Writes it all and commits it, or writes nothing. `view` holds the changed runs.
    pub(super) async fn write(self, view: &View, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut script = Script::new();
        self.write_runs(view, &mut script);
        script.insert("INSERT INTO messages (run_id, properties, body) ", &self.messages, |mut row, (id, message)| {
            row.push_bind(*id).push_bind(message.properties.to_string()).push_bind(message.body.as_slice());
        });
        let records = "INSERT INTO records (run_id, attempt, record) ";
        script.insert(records, &self.records, |mut row, (id, attempt, record)| {
            row.push_bind(*id).push_bind(*attempt).push_bind(record.as_str());
        });
        script.insert("INSERT INTO kept (run_id, name, value) ", &self.kept, |mut row, (id, name, value)| {
            row.push_bind(*id).push_bind(name.as_str()).push_bind(value.as_str());
        });
        let tombstones = "INSERT OR REPLACE INTO tombstones (job_id, run, until_ms, reason) ";
        script.insert(tombstones, &self.tombstones, |mut row, (key, until, reason)| {
            row.push_bind(key.job_id.to_string()).push_bind(key.run);
            row.push_bind(until.as_millisecond()).push_bind(reason.as_str());
        });
        self.write_of_host(&mut script);
        self.write_left_overs(&mut script);
        self.write_letters(&mut script);
        self.write_outbox(&mut script);
        script.run(connection).await
    }

    fn write_runs(&self, view: &View, script: &mut Script) {
        let runs: Vec<_> = self.changed.values().filter_map(|key| view.runs.get(key)).collect();
        let columns = "INSERT INTO runs (id, job_id, run, kind, instance, repository_id, urgent, digest, accepted_at_ms, \
                       state, not_before_ms, held, attempt, failures, crashes, sequence, outcome, ended_at_ms) ";
        let changes = " ON CONFLICT (id) DO UPDATE SET state = excluded.state, not_before_ms = excluded.not_before_ms, \
                       held = excluded.held, attempt = excluded.attempt, failures = excluded.failures, crashes = excluded.crashes, \
                       sequence = excluded.sequence, outcome = excluded.outcome, ended_at_ms = excluded.ended_at_ms";
        script.insert_or(columns, changes, &runs, |mut row, run| {
            let (state, not_before, held, outcome) = match &run.state {
                RunState::Waiting { not_before, held } => ("waiting", *not_before, *held, None),
                RunState::Running => ("running", None, false, None),
                RunState::Ended { outcome } => ("ended", None, false, Some(outcome.to_string())),
            };
            row.push_bind(run.id).push_bind(run.key.job_id.to_string()).push_bind(run.key.run);
            row.push_bind(run.kind.as_str()).push_bind(run.instance.as_str());
            row.push_bind(run.repository_id.to_string()).push_bind(run.urgent).push_bind(run.digest.as_slice());
            row.push_bind(run.accepted_at.as_millisecond()).push_bind(state);
            row.push_bind(not_before.map(Timestamp::as_millisecond));
            row.push_bind(held).push_bind(run.attempt).push_bind(run.failures).push_bind(run.crashes);
            row.push_bind(i64::try_from(run.sequence).unwrap_or(i64::MAX)).push_bind(outcome);
            row.push_bind(run.ended_at.map(Timestamp::as_millisecond));
        });
    }

    fn write_of_host(&self, script: &mut Script) {
        let kept: Vec<_> = self.of_host.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?))).collect();
        script.insert("INSERT OR REPLACE INTO kept (run_id, name, value) ", &kept, |mut row, (name, value)| {
            row.push_bind(HOST).push_bind(*name).push_bind(value.as_str());
        });
        let gone: Vec<_> = self.of_host.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        script.for_names("DELETE FROM kept WHERE run_id = 0 AND name IN ", &gone);
    }

    fn write_left_overs(&self, script: &mut Script) {
        let kept: Vec<_> = self.left_overs.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
        script.insert("INSERT OR REPLACE INTO left_overs (name, value) ", &kept, |mut row, (name, value)| {
            row.push_bind(name.as_str()).push_bind(value.as_str());
        });
        let gone: Vec<_> =
            self.left_overs.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()).collect();
        script.for_names("DELETE FROM left_overs WHERE name IN ", &gone);
    }

    fn write_outbox(&self, script: &mut Script) {
        let outdated: Vec<_> = self.progress.keys().copied().collect();
        script.for_ids("DELETE FROM outbox WHERE kind = 'progress' AND run_id IN ", &outdated);
        let posted: Vec<_> = self.posted.values().collect();
        let columns = "INSERT INTO outbox (id, run_id, event_id, kind, sent, exchange, routing_key, properties, body) ";
        script.insert(columns, &posted, |mut row, new| {
            let message = &new.message;
            row.push_bind(new.id).push_bind(new.run_id).push_bind(new.event_id.to_string());
            row.push_bind(message.kind.as_str()).push_bind(0_i64);
            row.push_bind(message.exchange.as_str()).push_bind(message.routing_key.as_str());
            row.push_bind(message.properties.to_string()).push_bind(message.body.as_slice());
        });
        let told = "UPDATE outbox SET sent = 1 WHERE kind IN ('state', 'final') AND id IN ";
        script.for_ids(told, &self.delivered);
        let done = "DELETE FROM outbox WHERE kind NOT IN ('state', 'final') AND id IN ";
        script.for_ids(done, &self.delivered);
        script.for_ids("DELETE FROM outbox WHERE sent = 1 AND kind = 'state' AND run_id IN ", &self.ended);
        for (run, id) in &self.announced {
            script.announce(*run, *id);
        }
    }
}
