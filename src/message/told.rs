//! What an attempt told before its run was given up, short enough to go along in the dead letter.
//!
//! It promises that a letter grows by no more than [`TOLD_BYTES_MAX`] for it, whatever was told, and that what had no room is counted.

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::{Failed, FailureReport, LeftOver, Progress, Retrying, RunDetail, RunEvent};

/// Most that goes into a letter, bytes as JSON, but for what characters that have to be escaped take more.
pub const TOLD_BYTES_MAX: usize = 24 * 1024;
/// Events of earlier attempts in it: why the latest of them failed.
const EARLIER_MAX: usize = 4;
/// Steps of the last attempt in it. No job has as many that move bytes.
const STEPS_MAX: usize = 16;
/// Steps of it that are counted where they have no room.
const STEPS_COUNTED_MAX: usize = 256;
/// Longest text in it, bytes. The log has it whole.
const TEXT_BYTES_MAX: usize = 300;
/// Longest name of a step in it, bytes.
const STEP_BYTES_MAX: usize = 64;
/// Warnings of one event in it, and left-overs.
const LIST_MAX: usize = 3;

/// An event of the run, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToldEvent {
    /// The attempt that told it; 0 before the first.
    pub attempt: u32,
    /// Its place within its attempt, as the event has it.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The event's word: `accepted`, `started`, `progress`, `retrying`, `failed`. More may come within v1.
    pub event: String,
    /// Of `progress`: the step. The last progress of each step is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Of `progress`: when the first of this step was told, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Of `progress`: bytes done in this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Of `progress`: bytes to do in this step, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Of `retrying`: why that attempt failed, without the causes. That of `failed` is the letter's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureReport>,
    /// Of `retrying`: when the next attempt was to begin, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// What else was not as it should be in the attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What could not be removed yet when the attempt ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
}

impl ToldEvent {
    /// Of an event.
    pub fn of(event: &RunEvent) -> Self {
        let mut told = Self {
            attempt: event.attempt,
            sequence: event.sequence,
            time: event.time,
            event: event.detail.word().to_owned(),
            step: None,
            since: None,
            done_bytes: None,
            total_bytes: None,
            failure: None,
            next_attempt_at: None,
            warnings: Vec::new(),
            left_overs: Vec::new(),
        };
        match &event.detail {
            RunDetail::Progress(Progress { step, done_bytes, total_bytes, .. }) => {
                told.step = Some(shortened(step, STEP_BYTES_MAX));
                (told.done_bytes, told.total_bytes) = (Some(*done_bytes), Some(*total_bytes));
            }
            RunDetail::Retrying(Retrying { failure, next_attempt_at, warnings, left_overs }) => {
                told.failure = Some(FailureReport {
                    step: failure.step.as_deref().map(|step| shortened(step, STEP_BYTES_MAX)),
                    text: shortened(&failure.text, TEXT_BYTES_MAX),
                    causes: Vec::new(),
                    ..failure.clone()
                });
                told.next_attempt_at = Some(*next_attempt_at);
                told.hold(warnings, left_overs);
            }
            RunDetail::Failed(Failed { warnings, left_overs, .. }) => told.hold(warnings, left_overs),
            RunDetail::Accepted(_) | RunDetail::Started(_) | RunDetail::Completed(_) | RunDetail::Cancelled(_) => {}
        }
        told
    }

    fn hold(&mut self, warnings: &[String], left_overs: &[LeftOver]) {
        self.warnings = warnings.iter().take(LIST_MAX).map(|warning| shortened(warning, TEXT_BYTES_MAX)).collect();
        if warnings.len() > LIST_MAX {
            self.warnings.push(format!("{} more: see the worker's log", warnings.len() - LIST_MAX));
        }
        let short = |left: &LeftOver| LeftOver {
            what: shortened(&left.what, TEXT_BYTES_MAX),
            reason: shortened(&left.reason, TEXT_BYTES_MAX),
            job_id: left.job_id,
        };
        self.left_overs = left_overs.iter().take(LIST_MAX).map(short).collect();
        if left_overs.len() > LIST_MAX {
            self.warnings.push(format!("{} more left-overs: see the worker's log", left_overs.len() - LIST_MAX));
        }
    }

    /// Whether it tells how far an attempt was, and no change of its state.
    fn is_step(&self) -> bool {
        self.step.is_some()
    }
}

/// What is kept of a run for the letter that it may end in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldRun {
    events: Vec<ToldEvent>,
    /// Steps of the last attempt that had no room, by their names.
    steps_left_out: BTreeSet<String>,
    /// The same of why earlier attempts failed.
    earlier_left_out: u32,
}

impl ToldRun {
    /// Takes an event. One that takes the place of another, as after a commit that failed, replaces it, and one that tells of the state
    /// goes after all that was told: what has a later place was never written. Of each step the last progress stays; and with a new attempt goes what the one before has told, but for why it failed.
    pub fn note(&mut self, event: &RunEvent) {
        let mut told = ToldEvent::of(event);
        let is_void = |known: &ToldEvent| match told.is_step() {
            true => known.sequence == told.sequence,
            false => known.sequence >= told.sequence,
        };
        self.events.retain(|known| known.attempt != told.attempt || !is_void(known));
        let same = |known: &&ToldEvent| known.is_step() && known.attempt == told.attempt && known.step == told.step;
        if told.is_step()
            && let Some(place) = self.events.iter().position(|known| same(&known))
        {
            let earlier = self.events.remove(place);
            told.since = Some(earlier.since.unwrap_or(earlier.time));
        }
        if told.event == "started" {
            let is_earlier = |known: &ToldEvent| (1..told.attempt).contains(&known.attempt);
            self.events.retain(|known| !is_earlier(known) || known.failure.is_some());
            self.steps_left_out.clear();
        }
        let told_step = told.step.clone();
        let (attempt, before) = (told.attempt, (told.attempt, told.sequence));
        let place = self.events.partition_point(|known| (known.attempt, known.sequence) < before);
        self.events.insert(place, told);
        told_step.iter().for_each(|step| _ = self.steps_left_out.remove(step));
        let is_reason = |known: &ToldEvent| known.failure.is_some() && known.attempt < attempt;
        let step = self.keep(STEPS_MAX, ToldEvent::is_step).and_then(|left_out| left_out.step);
        self.steps_left_out.extend(step.filter(|_| self.steps_left_out.len() < STEPS_COUNTED_MAX));
        self.earlier_left_out += u32::from(self.keep(EARLIER_MAX, is_reason).is_some());
    }

    /// Leaves out the first of a sort where there are more than `most`. Answers it.
    fn keep(&mut self, most: usize, of_sort: impl Fn(&ToldEvent) -> bool) -> Option<ToldEvent> {
        let count = self.events.iter().filter(|known| of_sort(known)).count();
        let first = self.events.iter().position(of_sort).filter(|_| count > most)?;
        Some(self.events.remove(first))
    }

    /// What goes into a letter: the events in their order, and how many had no room.
    pub fn told(&self) -> (Vec<ToldEvent>, u32) {
        let steps = u32::try_from(self.steps_left_out.len()).unwrap_or(u32::MAX);
        (self.events.clone(), steps.saturating_add(self.earlier_left_out))
    }

    /// When an attempt began, as far as that is known.
    pub fn started_at(&self, attempt: u32) -> Option<Timestamp> {
        let is_begin = |known: &&ToldEvent| known.attempt == attempt && known.event == "started";
        self.events.iter().find(is_begin).map(|known| known.time)
    }
}

/// The first bytes of a text, and whether there were more.
fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{} …", text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::failure::Class;
    use crate::message::event::Started;
    use crate::model::job::JobKind;

    fn event(attempt: u32, sequence: u64, detail: RunDetail) -> RunEvent {
        RunEvent {
            job_id: "019a0f3e-7c00-7000-8000-000000000001".parse().unwrap(),
            run: 1,
            attempt,
            sequence,
            kind: JobKind::Backup,
            host: "kvm-07".parse().unwrap(),
            instance: None,
            labels: Default::default(),
            time: Timestamp::from_second(i64::from(attempt) * 1000 + i64::try_from(sequence).unwrap()).unwrap(),
            detail,
        }
    }

    fn progress(step: &str, done_bytes: u64) -> RunDetail {
        let (step, total_bytes) = (step.to_owned(), 100);
        RunDetail::Progress(Progress { step, done_bytes, total_bytes, rate_bytes_per_second: 1, eta_seconds: None })
    }

    fn retrying(text: &str, count: usize) -> RunDetail {
        let failure = FailureReport {
            code: "mount_failed".to_owned(),
            class: Class::Transient,
            step: Some(text.to_owned()),
            text: text.to_owned(),
            causes: vec![text.to_owned(); count],
        };
        let left_over = LeftOver { what: text.to_owned(), reason: text.to_owned(), job_id: None };
        let (warnings, left_overs) = (vec![text.to_owned(); count], vec![left_over; count]);
        RunDetail::Retrying(Retrying { failure, next_attempt_at: Timestamp::UNIX_EPOCH, warnings, left_overs })
    }

    fn story(run: &ToldRun) -> Vec<(u32, u64, String, Option<u64>)> {
        run.told().0.into_iter().map(|told| (told.attempt, told.sequence, told.event, told.done_bytes)).collect()
    }

    #[test]
    fn the_last_attempt_is_there_with_its_steps_and_of_the_earlier_ones_why_they_failed() {
        let mut run = ToldRun::default();
        let started = || RunDetail::Started(Started {});
        for (attempt, sequence, detail) in [
            (1, 1, started()),
            (1, 2, progress("copy", 1)),
            (1, 3, retrying("no route to host", 1)),
            (2, 1, started()),
            (2, 2, progress("copy", 1)),
            (2, 3, progress("copy", 60)),
            (2, 5, progress("copy", 100)),
            (2, 6, progress("verify", 7)),
        ] {
            run.note(&event(attempt, sequence, detail));
        }
        let told = |attempt, sequence, word: &str, done| (attempt, sequence, word.to_owned(), done);
        assert_eq!(
            story(&run),
            [
                told(1, 3, "retrying", None),
                told(2, 1, "started", None),
                told(2, 5, "progress", Some(100)),
                told(2, 6, "progress", Some(7)),
            ]
        );
        assert_eq!(run.told().0[2].since, Timestamp::from_second(2002).ok(), "when the step began");
        assert_eq!((run.told().1, run.started_at(2)), (0, Timestamp::from_second(2001).ok()));
        assert_eq!(run.started_at(1), None);
    }

    #[test]
    fn what_is_told_anew_in_the_same_place_is_there_once() {
        let mut run = ToldRun::default();
        for detail in [progress("copy", 1), progress("verify", 2)] {
            run.note(&event(1, 2, detail));
        }
        assert_eq!(story(&run), [(1, 2, "progress".to_owned(), Some(2))]);
    }

    #[test]
    fn an_end_that_is_told_anew_is_the_last_of_its_attempt() {
        let mut run = ToldRun::default();
        run.note(&event(1, 1, RunDetail::Started(Started {})));
        run.note(&event(1, 2, progress("copy", 1)));
        // A commit that failed: progress and the end of it, which never were; then without the progress.
        run.note(&event(1, 3, progress("verify", 2)));
        run.note(&event(1, 4, retrying("no route to host", 0)));
        run.note(&event(1, 3, retrying("no route to host", 0)));
        let told = |sequence, word: &str, done| (1, sequence, word.to_owned(), done);
        assert_eq!(story(&run), [told(1, "started", None), told(2, "progress", Some(1)), told(3, "retrying", None)]);
    }

    #[test]
    fn a_step_without_room_counts_once_and_not_at_all_once_it_has_room() {
        let mut run = ToldRun::default();
        let steps = u64::try_from(STEPS_MAX).unwrap();
        for step in 0..=steps {
            run.note(&event(1, 1 + step, progress(&format!("step {step}"), 1)));
        }
        assert_eq!(run.told().1, 1);
        // The first one tells again, and takes the room of the second; and so once more, round and round.
        for (told, step) in [0, 1, 2].into_iter().enumerate() {
            let sequence = 2 + steps + u64::try_from(told).unwrap();
            run.note(&event(1, sequence, progress(&format!("step {step}"), 2)));
            assert_eq!(run.told().1, 1, "{step}");
        }
    }

    #[test]
    fn however_much_is_told_a_letter_grows_by_so_much_and_says_what_is_missing() {
        let mut run = ToldRun::default();
        let long = "ü".repeat(5000);
        for attempt in 1..=20 {
            run.note(&event(attempt, 1, RunDetail::Started(Started {})));
            for step in 0..40 {
                run.note(&event(attempt, 2 + step, progress(&format!("{step} {long}"), step)));
            }
            run.note(&event(attempt, 50, retrying(&long, 50)));
        }
        let (events, left_out) = run.told();
        let bytes = serde_json::to_vec(&events).unwrap().len();
        assert!((1..=TOLD_BYTES_MAX).contains(&bytes), "{bytes} bytes");
        assert_eq!(events.iter().filter(|told| told.event == "progress").count(), STEPS_MAX);
        assert_eq!(left_out, (40 - 16) + (19 - 4));
        let last = events.last().unwrap();
        assert!(last.warnings.iter().any(|warning| warning == "47 more: see the worker's log"), "{last:?}");
    }
}
