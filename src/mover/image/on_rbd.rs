//! A new volume on Ceph's RBD: an empty image that was made for it is written through QEMU, which leaves out what is zeros, and read back
//! by another QEMU. As with files, a block that is not what was hashed is never written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::original::Original;
use super::restored::{pass, read_back};
use super::server::{Besides, Cache, Serve, Server, Sockets};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::mover::nbd::Connection;
use crate::mover::rbd::{Image, Info, Settings};

/// How often it is looked whether anything was written since, and else whether the pool is full.
const LOOK_SECONDS: u64 = 10;

/// A volume that is made on an image.
#[derive(Debug)]
pub(super) struct OnRbd {
    pub disk: DiskTarget,
    pub original: Original,
    pub image: Image,
    pub settings: Settings,
}

impl OnRbd {
    /// Writes the image, which is empty, with what `server` serves of the backup; answers the bytes that are data.
    pub async fn write(
        &self,
        source: (Server, Connection),
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<u64, Failure> {
        let info = self.image.info().await?;
        let text = || format!("the RBD image `{}` is gone while it was to be written", self.image.spec());
        let info = info.ok_or_else(|| Failure::new(Code::VolumeIo, text()))?;
        let passed_bytes = AtomicU64::new(0);
        let report = |passed: u64, data: u64| {
            passed_bytes.store(passed, Ordering::Relaxed);
            report(passed, data);
        };
        let written = async {
            let writer = self.serve(true, sockets).await?;
            pass(&self.disk, &self.original, source, Some(writer), false, &report).await
        };
        tokio::select! {
            biased;
            written = written => written.map(|(_, data_bytes)| data_bytes),
            failure = self.is_full(&info, &passed_bytes) => Err(failure),
        }
    }

    /// Resolves where a pool of the image is full: its cluster lets the writes wait then, and answers none with an error.
    async fn is_full(&self, info: &Info, passed_bytes: &AtomicU64) -> Failure {
        let own = self.image.pool();
        let pools = [info.data_pool().unwrap_or(own), own];
        loop {
            let before = passed_bytes.load(Ordering::Relaxed);
            sleep(Duration::from_secs(LOOK_SECONDS)).await;
            if passed_bytes.load(Ordering::Relaxed) != before {
                continue;
            }
            if let Some(pool) = self.image.full_pool(pools).await {
                let text = format!("cannot go on to write the RBD image `{}`", self.image.spec());
                return Failure::new(Code::VolumeFull, text).caused_by(format!("the RBD pool `{pool}` is full"));
            }
        }
    }

    /// Reads it back from the cluster and holds it against the hashes. Then it gets the settings of the old one, whose limits would hold up
    /// both the writing and the reading before; answers, as warnings, which it does not have.
    pub async fn compare(
        &self,
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Vec<String>, Failure> {
        let served = self.serve(false, sockets).await?;
        read_back(&self.disk, self.original.blocks.clone(), served, report).await?;
        Ok(self.image.set(&self.settings).await)
    }

    async fn serve(&self, writable: bool, sockets: &mut Sockets) -> Result<(Server, Connection), Failure> {
        let node: Value = json!({"driver": "raw", "file": self.image.node()});
        let shown = format!("`{}`", self.image.spec());
        let serve = Serve {
            node: &node,
            key: self.image.key(),
            writable,
            cache: Cache::Direct,
            besides: Besides::Nothing,
            device: Code::VolumeIo,
            shown: shown.clone(),
        };
        let (server, connection) = Server::start(serve, &sockets.next()).await?;
        let (size, wanted) = (connection.export().size, self.original.blocks.virtual_bytes());
        match size == wanted {
            true => Ok((server, connection)),
            false => Err(Failure::new(Code::VolumeIo, format!("{shown} is one of {size} bytes and not of {wanted}"))),
        }
    }
}
