//! One connection to the broker.
//!
//! It promises that a link which is dropped is gone, thread and socket, even where the other end no longer
//! answers: lapin's I/O thread waits for the broker's goodbye without a bound, so the socket is shut down under it.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::{AsyncTcpStream, TLSConfig};
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::failure::{LinkError, answer, answer_within};
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

/// An open connection.
pub(super) struct Link {
    connection: Connection,
    socket: Socket,
    health: watch::Receiver<LinkHealth>,
    watcher: AbortHandle,
}

impl Link {
    /// Connects. `role` says in the connection's name what it is for. Must run on the AMQP thread.
    pub(super) async fn open(settings: &BrokerSettings, role: &str) -> Result<Self, LinkError> {
        let action = format!("connect to the broker at `{}`", settings.uri.address());
        let name = format!("longshore {} {} {role}", settings.client_name, env!("CARGO_PKG_VERSION"));
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "longshore".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let uri = settings.uri.to_lapin(settings.heartbeat_seconds, settings.frame_max_bytes);
        let socket = Socket::default();
        let kept = socket.clone();
        let runtime =
            lapin::runtime::default_runtime().map_err(|source| LinkError::Failed { action: action.clone(), source })?;
        let connecting = Connection::connector(
            uri,
            runtime,
            async move |uri, runtime| {
                let to = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                let stream = tokio::time::timeout(TCP_CONNECT_WAIT, AsyncTcpStream::connect(&runtime, to))
                    .await
                    .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                if let AsyncTcpStream::Plain(tcp) = &stream {
                    tcp.get_ref().set_nodelay(true)?;
                    kept.keep(TcpStream::from(tcp.get_ref().as_fd().try_clone_to_owned()?));
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => Ok(stream.into_tls(&uri.authority.host, TLSConfig::default()).await?),
                }
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
