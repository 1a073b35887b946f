//! The real door: libvirt, through `virt` where that has the call and is right, through [`raw`] elsewhere.
//!
//! Three lanes, each with a connection and call threads of its own: what releases a guest (thaw, freeze status, abort)
//! never waits behind ordinary calls that hang, nor these behind surveys of instances whose storage is dead; libvirt serves
//! only five calls of one connection at a time.
//!
//! ```text
//!   async caller ──> Lane ──> call thread (deadline) ──> Connection ──> libvirtd
//!   watcher <── Hub <── event loop thread <──────────────────┘
//! ```
//!
//! It keeps nothing between calls, so a libvirtd that restarts costs the calls that were under way and no more.

mod access;
mod additions;
mod agent;
mod calls;
mod connection;
mod domain;
mod errors;
mod hub;
mod jobs;
mod owner;
mod parse;
mod pools;
mod raw;
mod render;
mod secret;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use virt::connect::Connect;
use virt::domain::Domain;

use self::calls::{Caller, Calls, Subject};
use self::connection::Connection;
use self::hub::Hub;
use super::{
    DomainEvent, DomainJob, DomainJobStats, EndedJob, FreezeStatus, GuestInfo, Hypervisor, Identity, InstanceSummary,
    NewCheckpoint, NewDisk, NewInstance, PullBackup, PushBackup, StuckCall, Versions, WriteCounters,
};
use crate::failure::{Code, Failure};
use crate::model::id::{DiskTarget, InstanceId, InstanceRef};
use crate::model::instance::{Instance, PowerState};
use crate::model::network::SecretRef;
use crate::model::owner::Owner;
use crate::mover::protocol::StorageKey;

/// Longest time for a call that only asks.
const QUERY_DEADLINE: Duration = Duration::from_secs(15);

/// Longest time for a call that may have libvirt look into the host's emulators: it starts each one that was installed or
/// changed since it last looked, which takes a busy host half a minute.
const EMULATORS_DEADLINE: Duration = Duration::from_secs(90);

/// Longest time for a call that may wait for the domain's job lock, for which libvirt itself waits 30 s.
const CHANGE_DEADLINE: Duration = Duration::from_secs(45);

/// Longest wait for another instance's definition.
const DEFINING_WAIT: Duration = Duration::from_secs(20);

/// What an agent call may take beside the agent's own time: libvirt greets the agent first and waits 5 s for that.
const AGENT_EXTRA: Duration = Duration::from_secs(10);

/// Call threads of the ordinary lane.
const ORDINARY_THREADS_MAX: usize = 24;

/// Call threads of the lane that releases guests.
const RELEASE_THREADS_MAX: usize = 16;

/// Call threads of the lane that surveys instances.
const SURVEY_THREADS_MAX: usize = 8;

/// The hypervisor of one libvirt URI. Connects when first asked; make one and share it.
pub struct Libvirt {
    ordinary: Lane,
    release: Lane,
    survey: Lane,
    hub: Arc<Hub>,
    /// One at a time looks whether an instance is there, and defines it.
    defining: Arc<Mutex<()>>,
}

impl Libvirt {
    /// The door to `uri`, such as `qemu:///system`. Does nothing yet.
    pub fn new(uri: &str) -> Self {
        let hub = Arc::new(Hub::default());
        Self {
            ordinary: Lane::new(uri, Some(Arc::clone(&hub)), ORDINARY_THREADS_MAX),
            release: Lane::new(uri, None, RELEASE_THREADS_MAX),
            survey: Lane::new(uri, None, SURVEY_THREADS_MAX),
            hub,
            defining: Arc::default(),
        }
    }
}

struct Lane {
    connection: Arc<Connection>,
    calls: Calls,
}

impl Lane {
    fn new(uri: &str, hub: Option<Arc<Hub>>, threads_max: usize) -> Self {
        Self { connection: Arc::new(Connection::new(uri.to_owned(), hub)), calls: Calls::new(threads_max) }
    }

    async fn on_host<T, F>(&self, call: &'static str, deadline: Duration, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, Failure> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let subject = Subject { call, instance: None, deadline };
        self.calls.run(subject, move |_| work(&connection.get()?)).await
    }

    async fn on<T, F>(
        &self,
        call: &'static str,
        instance: InstanceId,
        deadline: Duration,
        work: F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Failure> + Send + 'static,
    {
        self.while_waited_for(call, instance, deadline, move |domain, _| work(domain)).await
    }

    /// For work that looks at something before its effect, and so has to ask once more whether it is still wanted.
    async fn while_waited_for<T, F>(
        &self,
        call: &'static str,
        instance: InstanceId,
        deadline: Duration,
        work: F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Domain, &Caller<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let subject = Subject { call, instance: Some(instance), deadline };
        let named =
            move |failure: Failure| Failure { text: format!("{}, instance `{instance}`", failure.text), ..failure };
        let look_up = move || domain::look_up(&connection.get()?, &InstanceRef::Id(instance));
        let run = move |caller: &Caller<'_>| {
            let domain = look_up()?;
            caller.still_waits()?;
            work(&domain, caller).map_err(named)
        };
        self.calls.run(subject, run).await
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn versions(&self) -> Result<Versions, Failure> {
        self.ordinary.on_host("versions", QUERY_DEADLINE, domain::versions).await
    }

    async fn qemu_owner(&self, instance: Option<InstanceId>) -> Result<Option<Owner>, Failure> {
        let ask = move |connect: &Connect| owner::qemu_owner(connect, instance);
        self.ordinary.on_host("qemu_owner", EMULATORS_DEADLINE, ask).await
    }

    async fn qemu_process(&self, instance: InstanceId, owner: Option<Owner>) -> Result<u32, Failure> {
        // Not libvirt's to tell; on a thread of its own, as it reads many files.
        let look = move |_: &Domain| owner::qemu_process(instance, owner);
        self.ordinary.on("qemu_process", instance, QUERY_DEADLINE, look).await
    }

    async fn memory_bytes(&self) -> Result<u64, Failure> {
        self.ordinary.on_host("memory_bytes", QUERY_DEADLINE, domain::memory_bytes).await
    }

    async fn instances(&self) -> Result<Vec<InstanceSummary>, Failure> {
        self.ordinary.on_host("instances", QUERY_DEADLINE, domain::instances).await
    }

    async fn find(&self, instance: &InstanceRef) -> Result<Instance, Failure> {
        let instance = instance.clone();
        self.ordinary
            .on_host("find", QUERY_DEADLINE, move |connect| {
                domain::describe(&domain::look_up(connect, &instance)?, true)
            })
            .await
    }

    async fn survey(&self, instance: InstanceId) -> Result<Instance, Failure> {
        let is_stuck = self.survey.calls.stuck().iter().any(|stuck| stuck.instance == Some(instance));
        let describe = move |domain: &Domain| domain::describe(domain, !is_stuck);
        self.survey.on("survey", instance, QUERY_DEADLINE, describe).await
    }

    async fn write_counters(&self, instance: InstanceId) -> Result<Vec<WriteCounters>, Failure> {
        self.ordinary.on("write_counters", instance, QUERY_DEADLINE, stats::write_counters).await
    }

    async fn state(&self, instance: InstanceId) -> Result<PowerState, Failure> {
        self.ordinary.on("state", instance, QUERY_DEADLINE, domain::power_state).await
    }

    async fn agent_ping(&self, instance: InstanceId, timeout: Duration) -> Result<(), Failure> {
        let ask = move |domain: &Domain| domain::ask_agent(domain, agent::PING, timeout).map(drop);
        self.ordinary.on("agent_ping", instance, timeout + AGENT_EXTRA, ask).await
    }

    async fn guest_info(&self, instance: InstanceId, timeout: Duration) -> Result<GuestInfo, Failure> {
        let ask = move |domain: &Domain| domain::guest_info(domain, timeout);
        self.ordinary.on("guest_info", instance, timeout + AGENT_EXTRA, ask).await
    }

    /// The agent's response timeout stays set until [`Libvirt::thaw`], which follows every freeze: setting it back here
    /// would be one more call while the guest waits.
    async fn freeze(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure> {
        // The connection that will thaw is open before anything waits for it, or the guest is not frozen at all.
        self.release.on("freeze", instance, QUERY_DEADLINE, |_| Ok(())).await?;
        let freeze = move |domain: &Domain, caller: &Caller<'_>| domain::freeze(domain, timeout, caller);
        self.ordinary.while_waited_for("freeze", instance, timeout + AGENT_EXTRA, freeze).await
    }

    async fn thaw(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure> {
        let thaw = move |domain: &Domain, caller: &Caller<'_>| domain::thaw(domain, timeout, caller);
        self.release.while_waited_for("thaw", instance, timeout + AGENT_EXTRA, thaw).await
    }

    async fn freeze_status(&self, instance: InstanceId, timeout: Duration) -> Result<FreezeStatus, Failure> {
        let ask =
            move |domain: &Domain| agent::freeze_status(&domain::ask_agent(domain, agent::FREEZE_STATUS, timeout)?);
        self.release.on("freeze_status", instance, timeout + AGENT_EXTRA, ask).await
    }

    async fn begin_pull(&self, instance: InstanceId, backup: &PullBackup) -> Result<(), Failure> {
        let backup = backup.clone();
        let begin = move |domain: &Domain, caller: &Caller<'_>| domain::begin_pull(domain, &backup, caller);
        self.ordinary.while_waited_for("begin_pull", instance, CHANGE_DEADLINE, begin).await
    }

    async fn begin_push(&self, instance: InstanceId, backup: &PushBackup) -> Result<(), Failure> {
        let backup = backup.clone();
        let begin = move |domain: &Domain, caller: &Caller<'_>| domain::begin_push(domain, &backup, caller);
        self.ordinary.while_waited_for("begin_push", instance, CHANGE_DEADLINE, begin).await
    }

    async fn domain_job(&self, instance: InstanceId) -> Result<Option<DomainJob>, Failure> {
        self.release.on("domain_job", instance, QUERY_DEADLINE, jobs::domain_job).await
    }

    async fn domain_job_stats(&self, instance: InstanceId) -> Result<Option<DomainJobStats>, Failure> {
        self.ordinary.on("domain_job_stats", instance, QUERY_DEADLINE, jobs::job_stats).await
    }

    async fn ended_job(&self, instance: InstanceId) -> Result<Option<EndedJob>, Failure> {
        let ended = self.release.on("ended_job", instance, QUERY_DEADLINE, jobs::ended_job).await?;
        // After the call: a daemon that was restarted before it was connected to anew for it.
        let connection = self.release.connection.number();
        Ok(ended.map(|ended| EndedJob { connection, ..ended }))
    }

    async fn forget_ended_job(&self, instance: InstanceId) -> Result<u64, Failure> {
        self.release.on("forget_ended_job", instance, QUERY_DEADLINE, jobs::forget_ended_job).await?;
        Ok(self.release.connection.number())
    }

    async fn abort_job(&self, instance: InstanceId, ours: &DomainJob) -> Result<(), Failure> {
        let ours = ours.clone();
        let abort = move |domain: &Domain, caller: &Caller<'_>| jobs::abort_job(domain, &ours, caller);
        self.release.while_waited_for("abort_job", instance, CHANGE_DEADLINE, abort).await
    }

    async fn resume(&self, instance: InstanceId) -> Result<(), Failure> {
        self.release.while_waited_for("resume", instance, CHANGE_DEADLINE, domain::resume).await
    }

    async fn block_jobs(&self, instance: InstanceId) -> Result<Vec<DiskTarget>, Failure> {
        self.ordinary.on("block_jobs", instance, QUERY_DEADLINE, jobs::block_jobs).await
    }

    async fn checkpoints(&self, instance: InstanceId) -> Result<Vec<String>, Failure> {
        self.ordinary.on("checkpoints", instance, QUERY_DEADLINE, domain::checkpoints).await
    }

    async fn redefine_checkpoint(
        &self,
        instance: InstanceId,
        checkpoint: &NewCheckpoint,
        made_at: i64,
    ) -> Result<(), Failure> {
        let checkpoint = checkpoint.clone();
        let redefine = move |domain: &Domain| domain::redefine_checkpoint(domain, &checkpoint, made_at);
        self.ordinary.on("redefine_checkpoint", instance, CHANGE_DEADLINE, redefine).await
    }

    async fn delete_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        let delete = move |domain: &Domain| domain::delete_checkpoint(domain, &name);
        self.ordinary.on("delete_checkpoint", instance, CHANGE_DEADLINE, delete).await
    }

    async fn forget_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        let forget = move |domain: &Domain| domain::forget_checkpoint(domain, &name);
        self.ordinary.on("forget_checkpoint", instance, CHANGE_DEADLINE, forget).await
    }

    async fn identities(&self) -> Result<Vec<Identity>, Failure> {
        self.ordinary.on_host("identities", QUERY_DEADLINE, additions::identities).await
    }

    async fn define(&self, new: &NewInstance) -> Result<(), Failure> {
        // Waited for here, as a definition that hangs would else take one call thread after another.
        let Ok(alone) = timeout(DEFINING_WAIT, Arc::clone(&self.defining).lock_owned()).await else {
            let text = format!("cannot define instance `{}`: another definition has not returned", new.name);
            return Err(Failure::new(Code::InstanceBusy, text));
        };
        let new = new.clone();
        let connection = Arc::clone(&self.ordinary.connection);
        let define = move |caller: &Caller<'_>| {
            let _alone = alone;
            additions::define(&connection.get()?, &new, caller)
        };
        let subject = Subject { call: "define", instance: None, deadline: CHANGE_DEADLINE };
        self.ordinary.calls.run(subject, define).await
    }

    async fn start(&self, instance: InstanceId) -> Result<(), Failure> {
        self.ordinary.while_waited_for("start", instance, CHANGE_DEADLINE, additions::start).await
    }

    async fn attach(&self, instance: InstanceId, disk: &NewDisk) -> Result<(), Failure> {
        let disk = disk.clone();
        let attach = move |domain: &Domain, caller: &Caller<'_>| additions::attach(domain, &disk, caller);
        self.ordinary.while_waited_for("attach", instance, CHANGE_DEADLINE, attach).await
    }

    async fn is_attached(&self, instance: InstanceId, disk: &NewDisk) -> Result<bool, Failure> {
        let disk = disk.clone();
        self.ordinary
            .on("is_attached", instance, QUERY_DEADLINE, move |domain| additions::is_attached(domain, &disk))
            .await
    }

    async fn secret(&self, secret: &SecretRef) -> Result<StorageKey, Failure> {
        let wanted = secret.clone();
        self.ordinary.on_host("secret", QUERY_DEADLINE, move |connect| secret::value(connect, &wanted)).await
    }

    async fn watch(&self, instance: InstanceId) -> Result<mpsc::Receiver<DomainEvent>, Failure> {
        // Asking for the state opens the connection that brings the events, and fails where there is no such instance.
        let events = self.hub.watch(instance);
        self.state(instance).await?;
        Ok(events)
    }

    fn stuck_calls(&self) -> Vec<StuckCall> {
        let mut stuck = self.ordinary.calls.stuck();
        stuck.extend(self.release.calls.stuck());
        stuck.extend(self.survey.calls.stuck());
        stuck
    }
}
