//! A wire between a libvirt client and the daemon's socket that a test can cut or hold.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Listens on a socket of its own and passes everything on to the daemon's.
pub struct Wire {
    pub socket: PathBuf,
    flows: watch::Sender<bool>,
    passing: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Wire {
    pub fn new(folder: &Path, daemon: PathBuf) -> Self {
        let socket = folder.join("wire.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let flows = watch::Sender::new(true);
        let passing: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let (gate, open) = (flows.clone(), Arc::clone(&passing));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&daemon).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (up, down) = (gate.subscribe(), gate.subscribe());
                let both = async move {
                    tokio::select! {
                        () = pass(from_client, to_server, up) => {}
                        () = pass(from_server, to_client, down) => {}
                    }
                };
                open.lock().unwrap().push(tokio::spawn(both).abort_handle());
            }
        });
        Self { socket, flows, passing }
    }

    /// Closes every connection; new ones are taken.
    pub fn cut(&self) {
        for passing in self.passing.lock().unwrap().drain(..) {
            passing.abort();
        }
    }

    /// From now on nothing passes, and nothing is closed.
    pub fn hold(&self) {
        self.flows.send_replace(false);
    }

    /// Lets pass what waits and what comes.
    pub fn release(&self) {
        self.flows.send_replace(true);
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut flows: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if flows.wait_for(|flows| *flows).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
