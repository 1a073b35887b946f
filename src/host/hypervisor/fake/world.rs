//! One domain of the fake and the rules by which it changes. Time passes in [`FakeDomain::settle`].

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::definition::{self, Own};
use super::super::{DomainEvent, DomainJob, EndedJob, GuestInfo, Identity, NewDisk, WATCH_EVENTS_MAX, WriteCounters};
use super::build::{FakeAgent, FakeInstance};
use super::{JOB_ENDS_AFTER, PUSH_TAKES, PushFate};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::instance::{Disk, DiskDevice, DiskSource, Instance, PowerState};

/// libvirt's word for a share without room.
const NO_SPACE: &str = "No space left on device";

/// The job of a domain.
pub(super) struct Job {
    pub(super) kind: DomainJob,
    pub(super) disks: Vec<DiskTarget>,
    /// Those of them that are taken whole.
    pub(super) whole: Vec<DiskTarget>,
    /// Told to end, or, for a push job, done: gone at that moment.
    pub(super) ends: Option<Instant>,
    /// What becomes of it if nobody tells it to end.
    pub(super) fate: PushFate,
}

pub(super) struct FakeDomain {
    pub(super) instance: Instance,
    pub(super) info: GuestInfo,
    pub(super) frozen: bool,
    pub(super) next_freeze_takes: Option<Duration>,
    pub(super) job: Option<Job>,
    pub(super) ended_job: Option<EndedJob>,
    /// The number of the connection to libvirt.
    pub(super) connection: u64,
    pub(super) next_push: PushFate,
    pub(super) checkpoints: Vec<String>,
    /// Those whose bitmaps are there and whose names are not.
    nameless: Vec<String>,
    pub(super) latest_moment_frozen: Option<bool>,
    pub(super) written: Vec<WriteCounters>,
    agent: FakeAgent,
    checkpoints_at_first: Vec<String>,
    /// A freeze is under way in the guest, whatever its caller thinks.
    freezes_at: Option<Instant>,
    /// A freeze waits in the channel for an agent that answers.
    freeze_waits: bool,
    watchers: Vec<mpsc::Sender<DomainEvent>>,
}

/// What the agent makes of a command.
pub(super) enum AgentAnswer {
    Now,
    /// It is busy with a freeze until then.
    At(Instant),
    Never,
}

impl FakeDomain {
    pub(super) fn new(made: FakeInstance) -> Self {
        let FakeInstance { instance, agent, info, checkpoints } = made;
        let nothing = |target: DiskTarget| WriteCounters { target, writes: 0, write_ns: 0, flushes: 0, flush_ns: 0 };
        let written = instance.disks.iter().map(|disk| nothing(disk.target.clone())).collect();
        Self {
            instance,
            info,
            frozen: false,
            next_freeze_takes: None,
            job: None,
            ended_job: None,
            connection: 1,
            next_push: PushFate::default(),
            checkpoints: checkpoints.clone(),
            nameless: Vec::new(),
            latest_moment_frozen: None,
            written,
            agent,
            checkpoints_at_first: checkpoints,
            freezes_at: None,
            freeze_waits: false,
            watchers: Vec::new(),
        }
    }

    pub(super) fn state(&self) -> PowerState {
        self.instance.state
    }

    pub(super) fn set_state(&mut self, state: PowerState) {
        self.instance.state = state;
        if state == PowerState::ShutOff {
            self.frozen = false;
            self.freezes_at = None;
            self.freeze_waits = false;
            self.end_job(false);
        }
        self.tell(DomainEvent::Lifecycle);
    }

    pub(super) fn set_agent(&mut self, agent: FakeAgent) {
        self.agent = agent;
        self.instance.agent_configured = agent != FakeAgent::Missing;
        if matches!(agent, FakeAgent::Answering | FakeAgent::SlowHooks(_)) && std::mem::take(&mut self.freeze_waits) {
            self.frozen = true;
        }
    }

    /// Lets what was to happen by `now` happen.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.freezes_at.is_some_and(|at| at <= now) {
            self.freezes_at = None;
            self.frozen = true;
        }
        if self.job.as_ref().and_then(|job| job.ends).is_some_and(|ends| ends <= now) {
            self.end_job(true);
        }
    }

    /// Whether and when the agent answers a command; `agent_missing` and `instance_state_unsupported` at once.
    pub(super) fn ask_agent(&self) -> Result<AgentAnswer, Failure> {
        match (self.state(), self.agent) {
            (PowerState::ShutOff, _) => Err(self.failure(Code::InstanceStateUnsupported, "is not running")),
            (_, FakeAgent::Missing) => Err(self.failure(Code::AgentMissing, "has no agent configured")),
            (PowerState::Running, FakeAgent::Answering | FakeAgent::SlowHooks(_)) => {
                Ok(self.freezes_at.map_or(AgentAnswer::Now, AgentAnswer::At))
            }
            _ => Ok(AgentAnswer::Never),
        }
    }

    /// The guest was sent a freeze; when it will be frozen.
    pub(super) fn start_freeze(&mut self, now: Instant) -> Result<Instant, Failure> {
        if self.frozen {
            return Err(self.failure(Code::FreezeFailed, "is frozen already"));
        }
        let slow = if let FakeAgent::SlowHooks(takes) = self.agent { takes } else { Duration::ZERO };
        let at = now + self.next_freeze_takes.take().unwrap_or(slow);
        self.freezes_at = Some(at);
        Ok(at)
    }

    /// The guest was sent a freeze that nobody reads yet.
    pub(super) fn leave_freeze_waiting(&mut self) {
        self.freeze_waits = true;
    }

    /// The guest wrote to all of its disks, each write taking so long.
    pub(super) fn write(&mut self, count: u64, each: Duration) {
        let took = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX).saturating_mul(count);
        for disk in &mut self.written {
            disk.writes += count;
            disk.write_ns = disk.write_ns.saturating_add(took);
        }
    }

    pub(super) fn file_systems(&self) -> u32 {
        u32::try_from(self.info.file_systems.len()).unwrap_or(u32::MAX)
    }

    /// As when the domain is defined anew.
    pub(super) fn forget_checkpoints(&mut self) {
        self.nameless.append(&mut self.checkpoints);
    }

    pub(super) fn delete_checkpoint(&mut self, name: &str) -> Result<(), Failure> {
        if self.state() == PowerState::ShutOff && self.checkpoints.iter().any(|known| known == name) {
            return Err(self.failure(Code::InstanceStateUnsupported, "does not run"));
        }
        self.checkpoints.retain(|known| known != name);
        Ok(())
    }

    pub(super) fn redefine_checkpoint(&mut self, name: &str) -> Result<(), Failure> {
        match self.nameless.iter().position(|known| known == name) {
            Some(place) => {
                self.checkpoints.push(self.nameless.remove(place));
                Ok(())
            }
            None => Err(self.failure(Code::HypervisorFailed, &format!("has no bitmap `{name}`"))),
        }
    }

    /// Begins a job, at this moment, on these disks.
    pub(super) fn begin(
        &mut self,
        kind: DomainJob,
        disks: Vec<DiskTarget>,
        since: &[(DiskTarget, String)],
        checkpoint: Option<&str>,
    ) -> Result<(), Failure> {
        if self.state() == PowerState::ShutOff {
            return Err(self.failure(Code::InstanceStateUnsupported, "is not running"));
        }
        if let Some(job) = &self.job {
            return Err(self.failure(Code::InstanceBusy, "has another job").caused_by(format!("{:?}", job.kind)));
        }
        if let Some(missing) =
            disks.iter().find(|target| !self.instance.disks.iter().any(|disk| disk.target == **target))
        {
            return Err(self.failure(Code::DiskNotFound, &format!("has no disk `{missing}`")));
        }
        if let Some((_, missing)) = since.iter().find(|(_, name)| !self.checkpoints.contains(name)) {
            return Err(self.failure(Code::HypervisorFailed, &format!("has no checkpoint `{missing}`")));
        }
        if let Some(name) = checkpoint {
            if self.checkpoints.iter().any(|known| known == name) {
                return Err(self.failure(Code::HypervisorFailed, &format!("has a checkpoint `{name}` already")));
            }
            self.checkpoints.push(name.to_owned());
        }
        self.latest_moment_frozen = Some(self.frozen);
        let fate = match kind {
            DomainJob::Push { .. } => std::mem::take(&mut self.next_push),
            DomainJob::Pull { .. } | DomainJob::Other => PushFate::Stands,
        };
        let ends = (fate != PushFate::Stands).then(|| Instant::now() + PUSH_TAKES);
        let whole = disks.iter().filter(|disk| since.iter().all(|(other, _)| other != *disk)).cloned().collect();
        self.job = Some(Job { kind, disks, whole, ends, fate });
        Ok(())
    }

    /// Somebody asked for the end of what they take for the job.
    pub(super) fn ask_job_to_end(&mut self, ours: &DomainJob, now: Instant) -> Result<(), Failure> {
        match &mut self.job {
            Some(job) if job.kind == *ours => {
                // Once more is not later.
                if job.fate != PushFate::Stands || job.ends.is_none() {
                    job.ends = Some(now + JOB_ENDS_AFTER);
                    job.fate = PushFate::Stands;
                }
                Ok(())
            }
            Some(_) => Err(self.failure(Code::InstanceBusy, "has another job")),
            None => Ok(()),
        }
    }

    /// What it has of its own; its disks are where its instance has them.
    pub(super) fn identity(&self) -> Result<Identity, Failure> {
        let own = definition::own(&self.instance.definition);
        let own = own.map_err(|failure| Failure { code: Code::HypervisorFailed, ..failure })?;
        let Own { mac_addresses, mut files, restored_by, .. } = own;
        files.extend(self.instance.disks.iter().filter_map(|disk| match &disk.source {
            Some(DiskSource::File { path, .. } | DiskSource::Block { path, .. }) => Some(path.clone()),
            _ => None,
        }));
        let Instance { id, name, .. } = &self.instance;
        Ok(Identity { id: *id, name: name.to_string(), mac_addresses, files, restored_by })
    }

    /// Another disk, seen at once.
    pub(super) fn attach(&mut self, new: &NewDisk) -> Result<(), Failure> {
        if new.is_among(&self.instance.disks)? {
            return Ok(());
        }
        self.instance.disks.push(Disk {
            target: new.target.clone(),
            serial: new.serial.clone(),
            device: DiskDevice::Disk,
            bus: Some(new.bus.as_str().to_owned()),
            read_only: false,
            shareable: false,
            transient: false,
            encrypted: false,
            pinned_chain: false,
            data_elsewhere: false,
            may_be_missing: false,
            source: Some(DiskSource::File { path: new.path.clone(), format: new.format }),
            pool_volume: None,
            virtual_bytes: None,
            allocated_bytes: None,
        });
        Ok(())
    }

    /// Somebody lets it run again.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        match self.state() {
            PowerState::Running => {}
            PowerState::Paused | PowerState::PausedByIoError => self.set_state(PowerState::Running),
            PowerState::ShutOff | PowerState::ShuttingDown | PowerState::Other => {
                return Err(self.failure(Code::InstanceStateUnsupported, "is not paused"));
            }
        }
        Ok(())
    }

    /// The job is gone, in its own time or all of a sudden.
    pub(super) fn end_job(&mut self, in_time: bool) {
        let Some(Job { kind, disks, whole, fate, .. }) = self.job.take() else { return };
        let completed = in_time && matches!(fate, PushFate::Completes | PushFate::CompletesUnseen);
        let seen = completed && fate == PushFate::Completes;
        self.connection += u64::from(completed && !seen);
        let message = match fate {
            PushFate::Fails(message) => Some(message),
            PushFate::PausesGuest => Some(NO_SPACE),
            PushFate::Completes | PushFate::CompletesUnseen | PushFate::Stands => None,
        };
        if in_time && fate == PushFate::PausesGuest {
            self.set_state(PowerState::PausedByIoError);
        }
        // libvirt calls a pull job that was ended a success.
        let success = completed || matches!(kind, DomainJob::Pull { .. });
        // Its disks are of whole clusters, and nothing is written to them.
        let sizes = self.instance.disks.iter().filter(|disk| whole.contains(&disk.target));
        let total: u64 = sizes.filter_map(|disk| disk.virtual_bytes).sum();
        self.ended_job = Some(EndedJob {
            success,
            message: message.map(str::to_owned),
            total_bytes: (seen && total > 0).then_some(total),
            remaining_bytes: seen.then_some(0),
            connection: self.connection,
        });
        for target in disks {
            self.tell(DomainEvent::BlockJob { target, completed });
        }
    }

    pub(super) fn watch(&mut self) -> mpsc::Receiver<DomainEvent> {
        let (sender, receiver) = mpsc::channel(WATCH_EVENTS_MAX);
        self.watchers.push(sender);
        receiver
    }

    pub(super) fn tell(&mut self, event: DomainEvent) {
        self.watchers.retain(|watcher| !watcher.is_closed());
        for watcher in &self.watchers {
            let _ = watcher.try_send(event.clone());
        }
    }

    pub(super) fn leftovers(&mut self, meant: &[String]) -> Vec<String> {
        let name = &self.instance.name;
        let mut left = Vec::new();
        if self.frozen {
            left.push(format!("instance `{name}` is frozen"));
        }
        if self.freezes_at.is_some() || self.freeze_waits {
            left.push(format!("instance `{name}` is going to freeze"));
        }
        if let Some(job) = &self.job {
            left.push(format!("instance `{name}` has a job: {:?}", job.kind));
        }
        if matches!(self.state(), PowerState::Paused | PowerState::PausedByIoError) {
            left.push(format!("instance `{name}` is paused"));
        }
        let stray =
            self.checkpoints.iter().filter(|name| !self.checkpoints_at_first.contains(name) && !meant.contains(name));
        left.extend(stray.map(|checkpoint| format!("instance `{name}` has a checkpoint `{checkpoint}`")));
        left
    }

    fn failure(&self, code: Code, what: &str) -> Failure {
        Failure::new(code, format!("instance `{}` {what}", self.instance.id))
    }
}
