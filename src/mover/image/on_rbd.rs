//! A new volume on Ceph's RBD: an empty image that was made for it is written through QEMU, which leaves out what is zeros, and read back
//! by another QEMU. As with files, a block that is not what was hashed is never written.

use serde_json::{Value, json};

use super::original::Original;
use super::restored::{pass, read_back};
use super::server::{Besides, Cache, Serve, Server, Sockets};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::mover::nbd::Connection;
use crate::mover::rbd::Image;

/// A volume that was written.
#[derive(Debug)]
pub(super) struct OnRbd {
    disk: DiskTarget,
    pub original: Original,
    image: Image,
}

impl OnRbd {
    /// Writes the image, which is empty, with what `server` serves of the backup; answers the bytes that are data.
    pub async fn make(
        disk: DiskTarget,
        original: Original,
        image: Image,
        source: (Server, Connection),
        sockets: &mut Sockets,
        report: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(Self, u64), Failure> {
        let made = Self { disk, original, image };
        let writer = made.serve(true, sockets).await?;
        let (_, data_bytes) = pass(&made.disk, &made.original, source, Some(writer), false, report).await?;
        Ok((made, data_bytes))
    }

    /// Reads it back from the cluster and holds it against the hashes.
    pub async fn compare(&self, sockets: &mut Sockets, report: &(dyn Fn(u64, u64) + Sync)) -> Result<(), Failure> {
        let served = self.serve(false, sockets).await?;
        read_back(&self.disk, self.original.blocks.clone(), served, report).await
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
