//! Instances for the fake, built in one expression.
#![allow(clippy::expect_used)] // The names are written in the test itself: a wrong one should stop it.

use std::path::PathBuf;
use std::time::Duration;

use super::super::{GuestFileSystem, GuestInfo, NewInstance};
use crate::model::id::{DiskTarget, InstanceId};
use crate::model::instance::{Disk, DiskDevice, DiskSource, ImageFormat, Instance, PoolVolume, PowerState};

/// How the guest agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeAgent {
    /// No channel is configured.
    Missing,
    /// Answers at once.
    Answering,
    /// The channel is there and nobody answers; what it is sent waits in the channel.
    Silent,
    /// Answers at once, but a freeze waits this long for the guest's hooks.
    SlowHooks(Duration),
}

/// An instance of the fake.
#[derive(Clone, Debug)]
pub struct FakeInstance {
    pub(super) instance: Instance,
    pub(super) agent: FakeAgent,
    pub(super) info: GuestInfo,
    pub(super) checkpoints: Vec<String>,
}

impl FakeInstance {
    /// A running instance with an agent and, so far, without disks.
    pub fn running(name: &str) -> Self {
        Self::new(name, PowerState::Running)
    }

    /// A stopped instance with an agent configured and, so far, without disks.
    pub fn shut_off(name: &str) -> Self {
        Self::new(name, PowerState::ShutOff)
    }

    fn new(name: &str, state: PowerState) -> Self {
        let id = InstanceId::draw();
        let definition = format!("<domain type='kvm'><name>{name}</name><uuid>{id}</uuid></domain>");
        let name = name.parse().expect("an instance name");
        let disks = Vec::new();
        let instance = Instance {
            id,
            name,
            state,
            saved_memory: false,
            transient: false,
            disks,
            agent_configured: true,
            agent_connected: state == PowerState::Running,
            definition,
            live_definition: None,
            nvram: None,
            unrecorded: Vec::new(),
        };
        let facts = [("os.id".to_owned(), "debian".to_owned())].into();
        let info = GuestInfo { facts, file_systems: Vec::new() };
        Self { instance, agent: FakeAgent::Answering, info, checkpoints: Vec::new() }
    }

    /// As it was defined; its disks are in the definition alone.
    pub(super) fn defined(new: &NewInstance) -> Self {
        let mut made = Self::new(new.name.as_str(), PowerState::ShutOff).with_id(new.id);
        made.instance.definition.clone_from(&new.definition);
        made
    }

    /// Its id.
    pub fn id(&self) -> InstanceId {
        self.instance.id
    }

    /// With another id.
    #[must_use]
    pub fn with_id(mut self, id: InstanceId) -> Self {
        self.instance.id = id;
        self
    }

    /// With a definition of that text.
    #[must_use]
    pub fn definition(mut self, definition: &str) -> Self {
        self.instance.definition = definition.to_owned();
        self
    }

    /// With a qcow2 disk of `bytes`, and on it a file system that can be frozen.
    #[must_use]
    pub fn disk(self, target: &str, bytes: u64) -> Self {
        let name = self.instance.name.as_str();
        let path = PathBuf::from(format!("/fake/{name}/{target}.qcow2"));
        self.disk_at(target, bytes, DiskSource::File { path, format: ImageFormat::Qcow2 })
    }

    /// With a disk of `bytes` whose content is at `source`, and on it a file system that can be frozen.
    #[must_use]
    pub fn disk_at(mut self, target: &str, bytes: u64, source: DiskSource) -> Self {
        let target: DiskTarget = target.parse().expect("a disk target");
        let file_system = GuestFileSystem {
            mount_point: format!("/mnt/{target}"),
            kind: "ext4".to_owned(),
            device: target.to_string(),
            disks: vec![target.clone()],
        };
        self.info.file_systems.push(file_system);
        self.with_disk(Disk {
            serial: Some(format!("serial-{target}")),
            target,
            device: DiskDevice::Disk,
            bus: Some("virtio".to_owned()),
            read_only: false,
            shareable: false,
            transient: false,
            encrypted: false,
            pinned_chain: false,
            data_elsewhere: false,
            may_be_missing: false,
            source: Some(source),
            pool_volume: None,
            virtual_bytes: Some(bytes),
            allocated_bytes: Some(bytes / 2),
        })
    }

    /// With each disk so far defined as the volume of that name in a storage pool.
    #[must_use]
    pub fn in_pool(mut self, pool: &str) -> Self {
        for disk in &mut self.instance.disks {
            disk.pool_volume = Some(PoolVolume { pool: pool.to_owned(), volume: format!("{}.qcow2", disk.target) });
        }
        self
    }

    /// With a disk of any kind, and nothing on it that the agent would list.
    #[must_use]
    pub fn with_disk(mut self, disk: Disk) -> Self {
        self.instance.disks.push(disk);
        self
    }

    /// With an agent that behaves so.
    #[must_use]
    pub fn agent(mut self, agent: FakeAgent) -> Self {
        self.agent = agent;
        self.instance.agent_configured = agent != FakeAgent::Missing;
        self.instance.agent_connected &= !matches!(agent, FakeAgent::Missing | FakeAgent::Silent);
        self
    }

    /// With other words from the agent about the guest.
    #[must_use]
    pub fn guest_info(mut self, info: GuestInfo) -> Self {
        self.info = info;
        self
    }

    /// With firmware whose variables are in that file of the host.
    #[must_use]
    pub fn nvram(mut self, path: &std::path::Path) -> Self {
        self.instance.nvram = Some(path.to_owned());
        self
    }

    /// With state that no backup holds.
    #[must_use]
    pub fn unrecorded(mut self, what: &str) -> Self {
        self.instance.unrecorded.push(what.to_owned());
        self
    }

    /// With its memory saved, which its next start would resume.
    #[must_use]
    pub fn saved_memory(mut self) -> Self {
        self.instance.saved_memory = true;
        self
    }

    /// Without a definition that outlives its run.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.instance.transient = true;
        self
    }

    /// With a definition that says what backs each disk so far.
    #[must_use]
    pub fn pinned_chains(mut self) -> Self {
        self.instance.disks.iter_mut().for_each(|disk| disk.pinned_chain = true);
        self
    }

    /// Running with other disks than its definition has.
    #[must_use]
    pub fn live_definition(mut self, live: &str) -> Self {
        self.instance.live_definition = Some(live.to_owned());
        self
    }

    /// With disks of whose content nobody knows how much room it takes.
    #[must_use]
    pub fn unmeasured(mut self) -> Self {
        self.instance.disks.iter_mut().for_each(|disk| disk.allocated_bytes = None);
        self
    }

    /// With a checkpoint that was there before.
    #[must_use]
    pub fn checkpoint(mut self, name: &str) -> Self {
        self.checkpoints.push(name.to_owned());
        self
    }
}
