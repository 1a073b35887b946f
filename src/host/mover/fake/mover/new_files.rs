//! Files that a restore makes where nothing is, in memory.

use std::path::Path;

use super::{FakeMover, FakeVolume};
use crate::failure::{Code, Failure};
use crate::model::destination::below;
use crate::model::id::{BackupId, InstanceId};
use crate::mover::protocol::{NewContent, NewFile, NewFiles, Reply};

impl FakeMover {
    pub(super) fn make_new(
        &mut self,
        instance: InstanceId,
        backup: BackupId,
        new: &NewFiles,
    ) -> Result<Reply, Failure> {
        self.check_lease_of("make_new", instance)?;
        self.restored_bytes = None;
        let disks = new.files.iter().filter_map(|file| match &file.content {
            NewContent::Disk { disk, virtual_bytes, content_root, .. } => {
                Some((disk, *virtual_bytes, content_root.as_str()))
            }
            NewContent::Record { .. } => None,
        });
        let disks = self.share(|share| share.restorable(instance, backup, disks))?;
        for file in &new.files {
            self.may_be_made(new, file)?;
        }
        for NewFile { content, fresh, .. } in &new.files {
            let made = match content {
                NewContent::Disk { disk, .. } => FakeVolume::Restored { backup, disk: disk.clone() },
                NewContent::Record { file } => {
                    self.share(|share| share.record(instance, backup, file))?;
                    FakeVolume::Record { backup, file: file.clone() }
                }
            };
            self.movers.world().volumes.standing.insert(fresh.clone(), made);
        }
        let total = disks.iter().map(|disk| disk.virtual_bytes).sum();
        self.report(total);
        self.restored_bytes = Some(total);
        Ok(Reply::MadeNew { disks, inodes: vec![0; new.files.len()] })
    }

    pub(super) fn look_at_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        new.files.iter().try_for_each(|file| self.may_be_made(new, file))?;
        Ok(Reply::Places { directories: vec![0; new.files.len()] })
    }

    fn may_be_made(&self, new: &NewFiles, file: &NewFile) -> Result<(), Failure> {
        let shown = file.path.display();
        if below(&new.roots, &file.path).is_none() {
            return Err(Failure::new(Code::PathNotAllowed, format!("no new file can be made at `{shown}`")));
        }
        match self.movers.world().volumes.standing.contains_key(&file.path) {
            true => Err(Failure::new(Code::VolumeExists, format!("`{shown}` is there already"))),
            false => Ok(()),
        }
    }

    pub(super) fn place_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        self.restored_bytes = None;
        let standing = &mut self.movers.world().volumes.standing;
        for NewFile { path, fresh, .. } in &new.files {
            match (standing.contains_key(fresh), standing.get(path)) {
                (true, Some(_)) => {
                    return Err(Failure::new(Code::VolumeExists, format!("`{}` is there already", path.display())));
                }
                (false, named) if !is_new(named) => return Ok(not_seen(fresh)),
                (true, None) | (false, _) => {}
            }
        }
        for NewFile { path, fresh, .. } in &new.files {
            if let Some(made) = standing.remove(fresh) {
                standing.insert(path.clone(), made);
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn take_back_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        let standing = &mut self.movers.world().volumes.standing;
        for NewFile { path, fresh, .. } in &new.files {
            if standing.contains_key(fresh) {
                continue;
            }
            if !is_new(standing.get(path)) {
                return Ok(not_seen(fresh));
            }
            if let Some(named) = standing.remove(path) {
                standing.insert(fresh.clone(), named);
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn remove_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        self.restored_bytes = None;
        let standing = &mut self.movers.world().volumes.standing;
        new.files.iter().for_each(|file| drop(standing.remove(&file.fresh)));
        Ok(Reply::Done)
    }
}

fn is_new(volume: Option<&FakeVolume>) -> bool {
    matches!(volume, Some(FakeVolume::Restored { .. } | FakeVolume::Record { .. }))
}

fn not_seen(fresh: &Path) -> Reply {
    Reply::NotKnown { failure: Failure::new(Code::VolumeIo, format!("`{}` is not seen", fresh.display())) }
}
