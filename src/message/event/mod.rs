//! What happened: events of runs, of hosts, and of dead letters.
//!
//! Of each run: `accepted`, then for each attempt `started`, `progress` and, if another attempt follows, `retrying`; then
//! exactly one of `completed`, `failed`, `cancelled`. A reader drops duplicates by event id, orders by
//! (run, attempt, sequence), and lets a final event win over anything that comes after it.
//!
//! Every body has the same outer fields and its own part in `detail`, whose type the message type names.

mod host;
mod inventory;
mod letter;
mod run;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use host::{
    Draining, FailingRepository, Heartbeat, MessageRefused, Online, OverdueCall, Paused, Resumed, RunningJob,
};
pub use inventory::{INVENTORY_INSTANCES_MAX, Inventory, InventoryDisk, InventoryInstance};
pub use letter::{Discarded, LetterDetail, LetterEvent, Replayed};
pub use run::{
    Accepted, BackedUpDisk, BackupSummary, Cancelled, Completed, DeleteSummary, Failed, FailureReport, LeftOver,
    NamedInstance, Progress, RestoreSummary, RestoredVolume, Retrying, Started,
};

use super::envelope::{source_of, source_of_user};
use crate::model::id::{HostId, IncarnationId, InstanceRef, JobId};
use crate::model::job::{Job, JobKind};

/// An event of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunEvent<D = RunDetail> {
    /// The job.
    pub job_id: JobId,
    /// Its run.
    pub run: u32,
    /// The attempt within the run; 0 before the first.
    pub attempt: u32,
    /// Place of this event within its attempt, counted from 1. Places may be missing, for progress that was overtaken.
    pub sequence: u64,
    /// The job's kind.
    pub kind: JobKind,
    /// The host that does it.
    pub host: HostId,
    /// The instance as the job names it. Absent for the kind `repo-validate` alone of the kinds that there are, as it is about a
    /// repository. New kinds may come within v1, so a reader must bear one that it does not know, with or without an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceRef>,
    /// The labels of the job.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it happened.
    pub time: Timestamp,
    /// The event's own part.
    pub detail: D,
}

/// The own part of a run's event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RunDetail {
    /// The host has the job in its journal.
    Accepted(Accepted),
    /// An attempt began.
    Started(Started),
    /// An attempt gets on.
    Progress(Progress),
    /// An attempt failed and another will follow.
    Retrying(Retrying),
    /// The run ended well.
    Completed(Completed),
    /// The run ended in a failure; there is a dead letter, too.
    Failed(Failed),
    /// The run was cancelled.
    Cancelled(Cancelled),
}

/// An event of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEvent<D = HostDetail> {
    /// The host.
    pub host: HostId,
    /// The start of the worker that tells it.
    pub incarnation: IncarnationId,
    /// Place of this event within its incarnation, counted from 1.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The event's own part.
    pub detail: D,
}

/// The own part of a host's event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum HostDetail {
    /// A worker takes jobs.
    Online(Online),
    /// A worker lives.
    Heartbeat(Heartbeat),
    /// A worker takes no more jobs.
    Draining(Draining),
    /// A host begins no job.
    Paused(Paused),
    /// A paused host begins jobs again.
    Resumed(Resumed),
    /// What is on the host.
    Inventory(Inventory),
    /// A message started no run.
    MessageRefused(MessageRefused),
}

/// Any event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// Of a run.
    Run(RunEvent),
    /// Of a host.
    Host(HostEvent),
    /// Of a dead letter.
    Letter(LetterEvent),
}

impl RunDetail {
    /// The event's word, as in routing keys.
    pub const fn word(&self) -> &'static str {
        match self {
            RunDetail::Accepted(_) => "accepted",
            RunDetail::Started(_) => "started",
            RunDetail::Progress(_) => "progress",
            RunDetail::Retrying(_) => "retrying",
            RunDetail::Completed(_) => "completed",
            RunDetail::Failed(_) => "failed",
            RunDetail::Cancelled(_) => "cancelled",
        }
    }

    /// No event of the same run follows.
    pub const fn is_final(&self) -> bool {
        matches!(self, RunDetail::Completed(_) | RunDetail::Failed(_) | RunDetail::Cancelled(_))
    }
}

impl HostDetail {
    /// The two words of the event, as they begin its routing key.
    pub const fn words(&self) -> &'static str {
        match self {
            HostDetail::Online(_) => "worker.online",
            HostDetail::Heartbeat(_) => "worker.heartbeat",
            HostDetail::Draining(_) => "worker.draining",
            HostDetail::Paused(_) => "worker.paused",
            HostDetail::Resumed(_) => "worker.resumed",
            HostDetail::Inventory(_) => "worker.inventory",
            HostDetail::MessageRefused(_) => "message.refused",
        }
    }
}

impl<D> RunEvent<D> {
    /// The same event with its own part told as `part` of it.
    pub fn map<P>(self, part: impl FnOnce(D) -> P) -> RunEvent<P> {
        RunEvent {
            job_id: self.job_id,
            run: self.run,
            attempt: self.attempt,
            sequence: self.sequence,
            kind: self.kind,
            host: self.host,
            instance: self.instance,
            labels: self.labels,
            time: self.time,
            detail: part(self.detail),
        }
    }
}

impl<D> HostEvent<D> {
    /// The same event with its own part told as `part` of it.
    pub fn map<P>(self, part: impl FnOnce(D) -> P) -> HostEvent<P> {
        HostEvent {
            host: self.host,
            incarnation: self.incarnation,
            sequence: self.sequence,
            time: self.time,
            detail: part(self.detail),
        }
    }
}

impl RunEvent {
    /// An event of `job`, with everything that the job itself says filled in.
    pub fn of(job: &Job, attempt: u32, sequence: u64, time: Timestamp, detail: RunDetail) -> Self {
        Self {
            job_id: job.key.job_id,
            run: job.key.run,
            attempt,
            sequence,
            kind: job.kind(),
            host: job.host.clone(),
            instance: job.instance.clone(),
            labels: job.labels.clone(),
            time,
            detail,
        }
    }
}

impl Event {
    /// Prefix of the message type of every event.
    pub const TYPE_PREFIX: &'static str = "longshore.event.";

    /// Message type, such as `longshore.event.progress.v1`.
    pub fn message_type(&self) -> String {
        let words = match self {
            Event::Run(event) => event.detail.word(),
            Event::Host(event) => event.detail.words(),
            Event::Letter(event) => event.detail.words(),
        };
        format!("{}{words}.v1", Self::TYPE_PREFIX)
    }

    /// Routing key: `<kind>.<event>.<host>`, or `letter.<event>.<user>` with the user's name as it is, dots included.
    pub fn routing_key(&self) -> String {
        match self {
            Event::Run(event) => format!("{}.{}.{}", event.kind.as_str(), event.detail.word(), event.host),
            Event::Host(event) => format!("{}.{}", event.detail.words(), event.host),
            Event::Letter(event) => format!("{}.{}", event.detail.words(), event.user),
        }
    }

    /// The host that tells it. What became of a letter no host tells.
    pub fn host(&self) -> Option<&HostId> {
        match self {
            Event::Run(event) => Some(&event.host),
            Event::Host(event) => Some(&event.host),
            Event::Letter(_) => None,
        }
    }

    /// Who tells it, as a CloudEvent's `source`: the host, or the user.
    pub fn source(&self) -> String {
        match self {
            Event::Run(event) => source_of(&event.host),
            Event::Host(event) => source_of(&event.host),
            Event::Letter(event) => source_of_user(&event.user),
        }
    }

    /// What it is about: the job, the refused message, the letter, or else the host.
    pub fn subject(&self) -> String {
        match self {
            Event::Run(event) => event.job_id.to_string(),
            Event::Host(HostEvent { detail: HostDetail::MessageRefused(refused), .. }) => refused.message_id.clone(),
            Event::Host(event) => event.host.to_string(),
            Event::Letter(event) => event.letter_id.clone(),
        }
    }

    /// When it happened.
    pub fn time(&self) -> Timestamp {
        match self {
            Event::Run(event) => event.time,
            Event::Host(event) => event.time,
            Event::Letter(event) => event.time,
        }
    }

    /// Whether it must survive a restart of the broker: all but what the next one of its sort makes worthless.
    pub fn is_durable(&self) -> bool {
        match self {
            Event::Run(event) => !matches!(event.detail, RunDetail::Progress(_)),
            Event::Host(event) => !matches!(event.detail, HostDetail::Heartbeat(_)),
            Event::Letter(_) => true,
        }
    }
}
