//! What a fake mover does to block devices.

use std::path::PathBuf;

use super::{FakeMover, out_of_order};
use crate::failure::Failure;
use crate::model::id::BackupId;
use crate::mover::protocol::{Reply, RestoredVolume, VolumePlace};

/// What is to be written over.
#[derive(Default)]
pub(super) struct Over {
    of: Option<(BackupId, Vec<RestoredVolume>)>,
    claimed: bool,
}

impl Over {
    pub fn of(volumes: &[RestoredVolume], backup: BackupId) -> Self {
        let is_device = |one: &&RestoredVolume| matches!(one.place, VolumePlace::Device { .. });
        let over: Vec<_> = volumes.iter().filter(is_device).cloned().collect();
        Self { of: (!over.is_empty()).then_some((backup, over)), claimed: false }
    }
}

impl FakeMover {
    pub(super) fn look_at_devices(&self, paths: &[PathBuf]) -> Result<Reply, Failure> {
        let world = self.movers.world();
        let devices = paths.iter().map(|path| world.volumes.device(path)).collect::<Result<_, _>>()?;
        Ok(Reply::Devices { devices })
    }

    pub(super) fn claim(&mut self) -> Result<Reply, Failure> {
        let (_, volumes) = self.to_overwrite().ok_or_else(|| out_of_order("claim", "restore"))?;
        self.movers.world().volumes.claim(&volumes)?;
        self.over.claimed = true;
        Ok(Reply::Done)
    }

    pub(super) fn overwrite(&mut self) -> Result<Reply, Failure> {
        let over = self.to_overwrite().filter(|_| self.over.claimed);
        let (backup, volumes) = over.ok_or_else(|| out_of_order("overwrite", "claim"))?;
        self.over = Over::default();
        self.movers.world().volumes.overwrite(&volumes, backup);
        self.report(volumes.iter().map(|volume| 2 * volume.virtual_bytes).sum());
        Ok(Reply::Done)
    }

    /// None once something else was asked for.
    fn to_overwrite(&self) -> Option<(BackupId, Vec<RestoredVolume>)> {
        self.over.of.clone().filter(|_| self.restored_bytes.is_some())
    }
}
