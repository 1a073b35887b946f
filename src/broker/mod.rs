//! The door to the broker. Only this folder names lapin.
//!
//! It promises: a published message is confirmed by the broker or the caller hears why not, and an unroutable one is an error
//! that names its routing key; a lost connection comes back by itself, with everything declared and subscribed again; nothing
//! waits without a bound. It deliberately does not know what a job is: bodies are bytes.

pub mod access;
pub mod address;
mod amqp;
pub mod backoff;
pub mod letters;
pub mod management;
pub mod memory;
pub mod settings;
pub mod setup;
pub mod tls;
pub mod topology;

use async_trait::async_trait;

pub use crate::message::envelope::Properties;
use crate::message::vouch::Sent;
use crate::model::id::HostId;

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Exchange name, from the topology table.
    pub exchange: &'static str,
    /// Routing key.
    pub routing_key: String,
    /// Properties.
    pub properties: Properties,
    /// Body.
    pub body: Vec<u8>,
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker has no queue for it. It was not kept.
    #[error("no queue takes messages for `{routing_key}` on exchange `{exchange}`")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker refused it, for instance because the queue is at its limit.
    #[error("the broker refused the message for `{routing_key}`: {reason}")]
    Refused {
        /// The routing key.
        routing_key: String,
        /// What it said, or what the refusal means.
        reason: String,
    },
    /// No confirm in time. If it was sent, it may have been kept all the same; sending it again with the same message id is
    /// safe.
    #[error("the broker did not confirm the message for `{routing_key}` within {waited_seconds} s: {reason}")]
    Unconfirmed {
        /// The routing key.
        routing_key: String,
        /// Whether it was ever on its way.
        sent: bool,
        /// How long was waited.
        waited_seconds: u64,
        /// What is known of the connection.
        reason: String,
    },
}

/// Publishes messages. Clones of the handle share one connection.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes with `mandatory`, in the name of the connected user unless the properties name one, and waits for the confirm.
    /// At most [`PUBLISHES_IN_FLIGHT_MAX`] wait at a time; further callers queue. While the broker is away this waits up to the configured limit.
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError>;
}

/// Publishes waiting for their confirm at a time.
pub const PUBLISHES_IN_FLIGHT_MAX: usize = 256;

/// Longest body that is kept of a delivery, in bytes: one over what a message may have, so that the codec sees that it is too
/// large. Bodies are cut on receipt, so that with the worker's default prefetch of 50 the two job queues have at most 25 MiB waiting here. The AMQP
/// library holds a body whole while it receives it; only the broker's `max_message_size` (128 MiB on 3.x, 16 MiB on 4.x) bounds that.
pub const BODY_BYTES_KEPT_MAX: usize = 256 * 1024 + 1;

/// The same for what subscribers read, among which are dead letters.
pub const LETTER_BYTES_KEPT_MAX: usize = crate::message::LETTER_BYTES_MAX + 1;

/// Which of the host's queues a delivery came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostQueue {
    /// `longshore.jobs.<host>`.
    Jobs,
    /// `longshore.jobs.<host>.urgent`.
    UrgentJobs,
    /// `longshore.control.<host>`.
    Control,
}

/// Which of the host's jobs are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedJobs {
    /// None.
    #[default]
    None,
    /// Those of the urgent queue.
    Urgent,
    /// Those of both queues.
    All,
}

impl WantedJobs {
    /// Whether what `queue` holds is wanted. Control messages always are.
    pub const fn takes_from(self, queue: HostQueue) -> bool {
        match queue {
            HostQueue::Control => true,
            HostQueue::UrgentJobs => !matches!(self, WantedJobs::None),
            HostQueue::Jobs => matches!(self, WantedJobs::All),
        }
    }
}

/// A hand-over by the broker.
pub struct Delivery {
    /// Where it came from.
    pub queue: HostQueue,
    /// Its routing key.
    pub routing_key: String,
    /// The broker has handed it over before.
    pub redelivered: bool,
    /// It carried a CC header, with which a publisher can reach keys that it has no right to.
    pub has_cc: bool,
    /// Properties.
    pub properties: Properties,
    /// Body, cut to [`BODY_BYTES_KEPT_MAX`].
    pub body: Vec<u8>,
    /// Settles it; see [`Settle`].
    pub settle: Box<dyn Settle>,
}

impl Delivery {
    /// What it says of who sent it.
    pub fn sent(&self) -> Sent<'_> {
        Sent { routing_key: &self.routing_key, has_cc: self.has_cc, properties: &self.properties }
    }
}

/// Tells the broker what became of a delivery.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Acknowledges. `false` means that the channel is gone and the message will be delivered again.
    async fn ack(self: Box<Self>) -> bool;
}

/// Whether the host's session with the broker works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not there yet, or lost; being built.
    Connecting {
        /// Why the last try failed.
        reason: String,
    },
    /// The control queue is ours and, if asked for, jobs are consumed; the last ping came back. The first time that this, or
    /// [`SessionState::Blocked`], is shown is the first moment at which the host id is known to be ours: before it another
    /// worker may hold it, and nothing may be done in the host's name.
    Up,
    /// Another worker has held this host's control queue for four heartbeats: no jobs are consumed. It is still tried.
    HostIdInUse,
    /// The control queue is ours, and the broker has told us that it does not read from us for now.
    Blocked {
        /// The broker's reason.
        reason: String,
    },
}

/// The host's session with the broker: its queues, read one delivery at a time.
#[async_trait]
pub trait HostSession: Send {
    /// The next delivery, control before urgent jobs before jobs; waits for ever. Also returns after reconnects as if nothing
    /// had happened. Dropping the future loses nothing.
    async fn next(&mut self) -> Delivery;
    /// Which jobs are wanted from now on; none until this is called. The others stay in their queues, and control messages come
    /// all the same.
    ///
    /// What was delivered before the broker knew of the wish still comes from [`HostSession::next`], at most a prefetch of each
    /// queue and what the acks before it make room for, and is not handed back: quorum queues count every return (4.x gives a
    /// message up after 20, 3.10 to 4.0 count a nack among them), so that jobs nobody has tried would end as dead letters. A queue
    /// is read again only when all of that was taken.
    fn want_jobs(&self, wanted: WantedJobs);
    /// The state now and its changes.
    fn state(&self) -> tokio::sync::watch::Receiver<SessionState>;
    /// Ends the session: nothing more is consumed, what is un-acked goes back.
    async fn close(self: Box<Self>);
}

/// A message that a subscriber of events reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventMessage {
    /// Its routing key.
    pub routing_key: String,
    /// It carried a CC header, with which a publisher can reach keys that it has no right to.
    pub has_cc: bool,
    /// Properties.
    pub properties: Properties,
    /// Body, cut to [`LETTER_BYTES_KEPT_MAX`].
    pub body: Vec<u8>,
}

impl EventMessage {
    /// What it says of who sent it.
    pub fn sent(&self) -> Sent<'_> {
        Sent { routing_key: &self.routing_key, has_cc: self.has_cc, properties: &self.properties }
    }
}

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Message(Box<EventMessage>),
    /// The connection is lost, and why. What is published from now on is missed.
    Lost(String),
    /// The connection is back. Nobody says what was published meanwhile.
    Back,
}

/// A passing look at an exchange, through a queue of its own that goes when it is dropped, and with the connection.
#[async_trait]
pub trait Subscription: Send {
    /// What comes next; none when the subscription has ended for good. Dropping the future loses nothing.
    async fn next(&mut self) -> Option<Heard>;
}

/// What is on the broker for a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOnBroker {
    /// Queues of the host, and exchanges, that are not there: it is not enrolled, and its worker has not made them.
    pub missing: Vec<String>,
    /// Exchanges that its worker publishes to and that are closed to the user.
    pub closed_exchanges: Vec<&'static str>,
}

/// The whole door.
#[async_trait]
pub trait Broker: Send + Sync {
    /// A publisher.
    fn publisher(&self) -> std::sync::Arc<dyn Publisher>;
    /// Opens the host's session: the control queue first, exclusively, then the jobs when wanted.
    async fn open_host(&self, host: &HostId) -> Box<dyn HostSession>;
    /// Looks at what is there for a host, without making anything.
    async fn inspect(&self, host: &HostId) -> Result<HostOnBroker, BrokerError>;
    /// How many read the control queue of each of these hosts at this moment, as far as the broker has noticed: one where a worker is
    /// connected. None for a host without such a queue. Needs no rights.
    async fn control_readers(&self, hosts: &[HostId]) -> Result<Vec<Option<u32>>, BrokerError>;
    /// Subscribes to `exchange` with the given binding keys.
    async fn subscribe(
        &self,
        exchange: &'static str,
        binding_keys: &[String],
    ) -> Result<Box<dyn Subscription>, BrokerError>;
    /// Begins to read the dead letters, alone. Fails at once where somebody else does.
    async fn read_letters(&self) -> Result<Box<dyn letters::LetterReader>, letters::ReadLettersError>;
    /// Asks who reads the dead letters at this moment. None where nobody answers within [`letters::HOLDER_WAIT`] of a question that arrived: nobody reads them, the
    /// reader has no right to answer, or is of a version that does not.
    async fn letters_holder(&self) -> Result<Option<letters::Holder>, BrokerError>;
}

/// Opens the door to a RabbitMQ broker. Connections are made in the background and made again when they are lost, so this
/// succeeds while the broker is away; what is asked of the door then waits, within its bounds.
///
/// # Errors
/// The thread that serves the connections could not be started.
pub fn connect(settings: settings::BrokerSettings) -> Result<std::sync::Arc<dyn Broker>, BrokerError> {
    amqp::AmqpBroker::start(settings).map(|broker| std::sync::Arc::new(broker) as std::sync::Arc<dyn Broker>)
}

/// Tries out what the user of `settings` may, in order.
///
/// # Errors
/// The broker cannot be reached, or an attempt was answered by neither yes nor no.
pub async fn try_out(
    settings: settings::BrokerSettings,
    attempts: Vec<setup::probe::Try>,
) -> Result<Vec<setup::probe::Answer>, BrokerError> {
    amqp::try_out(settings, attempts).await
}

/// The broker could not be reached or refused what was asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} on the broker at `{address}`")]
pub struct BrokerError {
    /// What was tried.
    pub action: String,
    /// Host and port, never with credentials.
    pub address: String,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
