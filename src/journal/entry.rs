//! What callers give to the journal and get from it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::model::id::{EventId, RepositoryId};
use crate::model::job::{JobKind, RunKey};

/// A job's message as it is kept: without secrets, which is the caller's duty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its AMQP properties, in the caller's form.
    pub properties: Value,
    /// Its body. A second delivery of the run is a duplicate if its body is the same, byte for byte.
    pub body: Vec<u8>,
}

/// A delivery that was understood and is to be taken.
pub struct Taken {
    /// Which run it starts.
    pub key: RunKey,
    /// The message.
    pub message: StoredMessage,
    /// The job's kind.
    pub kind: JobKind,
    /// The instance, as the job names it.
    pub instance: String,
    /// The repository.
    pub repository_id: RepositoryId,
    /// It came through the urgent queue.
    pub urgent: bool,
    /// Now.
    pub accepted_at: Timestamp,
    /// Rows of the outbox, such as `accepted`; only written when the run is new.
    pub rows: Vec<Draft>,
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is this worker's to do.
    New,
    /// It is this worker's, but was cancelled before it came: to be settled as cancelled, for this reason, without a start.
    Tombstoned {
        /// As given to [`super::Journal::tombstone`].
        reason: Value,
    },
    /// It was taken before. Its last state event, if that was sent, is sent once more, with the id that it had.
    Duplicate {
        /// Where it stands.
        state: RunState,
    },
    /// The run was taken before, with another body.
    BodyDiffers,
    /// A higher run of the job was taken before.
    Superseded {
        /// The highest.
        known_run: u32,
    },
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// No attempt is under way.
    Waiting {
        /// When the next may start; at once, if there is none.
        not_before: Option<Timestamp>,
        /// It waits because its repository fails.
        held: bool,
    },
    /// An attempt is under way, or was when the worker ended.
    Running,
    /// Nothing follows.
    Ended {
        /// As given to [`super::Journal::settle`].
        outcome: Value,
    },
}

/// A run that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRun {
    /// Job id and run.
    pub key: RunKey,
    /// The job's kind.
    pub kind: JobKind,
    /// The instance, as the job names it.
    pub instance: String,
    /// The repository.
    pub repository_id: RepositoryId,
    /// It came through the urgent queue.
    pub urgent: bool,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// Waiting or running.
    pub state: RunState,
    /// The last attempt; 0 before the first.
    pub attempt: u32,
    /// Attempts that failed and are charged to the retry policy.
    pub failures: u32,
    /// Attempts that were cut off by the worker's end.
    pub crashes: u32,
    /// A cancellation was asked for, for this reason.
    pub cancelled: Option<Value>,
}

/// What follows an attempt, or a run that is settled without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Another attempt.
    Waiting {
        /// Not earlier than this.
        not_before: Option<Timestamp>,
        /// What it is counted as.
        counted: Counted,
    },
    /// Nothing.
    Ended {
        /// Kept, and shown to duplicates.
        outcome: Value,
        /// Now.
        at: Timestamp,
    },
}

/// What an attempt that is followed by another is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A failure, charged to the retry policy.
    Failure,
    /// Nothing: it was stopped in order, as by a drain, or cut off, which is counted before it is unwound.
    Nothing,
    /// Nothing, as its repository fails for other runs as well: until that works, or its time comes, it waits.
    Held,
}

/// Where a message stands, given in the transaction that writes it and kept on every resend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub event_id: EventId,
    /// The run's attempt; 0 before the first, and for rows that belong to no run.
    pub attempt: u32,
    /// From 1 within (job, run, attempt), for the events of a run; 0 for rows that belong to no run.
    pub sequence: u64,
}

/// A row of the outbox that lacks its [`Place`].
pub struct Draft(Box<dyn FnOnce(Place) -> OutboxMessage + Send>);

impl Draft {
    /// A row that `finish` makes, once its place is known. It is called on the journal's writer: it only encodes.
    pub fn new(finish: impl FnOnce(Place) -> OutboxMessage + Send + 'static) -> Self {
        Self(Box::new(finish))
    }

    pub(super) fn finish(self, place: Place) -> OutboxMessage {
        (self.0)(place)
    }
}

/// What a message is for, which decides how long it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// The one final event of a run.
    Final,
    /// A dead letter. Takes no sequence number.
    Letter,
    /// Any other event of a run that tells its state.
    State,
    /// Progress: only the latest of a run is kept.
    Progress,
    /// An event of the host.
    Host,
}

impl MessageKind {
    const ALL: [MessageKind; 5] = [Self::Final, Self::Letter, Self::State, Self::Progress, Self::Host];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Letter => "letter",
            Self::State => "state",
            Self::Progress => "progress",
            Self::Host => "host",
        }
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    pub(super) fn is_event_of_run(self) -> bool {
        matches!(self, Self::Final | Self::State | Self::Progress)
    }
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxMessage {
    /// What it is for.
    pub kind: MessageKind,
    /// Exchange name.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
    /// Its AMQP properties, in the caller's form.
    pub properties: Value,
    /// Its body.
    pub body: Vec<u8>,
}

/// A message that waits to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its place in the outbox; rows are sent in this order, and a number is never given again while the worker lives.
    pub id: i64,
    /// The run that it belongs to.
    pub run: Option<RunKey>,
    /// The message.
    pub message: OutboxMessage,
}

/// How long what has ended is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Message, records and sent events of an ended run.
    pub rows: Duration,
    /// Its key, after that: so long a late duplicate is still recognised.
    pub keys: Duration,
}

impl Default for Keep {
    /// A day, and 90 days. What a worker keeps: no configuration changes it.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { rows: DAY, keys: DAY * 90 }
    }
}

/// What a pruning took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Runs of which only the key is left.
    pub runs: u64,
    /// Keys.
    pub keys: u64,
    /// Tombstones.
    pub tombstones: u64,
}
