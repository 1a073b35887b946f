//! The door to a real broker, through lapin.
//!
//! lapin's own recovery is off: it recovers connections but not channels, gives up after 16 tries and cannot be told that a
//! consumer has gone silent. Everything here is rebuilt from scratch instead:
//!
//! ```text
//!  caller ── publish() ──> publisher task ── connection "publish" ──> broker
//!  caller <── inbox ────── session task  <── connection "consume" ──   │
//!                               └── ping ──> publisher task ──> own control queue
//! ```
//!
//! All tasks run on one thread with a runtime of its own (`thread`), so heartbeats go out however busy the process is. Each
//! wait has a bound.

mod consume;
mod convert;
mod declare;
mod delivery;
mod failure;
mod flight;
mod frames;
mod inbox;
mod inspect;
mod link;
mod mend;
mod outbox;
mod ping;
mod publish;
mod publisher;
mod session;
mod subscribe;
mod thread;
mod wire;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use self::publisher::PublishHandle;
use self::thread::AmqpThread;
use super::settings::BrokerSettings;
use super::{Broker, BrokerError, HostOnBroker, HostSession, Publisher, Subscription};
use crate::model::id::HostId;

/// A RabbitMQ broker.
pub(super) struct AmqpBroker {
    settings: Arc<BrokerSettings>,
    thread: Arc<AmqpThread>,
    /// Started by the first who wants it: who only looks or listens declares nothing that hosts share.
    publisher: OnceLock<PublishHandle>,
}

impl AmqpBroker {
    /// Starts the thread.
    pub(super) fn start(settings: BrokerSettings) -> Result<Self, BrokerError> {
        let settings = Arc::new(settings);
        let thread = AmqpThread::start().map_err(|source| BrokerError {
            action: "start the thread for connections".to_owned(),
            address: settings.uri.address(),
            source: source.into(),
        })?;
        Ok(Self { settings, thread, publisher: OnceLock::new() })
    }

    fn publishing(&self) -> &PublishHandle {
        self.publisher.get_or_init(|| publish::start(&self.thread, Arc::clone(&self.settings)))
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.publishing().clone())
    }

    async fn open_host(&self, host: &HostId) -> Box<dyn HostSession> {
        session::open(&self.thread, Arc::clone(&self.settings), host.clone(), self.publishing().link.clone())
    }

    async fn inspect(&self, host: &HostId) -> Result<HostOnBroker, BrokerError> {
        let (settings, host) = (Arc::clone(&self.settings), host.clone());
        let (sender, found) = tokio::sync::oneshot::channel();
        self.thread.spawn(async move {
            // Whoever asked may have gone.
            _ = sender.send(inspect::host(&settings, &host).await);
        });
        let source = match found.await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error.into(),
            Err(_) => "the door to the broker is closed".into(),
        };
        Err(BrokerError {
            action: "look at the host's queues".to_owned(),
            address: self.settings.uri.address(),
            source,
        })
    }

    async fn subscribe(
        &self,
        exchange: &'static str,
        binding_keys: &[String],
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        subscribe::open(&self.thread, Arc::clone(&self.settings), exchange, binding_keys.to_vec()).await
    }
}
