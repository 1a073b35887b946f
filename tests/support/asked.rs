//! Movers of our own, which are asked what a worker asks, about images of the laboratory's Ceph cluster.

use std::path::PathBuf;
use std::time::Duration;

use longshore::failure::Failure;
use longshore::host::mover::{Mover, Movers, ProcessMovers};
use longshore::mover::protocol::{CredentialPlaces, NamedKey, Reply, Request};

use crate::share::LONGSHORE;

/// What a mover may take for names, also where it waits for a client that was killed.
const NAMES: Duration = Duration::from_secs(180);

/// Whoever asks has the key to the cluster.
pub struct Asked {
    movers: ProcessMovers,
    key: NamedKey,
    _folder: tempfile::TempDir,
}

impl Asked {
    pub fn new(key: NamedKey) -> Self {
        let folder = tempfile::tempdir_in("/run").unwrap();
        let nowhere = CredentialPlaces { dir: "/nowhere".into(), host_key: "/nowhere/host.key".into() };
        let movers = ProcessMovers::new(PathBuf::from(LONGSHORE), folder.path().to_owned(), nowhere);
        Self { movers, key, _folder: folder }
    }

    /// Asks a mover that knows of nothing but the key.
    pub fn ask(&self, request: Request) -> Result<Reply, Failure> {
        self.with(async |mover| {
            let keys = Request::Keys { keys: vec![self.key.clone()] };
            assert_eq!(mover.ask(keys, NAMES).await.unwrap(), Reply::Done);
            mover.ask(request, NAMES).await
        })
    }

    /// Talks to a mover that knows of nothing.
    pub fn with<T>(&self, talk: impl AsyncFnOnce(&mut Box<dyn Mover>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut mover = self.movers.start(&"asked".parse().unwrap()).await.unwrap();
            let said = talk(&mut mover).await;
            mover.stop().await.unwrap();
            said
        })
    }
}
