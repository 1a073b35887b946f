//! Backups that go, and children that take over what they held.
//!
//! It promises that wherever a deletion is cut off, each backup that is listed can be restored, and that another mover which is asked for
//! the same goes on there. Everything here blocks, but for the images, which [`image`](super::image) makes.
//!
//! ```text
//!   child C, based on M, based on P; beside them .merging-<C>.… : images of C that are based on P, a README, a manifest, all read back
//!                                                                                                     lease confirmed
//!   each image ─▶ its place in C ─fsync─▶ README, manifest ─▶ their places ─fsync─▶ M moved into .deleting-<M>.…/ ─▶ removed
//!       └ header says P, manifest M:               └ both say P                    └ not listed
//!         readers follow the header, and P stays
//! ```
//!
//! An image has the same content before and after, and its backing file is there all the time. From the first image in its place to the
//! manifest in its own, P has a child that no manifest tells of: so what an image needs is asked of the image, too, before a backup goes.
//! What lies beside the backups is taken away by whoever takes the lease over, so that a holder who lost it puts nothing in anybody's place.

mod exchange;
mod members;

pub(super) use exchange::Merging;
pub(super) use members::members;
pub use members::members_at;

use exchange::{Exchange, prepare};

use super::protocol::Merger;
use super::share::{Dir, INSTANCES, WayOut, remove_taken};
use crate::failure::{Code, Failure};
use crate::model::deletion::may_go;
use crate::model::id::{BackupId, InstanceId};

/// A deletion that has changed no backup yet. The lease is to be confirmed before it goes on.
pub(super) struct Deletion {
    parent: Dir,
    instance: InstanceId,
    exchange: Option<Exchange>,
    ways_out: Vec<WayOut>,
}

impl Deletion {
    /// Prepares to delete these, in that order, when what was merged has taken its places. All that may not be done is refused here, with
    /// nothing done.
    pub fn begin(
        root: &Dir,
        instance: InstanceId,
        merger: Option<Merger>,
        merging: Option<&Merging>,
        backups: &[BackupId],
    ) -> Result<Self, Failure> {
        let parent = instance_dir(root, instance)?;
        may_go(&members(&parent, instance)?, merger.map(|Merger { child, from }| (child, from)), backups)?;
        let exchange = merger.map(|merger| prepare(root, instance, merger, merging)).transpose()?.flatten();
        let mut deletion = Self { parent, instance, exchange, ways_out: Vec::with_capacity(backups.len()) };
        for backup in backups {
            match WayOut::make(&deletion.parent, *backup) {
                Ok(way_out) => deletion.ways_out.push(way_out),
                Err(failure) => {
                    // They are empty; what stays of them, the next who takes the lease removes.
                    let _stays = deletion.give_up();
                    return Err(failure);
                }
            }
        }
        Ok(deletion)
    }

    /// Does it, under the lease of that number.
    pub fn go_on(&self, lease: u64) -> Result<(), Failure> {
        if let Some(exchange) = &self.exchange {
            exchange.take_places()?;
        }
        // What is there now is what counts.
        let members = members(&self.parent, self.instance)?;
        let backups: Vec<_> = self.ways_out.iter().map(WayOut::backup).collect();
        may_go(&members, None, &backups)?;
        for way_out in &self.ways_out {
            let of = members.iter().find(|member| member.backup_id == way_out.backup());
            way_out.take(&self.parent, of.and_then(|member| member.number), lease)?;
        }
        Ok(())
    }

    /// After it has failed, and the lease is still held: what is out of the listing is removed, and nothing else.
    pub fn give_up(&self) -> Result<(), Failure> {
        self.ways_out.iter().map(|way_out| way_out.remove(&self.parent)).fold(Ok(()), Result::and)
    }
}

/// Removes the files of what was taken out of the instance's listing.
pub(super) fn remove_deleted(root: &Dir, instance: InstanceId) -> Result<(), Failure> {
    match instance_dir(root, instance) {
        Err(none) if none.code == Code::BackupNotFound => Ok(()),
        parent => remove_taken(&parent?),
    }
}

/// The directory of an instance's backups; `backup_not_found` where it has none.
pub(super) fn instance_dir(root: &Dir, instance: InstanceId) -> Result<Dir, Failure> {
    root.open_dir(INSTANCES)?.open_dir(instance.to_string()).map_err(|error| match error.is_missing() {
        true => Failure::new(Code::BackupNotFound, format!("instance `{instance}` has no backups in the repository")),
        false => error.into(),
    })
}
