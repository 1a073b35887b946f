//! A share in memory: what the real one keeps in directories, with the same refusals.

mod deletion;

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, DiskTarget, InstanceId, RepositoryId};
use crate::model::manifest::Manifest;
use crate::mover::protocol::{BaseDisk, CopiedDisk};

/// Bytes free in a new one.
const FREE_BYTES: u64 = 1 << 40;

/// Who holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody: never taken, given back, or its holder died.
    Nobody,
    /// A mover of this world, by its key.
    Mover(u64),
    /// A worker elsewhere.
    Stranger,
}

/// A file of a backup: its content, or its length where nobody cares for the content.
#[derive(Clone, Debug)]
pub(super) enum FakeFile {
    Small(Vec<u8>),
    Image(u64),
}

impl FakeFile {
    pub fn bytes(&self) -> u64 {
        match self {
            FakeFile::Small(content) => content.len() as u64,
            FakeFile::Image(bytes) => *bytes,
        }
    }
}

pub(super) type Files = BTreeMap<String, FakeFile>;

pub(super) struct Instance {
    lease_number: u64,
    pub holder: Holder,
    pub staging: BTreeMap<String, Files>,
    pub published: BTreeMap<BackupId, Manifest>,
    /// Those of published backups.
    files: BTreeMap<BackupId, Files>,
    /// Out of the listing, their files not removed yet.
    deleted: BTreeSet<BackupId>,
    /// Of a backup that is no more.
    highest_number: u64,
}

/// A repository in memory.
pub struct FakeRepository {
    /// Its identity.
    pub id: RepositoryId,
    /// Bytes free.
    pub free_bytes: u64,
    /// It is on the device of its parent directory.
    pub same_device: bool,
    /// It cannot be written to.
    pub read_only: bool,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) damaged: BTreeSet<BackupId>,
    pinned: BTreeSet<BackupId>,
}

impl FakeRepository {
    pub(super) fn new() -> Self {
        Self {
            id: RepositoryId::draw(),
            free_bytes: FREE_BYTES,
            same_device: false,
            read_only: false,
            instances: BTreeMap::new(),
            damaged: BTreeSet::new(),
            pinned: BTreeSet::new(),
        }
    }

    fn instance(&mut self, id: InstanceId) -> &mut Instance {
        self.instances.entry(id).or_insert_with(|| Instance {
            lease_number: 0,
            holder: Holder::Nobody,
            staging: BTreeMap::new(),
            published: BTreeMap::new(),
            files: BTreeMap::new(),
            deleted: BTreeSet::new(),
            highest_number: 0,
        })
    }

    /// Gives the lease to somebody, fences everybody else's staging, and answers who held it before.
    pub(super) fn take_over(&mut self, id: InstanceId, holder: Holder) -> Holder {
        let instance = self.instance(id);
        instance.lease_number += 1;
        instance.staging.clear();
        instance.deleted.clear();
        std::mem::replace(&mut instance.holder, holder)
    }

    pub(super) fn lease(&mut self, id: InstanceId, key: u64) -> Result<u64, Failure> {
        if self.instance(id).holder != Holder::Nobody {
            return Err(Failure::new(Code::LeaseHeld, format!("another worker holds the lease of instance `{id}`")));
        }
        self.take_over(id, Holder::Mover(key));
        Ok(self.instance(id).lease_number)
    }

    pub(super) fn leased(&mut self, id: InstanceId, key: u64) -> Result<u64, Failure> {
        self.check_lease(id, key)?;
        Ok(self.instance(id).lease_number)
    }

    pub(super) fn check_lease(&mut self, id: InstanceId, key: u64) -> Result<(), Failure> {
        match self.instance(id).holder == Holder::Mover(key) {
            true => Ok(()),
            false => Err(Failure::new(Code::LeaseLost, format!("the lease of instance `{id}` was taken over"))),
        }
    }

    pub(super) fn release(&mut self, id: InstanceId, key: u64) {
        let instance = self.instance(id);
        if instance.holder == Holder::Mover(key) {
            instance.holder = Holder::Nobody;
        }
    }

    pub(super) fn holder_died(&mut self, key: u64) {
        for instance in self.instances.values_mut().filter(|instance| instance.holder == Holder::Mover(key)) {
            instance.holder = Holder::Nobody;
        }
    }

    pub(super) fn stage(&mut self, id: InstanceId, backup: BackupId, name: &str) -> Result<(), Failure> {
        let instance = self.instance(id);
        if instance.published.contains_key(&backup) {
            return Err(Failure::new(Code::BackupExists, format!("backup `{backup}` is published already")));
        }
        instance.staging.insert(name.to_owned(), Files::new());
        Ok(())
    }

    pub(super) fn files(&mut self, id: InstanceId, name: &str) -> Result<&mut Files, Failure> {
        let gone = || Failure::new(Code::RepositoryIo, format!("there is no `{name}`"));
        self.instance(id).staging.get_mut(name).ok_or_else(gone)
    }

    pub(super) fn discard(&mut self, id: InstanceId, name: &str) {
        self.instance(id).staging.remove(name);
    }

    pub(super) fn publish(&mut self, name: &str, mut manifest: Manifest) -> Result<u64, Failure> {
        let instance = self.instance(manifest.instance_id);
        let Some(files) = instance.staging.get(name) else {
            return Err(Failure::new(Code::LeaseLost, format!("`{name}` was taken away")));
        };
        let named = manifest.disks.iter().map(|disk| (&disk.file, Some(disk.file_bytes)));
        let named = named.chain(manifest.disks.iter().map(|disk| (&disk.blocks_file, None)));
        for (file, wanted) in named.chain(manifest.records.iter().map(|record| (&record.file, Some(record.bytes)))) {
            let found = files.get(file).map(FakeFile::bytes);
            if found.is_none() || wanted.is_some_and(|wanted| found != Some(wanted)) {
                return Err(Failure::new(Code::RepositoryIo, format!("`{file}` is not as the manifest says")));
            }
        }
        if instance.published.contains_key(&manifest.backup_id) {
            return Err(Failure::new(Code::BackupExists, format!("backup `{}` is published", manifest.backup_id)));
        }
        let numbers = instance.published.values().map(|published| published.number);
        let number = numbers.chain([instance.highest_number]).max().unwrap_or(0) + 1;
        manifest.number = number;
        let files = instance.staging.remove(name).unwrap_or_default();
        instance.files.insert(manifest.backup_id, files);
        instance.published.insert(manifest.backup_id, manifest);
        Ok(number)
    }

    pub(super) fn find(&mut self, id: InstanceId, backup: BackupId) -> Result<Manifest, Failure> {
        let found = self.instance(id).published.get(&backup).cloned();
        found.ok_or_else(|| Failure::new(Code::BackupNotFound, format!("backup `{backup}` is not published")))
    }

    /// The latest backup after those below it.
    pub(super) fn latest_chain(&mut self, id: InstanceId) -> Vec<Manifest> {
        let published = &self.instance(id).published;
        let latest = published.values().max_by_key(|manifest| manifest.number);
        let below = |manifest: &&Manifest| manifest.parent().and_then(|parent| published.get(&parent));
        let mut chain: Vec<_> = std::iter::successors(latest, below).cloned().collect();
        chain.reverse();
        chain
    }

    pub(super) fn damage(&mut self, backup: BackupId) {
        self.damaged.insert(backup);
    }

    /// A published backup holds that disk so that another can be based on it.
    pub(super) fn holds(&mut self, id: InstanceId, base: &BaseDisk, target: &DiskTarget) -> Result<(), Failure> {
        let manifest = self.find(id, base.backup)?;
        let disk = manifest.disks.iter().find(|disk| disk.target == *target);
        match disk.filter(|disk| disk.content_root == base.content_root && !self.damaged.contains(&base.backup)) {
            Some(_) => Ok(()),
            None => {
                let text = format!("disk `{target}` of backup `{}` is not what was backed up", base.backup);
                Err(Failure::new(Code::BackupDamaged, text))
            }
        }
    }

    /// A record of a published backup.
    pub(super) fn record(&mut self, id: InstanceId, backup: BackupId, file: &str) -> Result<Vec<u8>, Failure> {
        let known = self.find(id, backup)?.records.iter().any(|record| record.file == file);
        match self.instance(id).files.get(&backup).and_then(|files| files.get(file)) {
            Some(FakeFile::Small(content)) if known => Ok(content.clone()),
            _ => Err(Failure::new(Code::BackupDamaged, format!("backup `{backup}` has no record `{file}`"))),
        }
    }

    /// What a published backup holds of the disks that are to be restored, each by its name, size and hash, if that is what was asked for.
    pub(super) fn restorable<'w>(
        &mut self,
        id: InstanceId,
        backup: BackupId,
        wanted: impl Iterator<Item = (&'w DiskTarget, u64, &'w str)>,
    ) -> Result<Vec<CopiedDisk>, Failure> {
        let manifest = self.find(id, backup)?;
        let restorable = |(target, virtual_bytes, content_root): (&DiskTarget, u64, &str)| {
            let Some(disk) = manifest.disks.iter().find(|disk| disk.target == *target) else {
                return Err(Failure::new(Code::DiskNotFound, format!("backup `{backup}` has no disk `{target}`")));
            };
            let as_asked = (disk.virtual_bytes, disk.content_root.as_str()) == (virtual_bytes, content_root);
            if self.damaged.contains(&backup) || !as_asked {
                let text = format!("disk `{target}` of backup `{backup}` is not what was backed up");
                return Err(Failure::new(Code::BackupDamaged, text));
            }
            Ok(CopiedDisk {
                target: target.clone(),
                virtual_bytes,
                data_bytes: disk.data_bytes,
                content_root: content_root.to_owned(),
                based_on: None,
                full_reason: None,
            })
        };
        wanted.map(restorable).collect()
    }

    /// What a published backup holds of a disk as data, with what it is based on.
    pub(super) fn data_bytes(&mut self, id: InstanceId, backup: BackupId, target: &DiskTarget) -> Result<u64, Failure> {
        let manifest = self.find(id, backup)?;
        let Some(disk) = manifest.disks.iter().find(|disk| disk.target == *target) else {
            return Err(Failure::new(Code::DiskNotFound, format!("backup `{backup}` has no disk `{target}`")));
        };
        let below = match &disk.based_on {
            Some(based_on) => self.data_bytes(id, based_on.backup_id, target)?,
            None => 0,
        };
        Ok(disk.data_bytes.saturating_add(below).min(disk.virtual_bytes))
    }

    pub(super) fn published_before(&mut self, manifest: &Manifest) -> Option<u64> {
        let found = self.instance(manifest.instance_id).published.get(&manifest.backup_id)?;
        let same = (found.job_id, found.run, found.attempt) == (manifest.job_id, manifest.run, manifest.attempt);
        same.then_some(found.number)
    }

    pub(super) fn staging(&self) -> Vec<String> {
        self.instances.values().flat_map(|instance| instance.staging.keys().cloned()).collect()
    }

    pub(super) fn published(&self) -> Vec<Manifest> {
        let mut all: Vec<_> =
            self.instances.values().flat_map(|instance| instance.published.values().cloned()).collect();
        all.sort_by_key(|manifest| (manifest.instance_id, manifest.number));
        all
    }

    pub(super) fn is_leased(&self, id: InstanceId) -> bool {
        self.instances.get(&id).is_some_and(|instance| instance.holder != Holder::Nobody)
    }
}
