//! A host's session: its control queue, held exclusively, and its jobs.
//!
//! ```text
//!  connecting ──> taking the control queue ──> held: jobs, control, pings
//!      ^            │ refused for 4 heartbeats:      │
//!      │            │ "host id in use", tried on     │
//!      └── backoff ─┴──────── lost or silent ────────┘
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::consume::{JobQueues, QueueConsumer};
use super::declare::declare;
use super::failure::LinkError;
use super::inbox::Inbox;
use super::link::{Link, LinkHealth, Role, lost};
use super::ping::Ping;
use super::publisher::PublishLink;
use super::thread::AmqpThread;
use crate::broker::backoff::Backoff;
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::{PING_COMMAND, control_key, control_queue, host_queues, shared_queues};
use crate::broker::{Delivery, HostSession, PublishError, SessionState, WantedJobs};
use crate::message::vouch::is_own_ping;
use crate::model::id::HostId;

/// How long a session may take to end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What the caller holds.
struct SessionHandle {
    inbox: Arc<Inbox>,
    state: watch::Receiver<SessionState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Keeps the task's thread.
    _thread: Arc<AmqpThread>,
}

/// Opens a session.
pub(super) fn open(
    thread: &Arc<AmqpThread>,
    settings: Arc<BrokerSettings>,
    host: HostId,
    publish: PublishLink,
) -> Box<dyn HostSession> {
    let inbox = Arc::new(Inbox::default());
    let stop = thread.stop_token();
    let (state, state_seen) = watch::channel(SessionState::Connecting { reason: "not connected yet".to_owned() });
    let task = SessionTask {
        settings,
        host,
        inbox: Arc::clone(&inbox),
        publish_health: publish.health.clone(),
        publish,
        state,
        refused_since: None,
    };
    let task = thread.spawn(task.run(stop.clone()));
    Box::new(SessionHandle { inbox, state: state_seen, stop, task, _thread: Arc::clone(thread) })
}

#[async_trait]
impl HostSession for SessionHandle {
    async fn next(&mut self) -> Delivery {
        self.inbox.next().await
    }

    fn want_jobs(&self, wanted: WantedJobs) {
        self.inbox.want_jobs(wanted);
    }

    fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    async fn close(mut self: Box<Self>) {
        self.stop.cancel();
        if timeout(CLOSE_WAIT, &mut self.task).await.is_err() {
            tracing::warn!("the session with the broker did not end within {} s", CLOSE_WAIT.as_secs());
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The task behind it.
struct SessionTask {
    settings: Arc<BrokerSettings>,
    host: HostId,
    inbox: Arc<Inbox>,
    publish: PublishLink,
    publish_health: watch::Receiver<LinkHealth>,
    state: watch::Sender<SessionState>,
    /// Since when another consumer has held the control queue.
    refused_since: Option<Instant>,
}

impl SessionTask {
    async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let ended = self.life(&stop, &mut backoff).await;
            // What was delivered on the old channels can be acked no more; the broker delivers it again.
            self.inbox.clear();
            let Err(error) = ended else { return };
            tracing::warn!("no jobs are read: {}", error.chain());
            self.show(SessionState::Connecting { reason: error.chain() });
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// One connection, from its begin to its end. `Ok` means that the session was closed.
    async fn life(&mut self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<(), LinkError> {
        let link = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            link = Link::open(&self.settings, Role::Consume) => link?,
        };
        let mut serving = pin!(self.serve(&link, backoff));
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            error = &mut serving => Err(if error.is_not_found() { LinkError::NotSetUp(Box::new(error)) } else { error }),
        };
        // Before the channels go with `serving`: lapin makes an error of a goodbye that crosses that of a channel.
        link.close().await;
        ended
    }

    async fn serve(&mut self, link: &Link, backoff: &mut Backoff) -> LinkError {
        let mut queues = shared_queues();
        queues.extend(host_queues(&self.host, self.settings.jobs_queue_type));
        if let Err(error) = declare(link, &queues).await {
            return error;
        }
        match self.take_control(link, backoff).await {
            Ok(control) => {
                backoff.reset();
                self.hold(link, control).await
            }
            Err(error) => error,
        }
    }

    /// Takes the control queue, however long another consumer holds it.
    async fn take_control(&mut self, link: &Link, backoff: &mut Backoff) -> Result<QueueConsumer, LinkError> {
        let mut health = link.health();
        loop {
            let error = match QueueConsumer::control(link, control_queue(&self.host)).await {
                Ok(control) => {
                    self.refused_since = None;
                    return Ok(control);
                }
                Err(error) if error.is_in_use() => error,
                Err(error) => return Err(error),
            };
            let since = *self.refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.settings.in_use_after() {
                self.show(SessionState::HostIdInUse);
            } else {
                self.show(SessionState::Connecting { reason: error.chain() });
            }
            tokio::select! {
                biased;
                error = lost(&mut health) => return Err(error),
                () = sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// Reads control messages, and jobs while they are wanted, until something breaks.
    async fn hold(&mut self, link: &Link, mut control: QueueConsumer) -> LinkError {
        let mut health = link.health();
        let mut jobs = match JobQueues::new(link, &self.host, self.settings.prefetch).await {
            Ok(jobs) => jobs,
            Err(error) => return error,
        };
        let mut ping = Ping::new(self.settings.ping_interval, self.settings.ping_wait, Instant::now());
        let mut ping_publish: Option<BoxFuture<'static, Result<(), PublishError>>> = None;
        loop {
            if let Err(error) = jobs.follow(&self.inbox).await {
                return error;
            }
            if ping_publish.is_none()
                && let Some(outgoing) = ping.due(&self.host, Instant::now())
            {
                let (publish, wait) = (self.publish.clone(), self.settings.ping_wait);
                ping_publish = Some(Box::pin(async move { publish.publish(outgoing, wait, Some(wait)).await }));
            }
            self.show_held(&ping);
            tokio::select! {
                biased;
                error = lost(&mut health) => return error,
                delivery = control.next() => match delivery {
                    Ok(delivery) => self.take_control_message(delivery, &mut ping).await,
                    Err(error) => return error,
                },
                published = published(&mut ping_publish) => {
                    ping_publish = None;
                    if let Err(error) = self.ping_published(published, &mut ping) {
                        return error;
                    }
                }
                Ok(()) = self.publish_health.changed() => {}
                () = self.inbox.reading_changed() => {}
                () = sleep_to(ping.wake_at()) => if ping.is_silent(Instant::now()) {
                    return LinkError::Silent(format!(
                        "the ping through the own control queue did not arrive within {} s",
                        self.settings.ping_wait.as_secs_f32()
                    ));
                },
                delivery = jobs.next() => match delivery {
                    Ok(delivery) => self.inbox.push(delivery),
                    Err(error) => return error,
                },
            }
        }
    }

    /// Passes a control message on; pings stay here.
    async fn take_control_message(&self, delivery: Delivery, ping: &mut Ping) {
        if delivery.routing_key != control_key(&self.host, PING_COMMAND) {
            return self.inbox.push(delivery);
        }
        if is_own_ping(delivery.sent(), self.settings.uri.user()) {
            ping.arrived(&delivery.properties.message_id);
        }
        // Were it lost, the ping would come again and count for nothing.
        _ = delivery.settle.ack().await;
    }

    /// What the fate of the ping's publish says.
    fn ping_published(&self, published: Result<(), PublishError>, ping: &mut Ping) -> Result<(), LinkError> {
        match published {
            Ok(()) => ping.confirmed(Instant::now()),
            Err(PublishError::Unroutable { .. }) => {
                return Err(LinkError::Silent("the own control queue is gone".to_owned()));
            }
            Err(error) => {
                ping.given_up();
                let up = *self.publish_health.borrow() == LinkHealth::Up;
                if up && matches!(error, PublishError::Unconfirmed { .. }) {
                    self.publish.rebuild.notify_waiters();
                }
            }
        }
        Ok(())
    }

    fn show_held(&mut self, ping: &Ping) {
        let state = match &*self.publish_health.borrow_and_update() {
            LinkHealth::Blocked(reason) => SessionState::Blocked { reason: reason.clone() },
            LinkHealth::Down(reason) => SessionState::Connecting { reason: reason.clone() },
            LinkHealth::Up if ping.answered() => SessionState::Up,
            LinkHealth::Up => SessionState::Connecting { reason: "the first ping is under way".to_owned() },
        };
        self.show(state);
    }

    fn show(&self, state: SessionState) {
        self.state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}

/// Sleeps until then, if there is a then.
async fn sleep_to(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// The fate of the ping's publish, if there is one.
async fn published(publish: &mut Option<BoxFuture<'static, Result<(), PublishError>>>) -> Result<(), PublishError> {
    match publish {
        Some(publish) => publish.await,
        None => std::future::pending().await,
    }
}
