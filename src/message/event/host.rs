//! The own parts of the events of a host.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::run::{FailureReport, LeftOver};
use crate::model::id::{InstallationId, InstanceId, InstanceRef, JobId, RepositoryId};
use crate::model::job::JobKind;

/// A worker takes jobs: what it is and what may be sent to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Online {
    /// The life of its journal. A new one means that the journal was lost, and with it all open runs of this host.
    pub installation: InstallationId,
    /// Longshore's version.
    pub version: String,
    /// Content types that it reads.
    pub content_types: Vec<String>,
    /// Message types that it reads.
    pub message_types: Vec<String>,
    /// Kinds of job that it can do.
    pub kinds: Vec<JobKind>,
    /// Jobs that it works on at a time.
    pub slots: u32,
    /// What a share's credentials are sealed to for this host: an X25519 public key, base64. Absent where the
    /// host opens none. Whoever may publish events could say another: know the key from the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}

/// A job that a worker has in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunningJob {
    /// The job.
    pub job_id: JobId,
    /// Its run.
    pub run: u32,
    /// Its attempt.
    pub attempt: u32,
    /// Its kind.
    pub kind: JobKind,
    /// The instance as the job names it. Absent for the kind `repo-validate` alone of the kinds that there are, as it is about a
    /// repository. New kinds may come within v1, so a reader must bear one that it does not know, with or without an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceRef>,
    /// The step it is in, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Bytes done in this step.
    pub done_bytes: u64,
    /// Bytes to do in this step, as far as known.
    pub total_bytes: u64,
}

/// A worker lives. Silence means that it cannot be reached, not that its jobs have failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// The life of its journal.
    pub installation: InstallationId,
    /// The jobs in hand.
    pub running: Vec<RunningJob>,
    /// Jobs that it works on at a time.
    pub slots: u32,
    /// Jobs in its journal that wait for a slot, a retry or their instance, or for the end of a pause.
    pub waiting: u32,
    /// Messages that it has still to publish.
    pub outbox_depth: u32,
    /// Calls to libvirt that have not returned in their time.
    pub stuck_calls: u32,
    /// The oldest of them, at most 16. One that is not told any more has come back, and had its effect late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oldest_stuck_calls: Vec<OverdueCall>,
    /// Events since the worker's start that no queue was bound for.
    #[serde(default)]
    pub unroutable_events: u64,
    /// Times since the worker's start that a dead letter found no queue. It stays in the outbox and is sent again.
    #[serde(default)]
    pub unroutable_letters: u64,
    /// What could not be removed yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_overs: Vec<LeftOver>,
    /// The host is paused: what waits waits for that as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Repositories that failed job after job, until a job on them has completed. Of each, one job at a time tries it, and the others wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing_repositories: Vec<FailingRepository>,
}

/// A call to libvirt that has not returned in its time: a thread of the worker waits for it, and its effect may still come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OverdueCall {
    /// What was asked for, in Longshore's words.
    pub call: String,
    /// The instance it is about, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// When it was made.
    pub since: Timestamp,
}

/// A repository on which one job after another failed on this host, so that its other jobs wait until one succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailingRepository {
    /// The repository.
    pub repository_id: RepositoryId,
    /// Since when it fails.
    pub since: Timestamp,
    /// Failures in a row.
    pub failures: u32,
    /// The latest of them.
    pub failure: FailureReport,
    /// The job that tries it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_by: Option<JobId>,
    /// When the next job may try it. Absent while one does; where both are, one has moved so much that all may try it for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<Timestamp>,
}

/// A host begins no job: what is at work goes on, and all else waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Paused {
    /// Since when. A pause that took the place of another goes on from that one's beginning.
    pub since: Timestamp,
    /// The broker user whose control message it was, as the broker vouches for it.
    pub user: String,
    /// Who wants it, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it ends by itself; never where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A host that was paused begins jobs again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resumed {
    /// Since when it was paused.
    pub paused_since: Timestamp,
    /// The broker user whose control message it was. Absent where the pause came to the end that it had from its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who wants it, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A worker takes no more jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Draining {
    /// Jobs still in hand.
    pub running: u32,
    /// Jobs kept in its journal.
    pub waiting: u32,
    /// Seconds after which those in hand are stopped. What they had begun is taken back, and they stay in the journal for the
    /// worker's next start, unless they are evicted.
    pub limit_seconds: u64,
    /// What is left ends as failed with the code `host_draining`, and nothing stays.
    #[serde(default)]
    pub evict: bool,
    /// The worker does not end when it has come to rest: the host stays as if it was paused.
    #[serde(default)]
    pub stay: bool,
    /// The broker user whose control message it was. Absent where the worker's process was told to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who wants it, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, in the controller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message that started no run: malformed, for another host, or a run that is known otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageRefused {
    /// The message id of what was refused.
    pub message_id: String,
    /// The stable code. New ones may come within v1, so a reader must bear one that it does not know.
    #[schemars(regex(pattern = r"^[a-z_]{1,64}$"))]
    pub code: String,
    /// What is wrong and where.
    pub text: String,
    /// The job, if the message names one that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The run, if the message names one that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
}
