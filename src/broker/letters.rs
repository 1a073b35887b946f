//! The door to the dead letters that wait in their queue.
//!
//! It promises: a letter stays in its place until it is acknowledged, whoever dies meanwhile; nobody else reads while one does; and of
//! all that wait no more than [`LETTERS_AT_ONCE`] are held for a reader that does nothing with them. Letters are consumed, and
//! never got and put back: a queue with a delivery limit loses what was looked at too often (RabbitMQ 4.0 to 4.3).

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BrokerError, EventMessage, Settle};

/// Letters that are on their way to the reader at a time.
pub const LETTERS_AT_ONCE: u16 = 100;

/// A dead letter that its reader holds.
pub struct HeldLetter {
    /// The message.
    pub message: EventMessage,
    /// Takes it off its queue. Dropped, it leaves the letter where it is.
    pub settle: Box<dyn Settle>,
}

/// How long whoever reads the letters may take to answer who it is.
pub const HOLDER_WAIT: Duration = Duration::from_secs(2);

/// What whoever reads the letters says of itself. Nobody vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupation {
    /// What it does, such as `dead replay`.
    pub doing: String,
    /// Since when it reads.
    pub since: Timestamp,
    /// Its account on its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

impl Occupation {
    /// Of this process, from now on. Blocks, for as long as whoever knows the machine's accounts takes.
    pub fn of_this_process(doing: &str) -> Self {
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self { doing: doing.to_owned(), since: Timestamp::now(), account, machine }
    }
}

/// Who reads the letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The broker user, for whom the broker vouches.
    pub user: String,
    /// What it says of itself.
    pub occupation: Occupation,
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadLettersError {
    /// Somebody reads them. There is one reader at a time, so that no letter is replayed by two.
    #[error("somebody else is reading the dead letters: queue `{queue}` has an exclusive consumer")]
    InUse {
        /// The queue.
        queue: &'static str,
    },
    /// There is no such queue.
    #[error("there is no queue `{queue}`; `longshore broker setup` makes it")]
    NoQueue {
        /// The queue.
        queue: &'static str,
    },
    /// Anything else. What was not acknowledged is in its place again.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The one reader of the dead letters.
#[async_trait]
pub trait LetterReader: Send {
    /// The next letter, in the order of the queue; none when there is no further one. Dropping the future loses none.
    async fn next(&mut self) -> Result<Option<HeldLetter>, ReadLettersError>;
    /// Ends the reading. When it succeeds, the broker has heard of every acknowledgement.
    async fn close(self: Box<Self>) -> Result<(), ReadLettersError>;
}
