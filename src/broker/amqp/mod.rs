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
mod letters;
mod link;
mod mend;
mod outbox;
mod ping;
mod probe;
mod publish;
mod publisher;
mod session;
mod sign;
mod subscribe;
mod thread;
mod wire;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use self::failure::LinkError;
use self::publisher::PublishHandle;
use self::thread::AmqpThread;
use super::letters::{Holder, LetterReader, ReadLettersError};
use super::settings::BrokerSettings;
use super::setup::probe::{Answer, Try};
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

    /// Does something on the thread where connections live.
    async fn on_thread<T, F>(&self, action: &str, job: impl FnOnce(Arc<BrokerSettings>) -> F) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LinkError>> + Send + 'static,
    {
        let (sender, done) = tokio::sync::oneshot::channel();
        let job = job(Arc::clone(&self.settings));
        self.thread.spawn(async move {
            // Whoever asked may have gone.
            _ = sender.send(job.await);
        });
        let source = match done.await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error.into(),
            Err(_) => "the door to the broker is closed".into(),
        };
        Err(BrokerError { action: action.to_owned(), address: self.settings.uri.address(), source })
    }

    fn publishing(&self) -> &PublishHandle {
        self.publisher.get_or_init(|| publish::start(&self.thread, Arc::clone(&self.settings)))
    }
}

/// Tries out what a user may.
pub(super) async fn try_out(settings: BrokerSettings, attempts: Vec<Try>) -> Result<Vec<Answer>, BrokerError> {
    let action = format!("try out the rights of user `{}`", settings.uri.user());
    AmqpBroker::start(settings)?.on_thread(&action, async move |settings| probe::run(&settings, &attempts).await).await
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
        let host = host.clone();
        self.on_thread("look at the host's queues", async move |settings| inspect::host(&settings, &host).await).await
    }

    async fn control_readers(&self, hosts: &[HostId]) -> Result<Vec<Option<u32>>, BrokerError> {
        let hosts = hosts.to_vec();
        let look = async move |settings: Arc<BrokerSettings>| inspect::control_readers(&settings, &hosts).await;
        self.on_thread("look who reads the hosts' control queues", look).await
    }

    async fn subscribe(
        &self,
        exchange: &'static str,
        binding_keys: &[String],
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        subscribe::open(&self.thread, Arc::clone(&self.settings), exchange, binding_keys.to_vec()).await
    }

    async fn read_letters(&self) -> Result<Box<dyn LetterReader>, ReadLettersError> {
        letters::open(&self.thread, Arc::clone(&self.settings)).await
    }

    async fn letters_holder(&self) -> Result<Option<Holder>, BrokerError> {
        self.on_thread("ask who reads the dead letters", async move |settings| sign::ask(&settings).await).await
    }
}
