//! What can go wrong with a connection, and the bound on every wait for the broker.

use std::error::Error as _;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::types::ReplyCode;

use crate::broker::tls::TlsError;

/// How long the broker may take to answer a request on an open connection.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// AMQP reply code of a queue that another connection holds exclusively.
const RESOURCE_LOCKED: ReplyCode = 405;
/// AMQP reply code of a missing right, and of a queue with another exclusive consumer.
const ACCESS_REFUSED: ReplyCode = 403;
/// AMQP reply code of a queue or exchange that does not exist.
const NOT_FOUND: ReplyCode = 404;
/// AMQP reply code of a queue or exchange that exists with other properties.
const PRECONDITION_FAILED: ReplyCode = 406;

/// A request to the broker failed, or the connection did.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No answer in time.
    #[error("cannot {action}: no answer within {waited_seconds} s")]
    TimedOut {
        /// What was tried.
        action: String,
        /// How long was waited.
        waited_seconds: u64,
    },
    /// The broker or the network said no.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: String,
        /// The cause.
        #[source]
        source: lapin::Error,
    },
    /// Nobody has made the host's queues, and the worker may not.
    #[error("broker_not_set_up: not all queues of this host are there; `longshore broker setup` makes them")]
    NotSetUp(#[source] Box<LinkError>),
    /// A connection cannot be encrypted.
    #[error("cannot connect to the broker with TLS")]
    Tls(#[from] TlsError),
    /// The connection is gone.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// Everything looks fine and nothing arrives.
    #[error("{0}")]
    Silent(String),
}

impl LinkError {
    /// The error and its causes in one line, for a state that is shown to people.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            // lapin repeats its cause in its own text.
            if !text.ends_with(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        text
    }

    /// The reply code of the broker's refusal.
    fn reply(&self) -> Option<(ReplyCode, String)> {
        match self {
            LinkError::Failed { source, .. } => match source.kind() {
                ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
                _ => None,
            },
            _ => None,
        }
    }

    /// Another consumer holds the queue. RabbitMQ says so with the code of a missing right; only the text tells them apart
    /// (`queue '…' in vhost '…' in exclusive use`, 3.10 to 4.3).
    pub(super) fn is_in_use(&self) -> bool {
        self.reply().is_some_and(|(code, text)| {
            code == RESOURCE_LOCKED || (code == ACCESS_REFUSED && text.contains("in exclusive use"))
        })
    }

    /// We lack the right.
    pub(super) fn is_access_refused(&self) -> bool {
        self.reply().is_some_and(|(code, _)| code == ACCESS_REFUSED) && !self.is_in_use()
    }

    /// It does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.reply().is_some_and(|(code, _)| code == NOT_FOUND)
    }

    /// It exists already, otherwise than asked for.
    pub(super) fn is_otherwise_declared(&self) -> bool {
        self.reply().is_some_and(|(code, _)| code == PRECONDITION_FAILED)
    }
}

/// Waits for the broker's answer, at most [`ANSWER_WAIT`].
pub(super) async fn answer<T>(
    action: impl Into<String>,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, LinkError> {
    answer_within(ANSWER_WAIT, action, request).await
}

/// Waits for the broker's answer, at most `wait`.
pub(super) async fn answer_within<T>(
    wait: Duration,
    action: impl Into<String>,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(wait, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(LinkError::Failed { action: action.into(), source }),
        Err(_) => Err(LinkError::TimedOut { action: action.into(), waited_seconds: wait.as_secs() }),
    }
}
