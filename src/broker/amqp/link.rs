//! One connection to the broker.
//!
//! It promises that a link which is dropped is gone, thread and socket, even where the other end no longer
//! answers: lapin's I/O thread waits for the broker's goodbye without a bound, so the socket is shut down under it.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_rs::traits::Reactor;
use futures_util::StreamExt;
use lapin::tcp::AsyncTcpStream;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::failure::{LinkError, answer, answer_within};
use super::wire::runtime;
use crate::broker::settings::BrokerSettings;

/// How long a connection may take from the name lookup to the broker's welcome.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long the TCP part of it may take.
const TCP_CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the broker may take to say goodbye.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// AMQP's reply code for "all is well".
const REPLY_SUCCESS: u16 = 200;

/// How a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkHealth {
    /// Usable.
    Up,
    /// The broker reads nothing from us for now, and says why.
    Blocked(String),
    /// Gone, or not there yet, and why.
    Down(String),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// To publish.
    Publish,
    /// To read a host's queues.
    Consume,
    /// To read an exchange in passing.
    Subscribe,
    /// To read the dead letters.
    Letters,
    /// To tell who reads them.
    Sign,
    /// To look whether all is there.
    Check,
}

impl Role {
    /// Its word in the connection's name.
    const fn as_str(self) -> &'static str {
        match self {
            Role::Publish => "publish",
            Role::Consume => "consume",
            Role::Subscribe => "subscribe",
            Role::Letters => "letters",
            Role::Sign => "sign",
            Role::Check => "check",
        }
    }
}

/// An open connection.
pub(super) struct Link {
    connection: Connection,
    socket: Socket,
    health: watch::Receiver<LinkHealth>,
    watcher: AbortHandle,
}

impl Link {
    /// Connects. Must run on the AMQP thread.
    pub(super) async fn open(settings: &BrokerSettings, role: Role) -> Result<Self, LinkError> {
        let action = format!("connect to the broker at `{}`", settings.uri.address());
        let name = format!("longshore {} {} {}", settings.client_name, env!("CARGO_PKG_VERSION"), role.as_str());
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "longshore".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let tls = if settings.uri.is_tls() { Some(settings.tls.connector()?) } else { None };
        let external = tls.is_some() && settings.tls.client.is_some();
        let frame_max = match role {
            Role::Publish | Role::Sign | Role::Check => settings.frame_max_bytes,
            Role::Consume | Role::Subscribe | Role::Letters => settings.read_frame_max_bytes,
        };
        let uri = settings.uri.to_lapin(settings.heartbeat_seconds, frame_max, external);
        let socket = Socket::default();
        let kept = socket.clone();
        let connecting = Connection::connector(
            uri,
            runtime(),
            async move |uri, runtime| {
                let to = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                let wire = tokio::time::timeout(TCP_CONNECT_WAIT, runtime.tcp_connect(to))
                    .await
                    .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                kept.keep(wire.socket()?);
                // To lapin all are plain: how its bytes travel is no concern of its own.
                Ok(AsyncTcpStream::Plain(wire.encrypted(tls.as_ref(), &uri.authority.host).await?))
            },
            properties,
        );
        let connection = match answer_within(CONNECT_WAIT, action, connecting).await {
            Ok(connection) => connection,
            Err(error) => {
                socket.shut_down();
                return Err(error);
            }
        };
        let (health, watcher) = watch_health(&connection);
        Ok(Self { connection, socket, health, watcher })
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel, LinkError> {
        answer("open a channel", self.connection.create_channel()).await
    }

    /// Its health now and the changes.
    pub(super) fn health(&self) -> watch::Receiver<LinkHealth> {
        self.health.clone()
    }

    /// Says goodbye and waits for the answer, within a bound.
    pub(super) async fn close(&self) {
        if let Err(error) =
            answer_within(CLOSE_WAIT, "close the connection", self.connection.close(REPLY_SUCCESS, "OK".into())).await
        {
            tracing::debug!("{}", error.chain());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.watcher.abort();
        self.socket.shut_down();
    }
}

/// Follows what lapin tells about a connection.
fn watch_health(connection: &Connection) -> (watch::Receiver<LinkHealth>, AbortHandle) {
    let (sender, receiver) = watch::channel(LinkHealth::Up);
    let mut events = connection.events_listener();
    let status = connection.status().clone();
    let watcher = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => _ = sender.send_replace(LinkHealth::Blocked(reason)),
                Event::ConnectionUnblocked => _ = sender.send_replace(LinkHealth::Up),
                // Errors of single channels come here too; those are seen where the channel is used.
                Event::Error(error) if !status.connected() => {
                    _ = sender.send_replace(LinkHealth::Down(error.to_string()));
                    return;
                }
                _ => {}
            }
        }
    });
    (receiver, watcher.abort_handle())
}

/// Waits until a link is gone.
pub(super) async fn lost(health: &mut watch::Receiver<LinkHealth>) -> LinkError {
    match health.wait_for(|health| matches!(health, LinkHealth::Down(_))).await.map(|health| health.clone()) {
        Ok(LinkHealth::Down(reason)) => LinkError::Lost(reason),
        _ => LinkError::Lost("nobody watches it any more".to_owned()),
    }
}

/// A second handle on the connection's socket.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn keep(&self, stream: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    fn shut_down(&self) {
        if let Some(stream) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It fails where the other end was faster, which is what we want.
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}
