//! A broker inside the process, behind the same door as the real one.
//!
//! It keeps exchanges, queues, bindings, exclusive consumers and un-acked deliveries as RabbitMQ does, as far as Longshore can
//! tell the difference: both pass `tests/contract/broker.rs`. It can be told to fail. It deliberately has no users but
//! [`USER`], no rights and no disk: what survives [`MemoryServer::go_down`] is what RabbitMQ would find on its disk.

mod client;
mod letters;
mod session;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use self::client::MemoryClient;
use self::state::State;
use super::topology::{QueueType, host_queues};
use super::{Broker, EventMessage};
use crate::model::id::HostId;

/// Who everybody is to a [`MemoryServer`].
pub const USER: &str = "guest";

/// The waits of clients of a [`MemoryServer`], as [`BrokerSettings`](super::settings::BrokerSettings) has them for real ones.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// How long a publish waits while the broker is away.
    pub publish_wait: Duration,
    /// Deliveries of each job queue that may be un-acked at a time.
    pub prefetch: usize,
    /// How long another consumer may hold the control queue before the host id counts as in use.
    pub in_use_after: Duration,
    /// How long a consumer is silent before the session notices and starts anew.
    pub silence_noticed_after: Duration,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            publish_wait: Duration::from_secs(5),
            prefetch: 32,
            in_use_after: Duration::from_millis(100),
            silence_noticed_after: Duration::from_millis(100),
        }
    }
}

/// How many messages a queue has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting to be delivered.
    pub ready: usize,
    /// Delivered and not acked.
    pub unacked: usize,
}

/// A broker inside the process. Clones are the same broker.
#[derive(Clone)]
pub struct MemoryServer {
    shared: Arc<Shared>,
}

/// What the server and its clients share.
struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that whoever waits for one looks again.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn look(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.look());
        self.changes.send_modify(|count| *count += 1);
        result
    }
}

impl MemoryServer {
    /// An empty broker that is up.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new()), changes: watch::Sender::new(0) }) }
    }

    /// A client, as another process would be.
    pub fn client(&self, settings: MemorySettings) -> Arc<dyn Broker> {
        Arc::new(MemoryClient::new(Arc::clone(&self.shared), settings))
    }

    /// Declares the queues of a host, as enrolment does.
    pub fn enrol(&self, host: &HostId) {
        self.shared.change(|state| state.declare(host_queues(host, QueueType::Classic)));
    }

    /// Removes a queue and what is in it.
    pub fn delete_queue(&self, queue: &str) {
        self.shared.change(|state| state.delete_queue(queue));
    }

    /// The broker is killed: connections are gone, as is every message that is not persistent.
    pub fn go_down(&self) {
        self.shared.change(State::go_down);
    }

    /// The broker is back.
    pub fn go_up(&self) {
        self.shared.change(|state| state.up = true);
    }

    /// The broker reads nothing from publishers for now.
    pub fn block(&self, reason: &str) {
        self.shared.change(|state| state.blocked = Some(reason.to_owned()));
    }

    /// It reads again.
    pub fn unblock(&self) {
        self.shared.change(|state| state.blocked = None);
    }

    /// All present consumers get nothing any more, without a word.
    pub fn silence_consumers(&self) {
        self.shared.change(State::silence_consumers);
    }

    /// The next `count` publishes are refused.
    pub fn refuse_next(&self, count: usize) {
        self.shared.change(|state| state.refuse_next = count);
    }

    /// The next `count` publishes are kept, and their confirms are lost.
    pub fn lose_next_confirms(&self, count: usize) {
        self.shared.change(|state| state.lose_next_confirms = count);
    }

    /// A queue takes no more than `ready` waiting messages: publishes beyond are refused.
    pub fn limit_queue(&self, queue: &str, ready: usize) {
        self.shared.change(|state| state.limits.insert(queue.to_owned(), ready));
    }

    /// How many messages a queue has; none if there is no such queue.
    pub fn depth(&self, queue: &str) -> Option<Depth> {
        self.shared.look().depth(queue)
    }

    /// How many messages subscribers have not read yet. Those are lost to them when the broker goes down.
    pub fn unread(&self) -> usize {
        self.shared.look().unread()
    }

    /// The messages of a queue that wait to be delivered, in order. They stay.
    pub fn ready_messages(&self, queue: &str) -> Vec<EventMessage> {
        self.shared.look().ready_messages(queue)
    }
}

impl Default for MemoryServer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use tokio::time::timeout;

    use super::*;
    use crate::broker::topology::{JOBS_EXCHANGE, control_queue, jobs_key, jobs_queue};
    use crate::broker::{HostSession, Outgoing, Properties, PublishError, Publisher, SessionState, WantedJobs};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn host() -> HostId {
        "kvm-07".parse().unwrap()
    }

    fn job(persistent: bool) -> Outgoing {
        let properties = Properties { persistent, ..Properties::default() };
        Outgoing { exchange: JOBS_EXCHANGE, routing_key: jobs_key(&host()), properties, body: b"job".to_vec() }
    }

    fn impatient(server: &MemoryServer) -> Arc<dyn Publisher> {
        let settings = MemorySettings { publish_wait: Duration::from_millis(50), ..MemorySettings::default() };
        server.client(settings).publisher()
    }

    async fn reach(session: &dyn HostSession, wanted: SessionState) {
        timeout(PATIENCE, session.state().wait_for(|state| *state == wanted)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_confirmed_survives_a_crash_and_what_was_un_acked_comes_again() {
        let server = MemoryServer::new();
        let broker = server.client(MemorySettings::default());
        let mut session = broker.open_host(&host()).await;
        session.want_jobs(WantedJobs::All);
        reach(session.as_ref(), SessionState::Up).await;
        broker.publisher().publish(job(true)).await.unwrap();
        broker.publisher().publish(job(false)).await.unwrap();
        let held = session.next().await;
        server.go_down();
        assert!(!held.settle.ack().await);
        server.go_up();
        let again = timeout(PATIENCE, session.next()).await.unwrap();
        assert!(again.redelivered);
        assert!(again.settle.ack().await);
        assert_eq!(server.depth(&jobs_queue(&host())), Some(Depth::default()), "the transient one is gone");
    }

    #[tokio::test]
    async fn publishing_waits_for_a_broker_that_is_away_and_no_longer_than_the_limit() {
        let server = MemoryServer::new();
        server.enrol(&host());
        let patient = server.client(MemorySettings::default()).publisher();
        server.go_down();
        let publishing = tokio::spawn(async move { patient.publish(job(true)).await });
        tokio::task::yield_now().await;
        assert!(!publishing.is_finished());
        server.go_up();
        assert_eq!(publishing.await.unwrap(), Ok(()));
        server.block("low on memory");
        let error = impatient(&server).publish(job(true)).await.unwrap_err();
        assert!(error.to_string().ends_with("within 0 s: it takes no messages now: low on memory"), "{error}");
        assert_eq!(server.depth(&jobs_queue(&host())).unwrap().ready, 1);
    }

    #[tokio::test]
    async fn a_lost_confirm_leaves_the_message_and_an_error() {
        let server = MemoryServer::new();
        server.enrol(&host());
        server.lose_next_confirms(1);
        assert!(matches!(impatient(&server).publish(job(true)).await, Err(PublishError::Unconfirmed { .. })));
        assert_eq!(server.depth(&jobs_queue(&host())).unwrap().ready, 1);
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let server = MemoryServer::new();
        server.enrol(&host());
        server.limit_queue(&jobs_queue(&host()), 1);
        let publisher = server.client(MemorySettings::default()).publisher();
        publisher.publish(job(true)).await.unwrap();
        assert!(matches!(publisher.publish(job(true)).await, Err(PublishError::Refused { .. })));
    }

    #[tokio::test]
    async fn a_silent_consumer_and_a_deleted_queue_are_noticed() {
        let server = MemoryServer::new();
        let broker = server.client(MemorySettings::default());
        let mut session = broker.open_host(&host()).await;
        session.want_jobs(WantedJobs::All);
        reach(session.as_ref(), SessionState::Up).await;
        server.silence_consumers();
        broker.publisher().publish(job(true)).await.unwrap();
        let delivery = timeout(PATIENCE, session.next()).await.expect("the silence was not noticed");
        assert!(delivery.settle.ack().await);
        server.delete_queue(&control_queue(&host()));
        timeout(PATIENCE, async {
            while server.depth(&control_queue(&host())).is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the queue was not declared again");
        reach(session.as_ref(), SessionState::Up).await;
    }
}
