//! The images that QEMU writes itself: made and shown to it, and looked at when it is done.

use std::path::{Path, PathBuf};

use super::copy::base;
use super::places::Places;
use super::{SOCKETS, Session, make_room, out_of_order, reporter};
use crate::failure::Failure;
use crate::model::id::{DiskTarget, InstanceId};
use crate::mover::blocking;
use crate::mover::image::{Backups, PushedSet, ToPush};
use crate::mover::mount::{Pinned, expose};
use crate::mover::protocol::{PushTarget, Reply};
use crate::mover::share::Dir;
use crate::mover::writer::Writer;

/// What is to be pushed, and why some of it can't stand on its base.
struct Looked {
    disks: Vec<ToPush>,
    unusable: Vec<(DiskTarget, String)>,
    places: Vec<Pinned>,
}

impl Session {
    pub(super) async fn expose(
        &mut self,
        place: PathBuf,
        disks: Vec<PushTarget>,
        process: u32,
    ) -> Result<Reply, Failure> {
        let staging = self.staging()?;
        let pinned = self.pinned.as_ref().ok_or_else(|| out_of_order("expose", "stage"))?.place().to_owned();
        self.pushed = None;
        self.leave_bases().await?;
        let targets: Vec<_> = disks.iter().map(|disk| disk.target.clone()).collect();
        let (dir, room) = (staging.dir.clone(), staging.clone());
        let writer = blocking(move || make_room(&room, &targets).and_then(|()| Writer::of(process))).await?;
        let (root, own) = (self.root()?, self.directory.clone());
        let looked = blocking(move || look(&root, staging.instance, disks, &own)).await?;
        self.bases = looked.places;
        let mut images = PushedSet::make(pinned, self.directory.join(SOCKETS), looked.disks).await?;
        images.give_to(&writer).await?;
        let (host, shown) = (self.host.clone(), place.clone());
        blocking(move || {
            dir.let_others_pass(true)?;
            expose(&dir, &shown, &host)
        })
        .await?;
        writer.prove(&place, &images.known().await?).await?;
        images.flush_while_written();
        self.pushed = Some(images);
        Ok(Reply::Exposed { unusable: looked.unusable })
    }

    pub(super) async fn inspect(
        &mut self,
        changes_of: Vec<DiskTarget>,
        written_bytes: Option<u64>,
    ) -> Result<Reply, Failure> {
        let staging = self.staging()?;
        let dir = staging.dir.clone();
        // Only given back when all are good, as with a copy.
        let mut images = self.pushed.take().ok_or_else(|| out_of_order("inspect", "expose"))?;
        blocking(move || Ok(dir.let_others_pass(false)?)).await?;
        let (disks, warnings) = images.inspect(&changes_of, written_bytes, &reporter(&self.progress)).await?;
        for (file, sent) in images.blocks_sent() {
            staging.note_made(&file, Some(sent));
        }
        self.pushed = Some(images);
        Ok(Reply::Copied { disks, warnings })
    }
}

/// Looks at what the disks are to stand on. Blocks.
fn look(root: &Dir, instance: InstanceId, disks: Vec<PushTarget>, own: &Path) -> Result<Looked, Failure> {
    let (mut backups, mut places) = (Backups::new(root, instance), Places::new(own));
    let (mut to_push, mut unusable) = (Vec::with_capacity(disks.len()), Vec::new());
    for PushTarget { target, virtual_bytes, base: wanted } in disks {
        let found = match wanted {
            Some(wanted) if wanted.virtual_bytes != virtual_bytes => Err(format!(
                "the disk has {virtual_bytes} bytes and had {} in backup `{}`",
                wanted.virtual_bytes, wanted.backup
            )),
            Some(wanted) => base(&mut backups, &mut places, &target, &wanted)?.map(Some),
            None => Ok(None),
        };
        let base = found.unwrap_or_else(|reason| {
            unusable.push((target.clone(), reason));
            None
        });
        to_push.push(ToPush { disk: target, virtual_bytes, base });
    }
    Ok(Looked { disks: to_push, unusable, places: places.bind()? })
}
