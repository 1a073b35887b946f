//! Stands beside the work that jobs do and sees what of it goes on at once: never two jobs on one instance, however they name it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use longshore::failure::{Failure, RbdRemains};
use longshore::job::{Attempt, JobProgress};
use longshore::model::id::{InstanceId, InstanceRef};
use longshore::model::job::RunKey;
use longshore::saga::{Outcome, Record, Stop};
use longshore::worker::work::{AttemptRecord, Work};
use serde_json::Value;
use tokio::sync::watch;

/// What was seen. Clones see the same.
#[derive(Clone)]
pub struct Witness {
    names: Arc<BTreeMap<String, InstanceId>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    at_work: BTreeMap<InstanceId, Vec<RunKey>>,
    attempts: usize,
    /// Attempts and unwindings that have begun or ended.
    moves: usize,
    offences: Vec<String>,
}

impl Witness {
    pub fn of(names: &BTreeMap<String, InstanceId>) -> Self {
        Self { names: Arc::new(names.clone()), seen: Arc::default() }
    }

    pub fn beside<W: Work>(&self, work: W) -> Witnessed<W> {
        Witnessed { work, witness: self.clone() }
    }

    /// How many attempts and unwindings have begun or ended so far.
    pub fn moves(&self) -> usize {
        self.seen.lock().unwrap().moves
    }

    /// Attempts and unwindings that go on.
    pub fn at_work(&self) -> usize {
        self.seen.lock().unwrap().attempts
    }

    /// Where two were at one instance.
    pub fn offences(&self) -> Vec<String> {
        self.seen.lock().unwrap().offences.clone()
    }

    fn enters(&self, attempt: &Attempt) -> Presence {
        let instance = attempt.job.instance.as_ref().and_then(|instance| match instance {
            InstanceRef::Id(id) => Some(*id),
            InstanceRef::Name(name) => self.names.get(name.as_str()).copied(),
        });
        let key = attempt.job.key;
        let mut seen = self.seen.lock().unwrap();
        (seen.attempts, seen.moves) = (seen.attempts + 1, seen.moves + 1);
        if let Some(instance) = instance {
            let others = seen.at_work.entry(instance).or_default();
            others.push(key);
            if let [.., other, _] = others[..] {
                seen.offences.push(format!("{key} and {other} are at work on instance {instance} at once"));
            }
        }
        Presence { witness: self.clone(), instance, key }
    }
}

/// An attempt that goes on, until it has ended or its worker is dead.
struct Presence {
    witness: Witness,
    instance: Option<InstanceId>,
    key: RunKey,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut seen = self.witness.seen.lock().unwrap();
        (seen.attempts, seen.moves) = (seen.attempts - 1, seen.moves + 1);
        if let Some(at_work) = self.instance.and_then(|instance| seen.at_work.get_mut(&instance)) {
            at_work.retain(|key| *key != self.key);
        }
    }
}

/// Work that is seen.
pub struct Witnessed<W> {
    work: W,
    witness: Witness,
}

#[async_trait]
impl<W: Work> Work for Witnessed<W> {
    async fn run(
        &self,
        attempt: &Attempt,
        record: &dyn AttemptRecord,
        progress: watch::Sender<JobProgress>,
        stop: &Stop,
    ) -> Outcome {
        let _here = self.witness.enters(attempt);
        self.work.run(attempt, record, progress, stop).await
    }

    async fn unwind(
        &self,
        attempt: &Attempt,
        plan: Option<Value>,
        records: &[Record],
        record: &dyn AttemptRecord,
    ) -> Outcome {
        let _here = self.witness.enters(attempt);
        self.work.unwind(attempt, plan, records, record).await
    }
    async fn look_at_images(&self, images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
        self.work.look_at_images(images).await
    }
}
