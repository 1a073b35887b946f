//! Files that a restore makes where nothing is, in memory. Each has an inode, and so has each directory, as those of a file system have.

use std::path::Path;

use super::{FakeMover, FakeVolume};
use crate::failure::{Code, Failure};
use crate::host::mover::fake::volumes::Volumes;
use crate::model::destination::below;
use crate::model::id::{BackupId, InstanceId};
use crate::mover::protocol::{NewContent, NewFile, NewFiles, Reply, ToMake, ToWeigh, Weighed};

/// How far it has come with one file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Made,
    Named,
    /// Somebody else has the name.
    Taken,
    /// It is seen under neither name, or its directory is another one.
    Gone,
}

fn state(volumes: &Volumes, file: &NewFile) -> State {
    let is_new = |path: &Path| {
        let inode = volumes.inodes.get(path).filter(|_| volumes.standing.contains_key(path));
        inode.is_some_and(|inode| file.made.is_none_or(|made| made == *inode))
    };
    if file.directory.is_some_and(|known| known != volumes.directory_of(&file.path)) {
        return State::Gone;
    }
    match (is_new(&file.fresh), volumes.standing.contains_key(&file.path)) {
        (true, false) => State::Made,
        (true, true) => State::Taken,
        (false, true) if is_new(&file.path) => State::Named,
        (false, _) => State::Gone,
    }
}

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
        let unmade = |file: &NewFile| NewFile { made: None, ..file.clone() };
        let unmade = NewFiles { files: new.files.iter().map(unmade).collect(), ..new.clone() };
        self.may_be_made(&unmade)?;
        let mut inodes = Vec::new();
        for NewFile { content, fresh, .. } in &new.files {
            let made = match content {
                NewContent::Disk { disk, .. } => FakeVolume::Restored { backup, disk: disk.clone() },
                NewContent::Record { file } => {
                    self.share(|share| share.record(instance, backup, file))?;
                    FakeVolume::Record { backup, file: file.clone() }
                }
            };
            inodes.push(self.movers.world().volumes.make(fresh, made));
        }
        let total = disks.iter().map(|disk| disk.virtual_bytes).sum();
        self.report(total);
        self.restored_bytes = Some(total);
        Ok(Reply::MadeNew { disks, inodes })
    }

    pub(super) fn look_at_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        self.may_be_made(new)?;
        let volumes = &self.movers.world().volumes;
        Ok(Reply::Places { directories: new.files.iter().map(|file| volumes.directory_of(&file.path)).collect() })
    }

    pub(super) fn weigh(&mut self, wanted: &ToWeigh) -> Result<Reply, Failure> {
        let of_disk = |disk| self.share(|share| share.data_bytes(wanted.instance, wanted.backup, disk));
        let data_bytes = wanted.to_make.disks().into_iter().map(of_disk).collect::<Result<_, _>>()?;
        let mut warnings = Vec::new();
        match &wanted.to_make {
            ToMake::New(new) => self.may_be_made(new)?,
            ToMake::InPlace { volumes, .. } => {
                let world = self.movers.world();
                world.volumes.can_be_replaced(volumes)?;
                warnings.extend(world.volumes.claim(volumes).err().map(|failure| failure.text));
            }
        }
        Ok(Reply::Weighed(Weighed { data_bytes, warnings }))
    }

    fn may_be_made(&self, new: &NewFiles) -> Result<(), Failure> {
        let volumes = &self.movers.world().volumes;
        for path in new.files.iter().map(|file| &file.path).chain(&new.vacant) {
            let shown = path.display();
            if below(&new.roots, path).is_none() {
                return Err(Failure::new(Code::PathNotAllowed, format!("no new file can be made at `{shown}`")));
            }
            let twice = new.vacant.contains(path) && new.files.iter().any(|file| file.path == *path);
            if twice || volumes.standing.contains_key(path) {
                return Err(Failure::new(Code::VolumeExists, format!("`{shown}` is there already")));
            }
        }
        let gone = |file: &&NewFile| {
            let is_elsewhere = file.directory.is_some_and(|known| known != volumes.directory_of(&file.path));
            is_elsewhere || (file.made.is_some() && state(volumes, file) == State::Gone)
        };
        match new.files.iter().find(gone) {
            Some(file) => Err(Failure::new(Code::VolumeIo, format!("`{}` is not seen", file.fresh.display()))),
            None => Ok(()),
        }
    }

    pub(super) fn place_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        self.restored_bytes = None;
        let volumes = &mut self.movers.world().volumes;
        if let Some(file) = new.files.iter().find(|file| state(volumes, file) == State::Gone) {
            return Ok(not_seen(&file.fresh));
        }
        if let Some(taken) = new.files.iter().find(|file| state(volumes, file) == State::Taken) {
            new.files.iter().for_each(|file| unname(volumes, file));
            return Err(Failure::new(Code::VolumeExists, format!("`{}` is there already", taken.path.display())));
        }
        for file in &new.files {
            if state(volumes, file) == State::Made {
                volumes.rename(&file.fresh, &file.path);
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn take_back_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        let volumes = &mut self.movers.world().volumes;
        for file in &new.files {
            if state(volumes, file) == State::Gone {
                return Ok(not_seen(&file.fresh));
            }
            unname(volumes, file);
        }
        Ok(Reply::Done)
    }

    pub(super) fn remove_new(&mut self, new: &NewFiles) -> Result<Reply, Failure> {
        self.restored_bytes = None;
        let volumes = &mut self.movers.world().volumes;
        for file in &new.files {
            if file.directory.is_some_and(|known| known != volumes.directory_of(&file.path)) {
                return Err(Failure::new(Code::VolumeIo, format!("`{}` is not seen", file.fresh.display())));
            }
            volumes.standing.remove(&file.fresh);
        }
        Ok(Reply::Done)
    }
}

fn unname(volumes: &mut Volumes, file: &NewFile) {
    if state(volumes, file) == State::Named {
        volumes.rename(&file.path, &file.fresh);
    }
}

fn not_seen(fresh: &Path) -> Reply {
    Reply::NotKnown { failure: Failure::new(Code::VolumeIo, format!("`{}` is not seen", fresh.display())) }
}
