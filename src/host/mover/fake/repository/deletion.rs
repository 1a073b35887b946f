//! How backups go from the share in memory, and what keeps them there.

use super::{FakeRepository, Files};
use crate::failure::{Code, Failure};
use crate::model::deletion::{Member, may_go};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::Manifest;
use crate::mover::protocol::Merger;

impl FakeRepository {
    /// Puts a backup there that is not made by a mover.
    pub fn put(&mut self, manifest: Manifest) {
        self.instance(manifest.instance_id).published.insert(manifest.backup_id, manifest);
    }

    /// Gives a backup a pin, or takes it away.
    pub fn pin(&mut self, backup: BackupId, pinned: bool) {
        if pinned {
            self.pinned.insert(backup)
        } else {
            self.pinned.remove(&backup)
        };
    }

    pub(in super::super) fn members(&mut self, id: InstanceId) -> Vec<Member> {
        let pinned = self.pinned.clone();
        let member = |manifest: &Manifest| Member {
            backup_id: manifest.backup_id,
            number: Some(manifest.number),
            based_on: manifest.parent().into_iter().collect(),
            images_on: manifest.parent().into_iter().collect(),
            unclear: None,
            bytes: manifest.stored_bytes(),
            pinned: pinned.contains(&manifest.backup_id),
        };
        self.instance(id).published.values().map(member).collect()
    }

    /// What the merged images take, and what those take whose places they will take.
    pub(in super::super) fn merge(
        &mut self,
        id: InstanceId,
        merger: Merger,
        name: &str,
    ) -> Result<(u64, u64), Failure> {
        let from = self.find(id, merger.from)?;
        let child = self.find(id, merger.child)?;
        if child.parent() != Some(merger.from) {
            return Ok((0, 0));
        }
        if [merger.from, merger.child].iter().any(|backup| self.damaged.contains(backup)) {
            return Err(Failure::new(Code::BackupDamaged, format!("backup `{}` is not what it was", merger.child)));
        }
        self.instance(id).staging.insert(name.to_owned(), Files::new());
        let bytes = |manifest: &Manifest| manifest.disks.iter().map(|disk| disk.file_bytes).sum::<u64>();
        Ok((bytes(&from) + bytes(&child), bytes(&child)))
    }

    /// `merged`: where the merged images of this mover are.
    pub(in super::super) fn delete(
        &mut self,
        id: InstanceId,
        merger: Option<Merger>,
        merged: Option<&str>,
        backups: &[BackupId],
    ) -> Result<(), Failure> {
        may_go(&self.members(id), merger.map(|Merger { child, from }| (child, from)), backups)?;
        if let Some(merger) = merger {
            self.take_places(id, merger, merged)?;
        }
        let members = self.members(id);
        may_go(&members, None, backups)?;
        for backup in backups {
            let Some(member) = members.iter().find(|member| member.backup_id == *backup) else { continue };
            let number = member.number.unwrap_or_default();
            let instance = self.instance(id);
            instance.highest_number = instance.highest_number.max(number);
            instance.published.remove(backup);
            instance.deleted.insert(*backup);
        }
        Ok(())
    }

    fn take_places(&mut self, id: InstanceId, merger: Merger, merged: Option<&str>) -> Result<(), Failure> {
        let mut child = self.find(id, merger.child)?;
        if child.parent() != Some(merger.from) {
            return Ok(());
        }
        let from = self.find(id, merger.from)?;
        let instance = self.instance(id);
        if merged.is_none_or(|name| instance.staging.remove(name).is_none()) {
            return Err(Failure::new(Code::Interrupted, "what was merged is not there any more"));
        }
        for disk in &mut child.disks {
            if let Some(below) = from.disks.iter().find(|below| below.target == disk.target) {
                disk.based_on = below.based_on.clone();
                disk.file_bytes += below.file_bytes;
            }
        }
        self.put(child);
        Ok(())
    }

    pub(in super::super) fn remove_deleted(&mut self, id: InstanceId) {
        self.instance(id).deleted.clear();
    }

    /// Backups that are out of the listing, while their files are not removed.
    pub fn deleted(&self) -> Vec<BackupId> {
        self.instances.values().flat_map(|instance| instance.deleted.iter().copied()).collect()
    }
}
