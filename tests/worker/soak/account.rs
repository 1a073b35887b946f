//! What was asked for and what has been told of it.

use std::collections::{BTreeMap, BTreeSet};

use longshore::message::event::RunDetail;
use longshore::message::{DeadLetter, Event, JobMessage, RunEvent};
use longshore::model::job::RunKey;

use crate::events::Reader;
use crate::fleet::Fleet;
use crate::heard::in_order;

/// Last digits of a job's id by which what an attempt makes on the host is named.
const JOB_DIGITS: usize = 12;
/// Why a message starts no run.
const REFUSALS: [&str; 4] = ["run_body_differs", "run_superseded", "malformed_message", "unsupported_content_type"];

/// Runs that have to end, and what a reader that drops duplicates by event id has heard.
#[derive(Default)]
pub struct Account {
    asked: BTreeMap<RunKey, JobMessage>,
    read: usize,
    ids: BTreeSet<String>,
    told: BTreeMap<RunKey, Vec<RunEvent>>,
    ended: BTreeSet<RunKey>,
    failed: BTreeSet<RunKey>,
    /// Ends by kind of job and what they were.
    pub ends: BTreeMap<(String, String), usize>,
    /// Events that came more than once.
    pub duplicates: usize,
}

impl Account {
    pub fn asks(&mut self, key: RunKey, job: JobMessage) {
        self.asked.insert(key, job);
    }

    pub fn asked(&self, key: RunKey) -> bool {
        self.asked.contains_key(&key)
    }

    /// How many runs were asked for.
    pub fn count(&self) -> usize {
        self.asked.len()
    }

    /// A run of those that were asked for, the place of which in their order is given.
    pub fn any(&self, place: usize) -> Option<(RunKey, &JobMessage)> {
        let place = place.checked_rem(self.asked.len())?;
        self.asked.iter().nth(place).map(|(key, job)| (*key, job))
    }

    pub fn is_open(&self, key: RunKey) -> bool {
        !self.ended.contains(&key)
    }

    /// Runs that have not ended.
    pub fn open(&self) -> Vec<RunKey> {
        self.asked.keys().filter(|key| self.is_open(**key)).copied().collect()
    }

    /// What is known of those, in short.
    pub fn shown(&self) -> String {
        let story = |key: &RunKey| {
            let events = self.told.get(key).into_iter().flatten();
            let words: Vec<_> =
                events.clone().map(|event| format!("{}.{}", event.attempt, event.detail.word())).collect();
            let last = events.last().map(|event| &event.detail);
            let JobMessage { kind, backup, instance, .. } = &self.asked[key];
            format!("{key} {kind} {backup:?} {instance:?}: {}; last {last:?}", words.join(" "))
        };
        self.open().iter().map(story).collect::<Vec<_>>().join("\n")
    }

    /// What the runs said that left those, by the digits of their jobs in the names.
    pub fn told_of(&self, left: &[String]) -> String {
        let is_of = |key: &RunKey| {
            let job = key.job_id.to_string();
            left.iter().any(|name| name.contains(&job[job.len() - JOB_DIGITS..]))
        };
        let runs = self.told.iter().filter(|(key, _)| is_of(key));
        let shown = runs.map(|(key, events)| format!("{key} {:?}: {events:#?}", self.asked[key]));
        shown.collect::<Vec<_>>().join("\n")
    }

    /// Reads what has come since.
    pub fn read(&mut self, events: &Reader) {
        for seen in events.after(self.read) {
            self.read += 1;
            if !self.ids.insert(seen.properties.message_id.clone()) {
                self.duplicates += 1;
                continue;
            }
            let Event::Run(event) = seen.event else { continue };
            let key = RunKey { job_id: event.job_id, run: event.run };
            assert!(self.asked(key), "nobody asked for {key}: {event:?}");
            if event.detail.is_final() {
                self.ends(key, &event.detail);
            }
            self.told.entry(key).or_default().push(event);
        }
    }

    fn ends(&mut self, key: RunKey, detail: &RunDetail) {
        assert!(self.ended.insert(key), "{key} has ended twice, the second time so: {detail:?}");
        let how = match detail {
            RunDetail::Failed(failed) => {
                self.failed.insert(key);
                assert_ne!(failed.failure.code, "internal", "{key}: {failed:?}");
                format!("failed: {}", failed.failure.code)
            }
            _ => detail.word().to_owned(),
        };
        *self.ends.entry((self.asked[&key].kind.clone(), how)).or_default() += 1;
    }

    /// Every run has ended, each with its events in order, and the letters are those of the failed ones.
    pub fn assert_settled(&mut self, fleet: &Fleet) {
        assert_eq!(self.open(), [], "{}", self.shown());
        for (key, mut events) in std::mem::take(&mut self.told) {
            events.sort_by_key(|event| (event.attempt, event.sequence));
            in_order(&events);
            assert!(self.ended.contains(&key));
        }
        let letters = fleet.letters();
        let runs: Vec<_> = letters.iter().filter_map(run_of).collect();
        let different: BTreeSet<_> = runs.iter().copied().collect();
        assert_eq!(different.len(), runs.len(), "a run has two letters");
        assert_eq!(different, self.failed, "the letters are not those of the failed runs");
    }
}

/// The run of which a letter says that it failed; none of a message that was refused and started none.
fn run_of(letter: &DeadLetter) -> Option<RunKey> {
    let refused = REFUSALS.contains(&letter.failure.code.as_str());
    (!refused).then(|| Some(RunKey { job_id: letter.job_id?, run: letter.run? })).flatten()
}
