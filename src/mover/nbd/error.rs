//! What can go wrong between us and an NBD server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::{Code, Failure};
use crate::mover::device;

/// Most characters of a server's own words that are kept.
const SERVER_WORDS_CHARACTERS_MAX: usize = 300;
/// Linux's number for a full device; NBD's is the same by the protocol's document.
const ENOSPC: u32 = 28;

/// Why a request, or the whole connection, failed. It can be cloned: all requests under way fail with the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket failed or was closed.
    #[error("cannot {what} the NBD socket")]
    Socket {
        /// What was tried with it.
        what: &'static str,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The server did what no server may do.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server does not offer what we need.
    #[error("the NBD server refused {what}: {words}")]
    Negotiation {
        /// What we asked for.
        what: String,
        /// The kind of refusal, and the server's own words.
        words: String,
    },
    /// The server could not do what was asked, such as when the disk below has an error.
    #[error("the NBD server failed a {request}: error {number}{words}")]
    Refused {
        /// The request.
        request: String,
        /// Its error number.
        number: u32,
        /// Its words, with a separator before them; may be empty.
        words: String,
    },
    /// No answer in time.
    #[error("no answer to {request} within {} s", deadline.as_secs_f32())]
    Deadline {
        /// What was asked.
        request: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// We asked for what the export does not have. Ours to mend.
    #[error("a {0} does not fit the export")]
    Misuse(String),
}

impl NbdError {
    /// The failure's code, where trouble with the device behind the server means `device`.
    pub fn code(&self, device: Code) -> Code {
        match self {
            NbdError::Protocol(_) => Code::NbdProtocol,
            NbdError::Misuse(_) => Code::Internal,
            NbdError::Refused { number: ENOSPC, .. } => device::full(device),
            _ => device,
        }
    }

    /// A failure with this error as its cause, where trouble with the device behind the server means `device`.
    pub fn failure(&self, device: Code, text: impl Into<String>) -> Failure {
        Failure::new(self.code(device), text).because(self)
    }

    /// Nothing listens on the socket, or not yet.
    pub fn nobody_listens(&self) -> bool {
        let kind = if let NbdError::Socket { source, .. } = self { source.kind() } else { return false };
        matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    }

    pub(super) fn socket(what: &'static str, source: io::Error) -> Self {
        NbdError::Socket { what, source: Arc::new(source) }
    }
}

/// A server's own words, made fit for a log.
pub(super) fn server_words(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    words.chars().filter(|c| !c.is_control()).take(SERVER_WORDS_CHARACTERS_MAX).collect()
}
