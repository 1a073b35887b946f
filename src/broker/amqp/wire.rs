//! What lapin's bytes go through: TCP, or TLS over it, and on the way in a look at each frame (`frames`).
//!
//! lapin can do TLS itself, but where it is built without it, it takes an `amqps` address and sends the password in clear. So it
//! is built without it, and knows nothing but the streams that it is given here.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use rustls_connector::{AsyncTlsStream, RustlsConnector};

use super::frames::Frames;

/// A TCP stream as lapin's runtime makes it.
type Tcp = <Tokio as Reactor>::TcpStream;

/// A runtime whose connections are [`Wire`]s. Must be called on the AMQP thread.
pub(super) fn runtime() -> Runtime<RuntimeParts<Tokio, Wires>> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Wires(tokio)))
}

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 * 1024;

/// A connection to the broker.
pub(super) struct Wire {
    way: Way,
    frames: Frames,
}

/// How its bytes travel.
enum Way {
    Plain(Tcp),
    Tls(Box<AsyncTlsStream<Tcp>>),
}

impl Wire {
    /// Encrypts it, if there is a connector. The other end has to prove that it is `host`.
    pub(super) async fn encrypted(self, with: Option<&RustlsConnector>, host: &str) -> io::Result<Self> {
        let way = match (self.way, with) {
            (Way::Plain(tcp), Some(connector)) => Way::Tls(Box::new(connector.connect_async(host, tcp).await?)),
            (way, _) => way,
        };
        Ok(Self { way, frames: self.frames })
    }

    /// A second handle on its socket.
    pub(super) fn socket(&self) -> io::Result<TcpStream> {
        let tcp = match &self.way {
            Way::Plain(tcp) => tcp,
            Way::Tls(tls) => tls.get_ref().0,
        };
        tcp.get_ref().as_fd().try_clone_to_owned().map(TcpStream::from)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut bytes = [0; READ_BYTES];
        loop {
            let taken = self.frames.take(into);
            if taken > 0 || into.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            let read = match &mut self.way {
                Way::Plain(tcp) => Pin::new(tcp).poll_read(context, &mut bytes),
                Way::Tls(tls) => Pin::new(tls).poll_read(context, &mut bytes),
            };
            match ready!(read)? {
                0 => return Poll::Ready(Ok(0)),
                count => self.frames.add(bytes.get(..count).unwrap_or_default())?,
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_write(context, from),
            Way::Tls(tls) => Pin::new(tls).poll_write(context, from),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Way::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Plain(tcp) => Pin::new(tcp).poll_close(context),
            Way::Tls(tls) => Pin::new(tls).poll_close(context),
        }
    }
}

/// tokio's reactor, but for the type of the connections.
#[derive(Clone, Debug)]
pub(super) struct Wires(Tokio);

impl Reactor for Wires {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// lapin registers nothing; the trait's bound on the handle has no name outside its crate.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Wire, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, to: SocketAddr) -> impl Future<Output = io::Result<Wire>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(to);
        async move { Ok(Wire { way: Way::Plain(connecting.await?), frames: Frames::default() }) }
    }
}
