//! How long each step of an attempt took, seen from the records that go by: a step is at work from when its announcement is durable
//! until its end is to be written down. For the log, where an operator looks for what makes backups slow.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::saga::Record;

/// The steps so far. They come one after the other.
#[derive(Debug, Default)]
pub struct StepTimes(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    current: Option<(String, Instant)>,
    took: Vec<(String, Duration)>,
}

impl StepTimes {
    /// With the time from now on until the first step as that of a step.
    pub fn beginning_with(name: &str) -> Self {
        Self(Mutex::new(Times { current: Some((name.to_owned(), Instant::now())), took: Vec::new() }))
    }

    /// A record is to be written: whatever was at work has ended.
    pub fn before(&self) {
        let mut times = self.times();
        if let Some((name, since)) = times.current.take() {
            times.took.push((name, since.elapsed()));
        }
    }

    /// A record was written: what it announces is at work.
    pub fn after(&self, record: &Record) {
        self.times().current = announced(record).map(|name| (name, Instant::now()));
    }

    /// None has ended.
    pub fn is_empty(&self) -> bool {
        self.times().took.is_empty()
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `lease=12 release.lease=3`, in milliseconds.
impl fmt::Display for StepTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, took)) in self.times().took.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{name}={}", took.as_millis())?;
        }
        Ok(())
    }
}

/// What a record says may happen from now on.
fn announced(record: &Record) -> Option<String> {
    match record {
        Record::Began { step, .. } | Record::Committing { step } => Some(step.clone()),
        Record::Undoing { step } => Some(format!("undo.{step}")),
        Record::Releasing { step } => Some(format!("release.{step}")),
        Record::Done { .. }
        | Record::Failed { .. }
        | Record::Stopped { .. }
        | Record::Undone { .. }
        | Record::UndoFailed { .. }
        | Record::Released { .. }
        | Record::ReleaseFailed { .. }
        | Record::Committed { .. }
        | Record::CommitUnknown { .. }
        | Record::Warned { .. }
        | Record::LeftOver { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::saga::record::Shape;

    #[tokio::test(start_paused = true)]
    async fn a_step_takes_from_its_announcement_to_its_end_and_not_what_the_journal_takes() {
        let times = StepTimes::beginning_with("plan");
        assert!(times.is_empty());
        let step = || "lease".to_owned();
        let records = [
            (30, Record::Began { step: step(), shape: Shape::Hold }),
            (12, Record::Done { step: step(), value: Value::Null }),
            (500, Record::Releasing { step: step() }),
            (3, Record::Released { step: step() }),
        ];
        for (milliseconds, record) in records {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            times.before();
            tokio::time::advance(Duration::from_millis(7)).await;
            times.after(&record);
        }
        assert_eq!(times.to_string(), "plan=30 lease=12 release.lease=3");
    }
}
