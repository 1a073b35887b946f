//! What a list shows of a letter, and by which letters are told apart. Small, however large the letter is.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::letter::{Content, Letter};
use super::mark::{Subject, SupersededBy};
use crate::failure::Class;
use crate::model::id::{HostId, JobId};

/// Longest text of others in a summary, characters.
const TEXT_CHARACTERS_MAX: usize = 300;
/// Most labels in a summary, as jobs may have.
const LABELS_MAX: usize = 64;

/// A letter in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Its message id.
    pub letter_id: String,
    /// When the job was given up.
    pub time: Option<Timestamp>,
    /// The host that gave it up.
    pub host: Option<HostId>,
    /// The job's kind.
    pub kind: Option<String>,
    /// The job.
    pub job_id: Option<JobId>,
    /// Its run.
    pub run: Option<u32>,
    /// Attempts that were made.
    pub attempts: u32,
    /// The instance, by uuid or name, as the job has it.
    pub instance: Option<String>,
    /// Id of the repository.
    pub repository: Option<String>,
    /// The failure's code.
    pub code: String,
    /// Whether trying again can help.
    pub class: Class,
    /// What was tried, on what.
    pub text: String,
    /// The job's labels.
    pub labels: BTreeMap<String, String>,
    /// Why it is not believed, if so.
    pub doubt: Option<String>,
    /// A later run of the same job that is dead as well.
    pub superseded_by: Option<u32>,
    /// A later job that has done what this one was for, by the word of the host: the letter is superseded.
    pub made_good_by: Option<SupersededBy>,
    /// What a mark on it would name, where one could be.
    #[serde(skip)]
    pub(super) subject: Option<Subject>,
}

impl Summary {
    /// Of a letter.
    pub fn of(letter: &Letter) -> Self {
        let fields = letter.fields().unwrap_or(&Value::Null);
        let text_of = |pointer: &str| fields.pointer(pointer).and_then(Value::as_str).map(shortened);
        let (time, attempts, run) = match &letter.content {
            Content::Letter(dead) => (Some(dead.time), dead.attempts, dead.run),
            _ => {
                let run = fields.get("run").and_then(Value::as_u64).and_then(|run| run.try_into().ok());
                (published(letter), 0, run)
            }
        };
        Self {
            letter_id: letter.id().to_owned(),
            time,
            host: letter.host(),
            kind: text_of("/kind"),
            job_id: letter.job_id(),
            run,
            attempts,
            instance: text_of("/instance/id").or_else(|| text_of("/instance/name")),
            repository: text_of("/repository/id"),
            code: letter.code(),
            class: letter.class(),
            text: shortened(&letter.text()),
            labels: labels(fields),
            doubt: letter.doubt.clone(),
            superseded_by: None,
            made_good_by: None,
            subject: letter.subject(),
        }
    }
}

fn published(letter: &Letter) -> Option<Timestamp> {
    letter.properties.timestamp.and_then(|seconds| Timestamp::from_second(seconds.try_into().ok()?).ok())
}

fn labels(fields: &Value) -> BTreeMap<String, String> {
    let labels = fields.get("labels").and_then(Value::as_object).into_iter().flatten().take(LABELS_MAX);
    labels.filter_map(|(key, value)| Some((shortened(key), shortened(value.as_str()?)))).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}

/// Marks the letters whose job has a later run that is dead, too: to replay them would be to ask for what was asked for again already.
pub fn mark_superseded(summaries: &mut [Summary]) {
    let mut latest: HashMap<JobId, u32> = HashMap::new();
    // What nobody vouches for could keep any job from being asked for again.
    let believed = summaries.iter().filter(|summary| summary.doubt.is_none());
    for (job, run) in believed.filter_map(|summary| Some((summary.job_id?, summary.run?))) {
        let run_seen = latest.entry(job).or_insert(run);
        *run_seen = run.max(*run_seen);
    }
    for summary in summaries {
        let newest = summary.job_id.and_then(|job| latest.get(&job)).copied();
        summary.superseded_by = newest.filter(|newest| summary.run.is_some_and(|run| run < *newest));
    }
}
