//! The fake as a [`Hypervisor`].

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::definition;
use super::super::{
    DomainEvent, DomainJob, DomainJobStats, EndedJob, FreezeStatus, GuestInfo, Hypervisor, Identity, InstanceSummary,
    NewCheckpoint, NewDisk, NewInstance, PullBackup, PushBackup, StuckCall, Versions, WriteCounters,
};
use super::build::FakeInstance;
use super::script::Ruling;
use super::world::{AgentAnswer, FakeDomain};
use super::{CALL_DEADLINE, FAKE_MEMORY_BYTES, FAKE_QEMU, FakeHypervisor, JOB_ENDS_AFTER, PUSH_TAKES};
use crate::failure::{Code, Failure};
use crate::model::id::{DiskTarget, InstanceId, InstanceRef};
use crate::model::instance::{Instance, PowerState};
use crate::model::network::SecretRef;
use crate::model::owner::Owner;
use crate::mover::protocol::StorageKey;

impl FakeHypervisor {
    /// Every call begins here: it may be scripted to fail or hang.
    async fn enter(&self, call: &'static str, instance: Option<InstanceId>, deadline: Duration) -> Result<(), Failure> {
        self.enter_with(call, instance, deadline, |_| ()).await
    }

    /// `late` is what the call does if it hangs and comes back after its caller has gone.
    async fn enter_with(
        &self,
        call: &'static str,
        instance: Option<InstanceId>,
        deadline: Duration,
        late: impl FnOnce(&mut FakeDomain) + Send + 'static,
    ) -> Result<(), Failure> {
        let ruling = self.lock().script.rule(call, instance, Box::new(late));
        match ruling {
            Ruling::Works => Ok(()),
            Ruling::Fails(failure) => Err(failure),
            Ruling::Hangs(answered) => match timeout(deadline, answered).await {
                Ok(_) => Ok(()),
                Err(_) => Err(Failure::new(
                    Code::HypervisorTimedOut,
                    format!("the call `{call}` did not return within {deadline:?}"),
                )),
            },
        }
    }

    /// A call with an effect, which it has also if it hangs and comes back late.
    async fn changes(
        &self,
        call: &'static str,
        instance: InstanceId,
        work: impl Fn(&mut FakeDomain) -> Result<(), Failure> + Clone + Send + 'static,
    ) -> Result<(), Failure> {
        let late = work.clone();
        // What a late effect answers nobody hears.
        self.enter_with(call, Some(instance), CALL_DEADLINE, move |domain| drop(late(domain))).await?;
        self.with(instance, work)
    }

    async fn on<T>(
        &self,
        call: &'static str,
        instance: InstanceId,
        work: impl FnOnce(&mut FakeDomain) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.enter(call, Some(instance), CALL_DEADLINE).await?;
        self.with(instance, work)
    }

    fn with<T>(
        &self,
        instance: InstanceId,
        work: impl FnOnce(&mut FakeDomain) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut world = self.lock();
        let domain = world.domains.get_mut(&instance);
        work(domain.ok_or_else(|| not_here(&InstanceRef::Id(instance)))?)
    }

    async fn begin(
        &self,
        call: &'static str,
        instance: InstanceId,
        kind: DomainJob,
        disks: Vec<DiskTarget>,
        since: Vec<(DiskTarget, String)>,
        checkpoint: Option<&NewCheckpoint>,
    ) -> Result<(), Failure> {
        let name = checkpoint.map(|checkpoint| checkpoint.name.clone());
        let begin = move |domain: &mut FakeDomain| domain.begin(kind.clone(), disks.clone(), &since, name.as_deref());
        self.changes(call, instance, begin).await
    }

    /// Looking lets what is due happen, so that watchers hear of it without anybody asking.
    fn look_in(&self, after: Duration) {
        let world = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            drop(world.lock());
        });
    }

    /// Waits until the agent would answer, or fails as `agent_silent` at the timeout.
    async fn agent_answers(&self, call: &'static str, instance: InstanceId, timeout: Duration) -> Result<(), Failure> {
        self.enter_with(call, Some(instance), timeout, move |domain| {
            if call == "thaw" {
                domain.frozen = false;
            }
        })
        .await?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.with(instance, |domain| domain.ask_agent())? {
                AgentAnswer::Now => return Ok(()),
                AgentAnswer::At(at) if at <= deadline => sleep_until(at).await,
                AgentAnswer::At(_) | AgentAnswer::Never => {
                    sleep_until(deadline).await;
                    return Err(silent(instance, timeout));
                }
            }
        }
    }
}

fn not_here(instance: &InstanceRef) -> Failure {
    Failure::new(Code::InstanceNotHere, format!("cannot find instance `{instance}`"))
}

fn silent(instance: InstanceId, timeout: Duration) -> Failure {
    Failure::new(Code::AgentSilent, format!("the agent of instance `{instance}` gave no answer within {timeout:?}"))
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn versions(&self) -> Result<Versions, Failure> {
        self.enter("versions", None, CALL_DEADLINE).await?;
        Ok(self.lock().versions)
    }

    async fn qemu_owner(&self, instance: Option<InstanceId>) -> Result<Option<Owner>, Failure> {
        self.enter("qemu_owner", instance, CALL_DEADLINE).await?;
        if let Some(instance) = instance {
            self.with(instance, |_| Ok(()))?;
        }
        Ok(self.lock().qemu_owner)
    }

    async fn qemu_process(&self, instance: InstanceId, _: Option<Owner>) -> Result<u32, Failure> {
        self.on("qemu_process", instance, |domain| {
            if domain.state() == PowerState::ShutOff {
                let text = format!("there is no QEMU of instance `{instance}`");
                return Err(Failure::new(Code::InstanceStateUnsupported, text));
            }
            Ok(FAKE_QEMU)
        })
        .await
    }

    async fn memory_bytes(&self) -> Result<u64, Failure> {
        self.enter("memory_bytes", None, CALL_DEADLINE).await?;
        Ok(FAKE_MEMORY_BYTES)
    }

    async fn instances(&self) -> Result<Vec<InstanceSummary>, Failure> {
        self.enter("instances", None, CALL_DEADLINE).await?;
        let summary = |domain: &FakeDomain| {
            let Instance { id, name, state, .. } = &domain.instance;
            InstanceSummary { id: *id, name: name.clone(), state: *state }
        };
        Ok(self.lock().domains.values().map(summary).collect())
    }

    async fn find(&self, instance: &InstanceRef) -> Result<Instance, Failure> {
        self.enter("find", None, CALL_DEADLINE).await?;
        let world = self.lock();
        let mut found = world.domains.values().map(|domain| &domain.instance).filter(|known| match instance {
            InstanceRef::Id(id) => known.id == *id,
            InstanceRef::Name(name) => known.name == *name,
        });
        let first = found.next().ok_or_else(|| not_here(instance))?;
        if found.next().is_some() {
            return Err(Failure::new(Code::InstanceAmbiguous, format!("several instances are named `{instance}`")));
        }
        Ok(first.clone())
    }

    async fn survey(&self, instance: InstanceId) -> Result<Instance, Failure> {
        self.on("survey", instance, |domain| Ok(domain.instance.clone())).await
    }

    async fn write_counters(&self, instance: InstanceId) -> Result<Vec<WriteCounters>, Failure> {
        self.on("write_counters", instance, |domain| {
            Ok(if domain.state() == PowerState::ShutOff { Vec::new() } else { domain.written.clone() })
        })
        .await
    }

    async fn state(&self, instance: InstanceId) -> Result<PowerState, Failure> {
        self.on("state", instance, |domain| Ok(domain.state())).await
    }

    async fn agent_ping(&self, instance: InstanceId, timeout: Duration) -> Result<(), Failure> {
        self.agent_answers("agent_ping", instance, timeout).await
    }

    async fn guest_info(&self, instance: InstanceId, timeout: Duration) -> Result<GuestInfo, Failure> {
        self.agent_answers("guest_info", instance, timeout).await?;
        self.with(instance, |domain| Ok(domain.info.clone()))
    }

    async fn freeze(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure> {
        self.enter_with("freeze", Some(instance), timeout, |domain| drop(domain.start_freeze(Instant::now()))).await?;
        let deadline = Instant::now() + timeout;
        let sent = self.with(instance, |domain| {
            Ok(match domain.ask_agent()? {
                AgentAnswer::Now => Some(domain.start_freeze(Instant::now())?),
                // One freeze is under way: this one would only be told so, after the deadline or before.
                AgentAnswer::At(at) => Some(at),
                AgentAnswer::Never => {
                    domain.leave_freeze_waiting();
                    None
                }
            })
        })?;
        match sent {
            Some(at) if at <= deadline => {
                sleep_until(at).await;
                self.with(instance, |domain| Ok(domain.file_systems()))
            }
            Some(_) | None => {
                sleep_until(deadline).await;
                Err(silent(instance, timeout))
            }
        }
    }

    async fn thaw(&self, instance: InstanceId, timeout: Duration) -> Result<u32, Failure> {
        self.agent_answers("thaw", instance, timeout).await?;
        self.with(instance, |domain| {
            let thawed = if std::mem::take(&mut domain.frozen) { domain.file_systems() } else { 0 };
            Ok(thawed)
        })
    }

    async fn freeze_status(&self, instance: InstanceId, timeout: Duration) -> Result<FreezeStatus, Failure> {
        self.agent_answers("freeze_status", instance, timeout).await?;
        self.with(instance, |domain| Ok(if domain.frozen { FreezeStatus::Frozen } else { FreezeStatus::Thawed }))
    }

    async fn begin_pull(&self, instance: InstanceId, backup: &PullBackup) -> Result<(), Failure> {
        let kind = DomainJob::Pull { socket: backup.socket.clone() };
        let disks = backup.disks.iter().map(|disk| disk.target.clone()).collect();
        let since = backup.disks.iter().filter_map(|disk| Some((disk.target.clone(), disk.since.clone()?))).collect();
        self.begin("begin_pull", instance, kind, disks, since, backup.checkpoint.as_ref()).await
    }

    async fn begin_push(&self, instance: InstanceId, backup: &PushBackup) -> Result<(), Failure> {
        let kind = DomainJob::Push { images: backup.disks.iter().map(|disk| disk.image.clone()).collect() };
        let disks = backup.disks.iter().map(|disk| disk.target.clone()).collect();
        let since = backup.disks.iter().filter_map(|disk| Some((disk.target.clone(), disk.since.clone()?))).collect();
        self.begin("begin_push", instance, kind, disks, since, backup.checkpoint.as_ref()).await?;
        self.look_in(PUSH_TAKES);
        Ok(())
    }

    async fn domain_job(&self, instance: InstanceId) -> Result<Option<DomainJob>, Failure> {
        self.on("domain_job", instance, |domain| Ok(domain.job.as_ref().map(|job| job.kind.clone()))).await
    }

    async fn domain_job_stats(&self, instance: InstanceId) -> Result<Option<DomainJobStats>, Failure> {
        self.on("domain_job_stats", instance, |domain| {
            let Some(job) = &domain.job else { return Ok(None) };
            let is_push = matches!(job.kind, DomainJob::Push { .. });
            let disks = domain.instance.disks.iter().filter(|disk| is_push && job.disks.contains(&disk.target));
            let total_bytes = disks.filter_map(|disk| disk.virtual_bytes).sum();
            Ok(Some(DomainJobStats { total_bytes, ..DomainJobStats::default() }))
        })
        .await
    }

    async fn ended_job(&self, instance: InstanceId) -> Result<Option<EndedJob>, Failure> {
        self.on("ended_job", instance, |domain| Ok(domain.ended_job.clone())).await
    }

    async fn forget_ended_job(&self, instance: InstanceId) -> Result<u64, Failure> {
        self.on("forget_ended_job", instance, |domain| {
            domain.ended_job = None;
            Ok(domain.connection)
        })
        .await
    }

    async fn abort_job(&self, instance: InstanceId, ours: &DomainJob) -> Result<(), Failure> {
        let ours = ours.clone();
        self.changes("abort_job", instance, move |domain| domain.ask_job_to_end(&ours, Instant::now())).await?;
        self.look_in(JOB_ENDS_AFTER);
        Ok(())
    }

    async fn resume(&self, instance: InstanceId) -> Result<(), Failure> {
        self.changes("resume", instance, FakeDomain::resume).await
    }

    async fn block_jobs(&self, instance: InstanceId) -> Result<Vec<DiskTarget>, Failure> {
        self.on("block_jobs", instance, |domain| Ok(domain.job.as_ref().map_or(Vec::new(), |job| job.disks.clone())))
            .await
    }

    async fn checkpoints(&self, instance: InstanceId) -> Result<Vec<String>, Failure> {
        self.on("checkpoints", instance, |domain| Ok(domain.checkpoints.clone())).await
    }

    async fn redefine_checkpoint(
        &self,
        instance: InstanceId,
        checkpoint: &NewCheckpoint,
        _made_at: i64,
    ) -> Result<(), Failure> {
        let name = checkpoint.name.clone();
        self.changes("redefine_checkpoint", instance, move |domain| domain.redefine_checkpoint(&name)).await
    }

    async fn delete_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        self.changes("delete_checkpoint", instance, move |domain| domain.delete_checkpoint(&name)).await
    }

    async fn forget_checkpoint(&self, instance: InstanceId, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        self.changes("forget_checkpoint", instance, move |domain| {
            domain.checkpoints.retain(|known| *known != name);
            Ok(())
        })
        .await
    }

    async fn identities(&self) -> Result<Vec<Identity>, Failure> {
        self.enter("identities", None, CALL_DEADLINE).await?;
        self.lock().domains.values().map(FakeDomain::identity).collect()
    }

    async fn define(&self, new: &NewInstance) -> Result<(), Failure> {
        self.enter("define", None, CALL_DEADLINE).await?;
        let there = self.lock().domains.values().map(FakeDomain::identity).collect::<Result<Vec<_>, _>>()?;
        match there.iter().find(|other| other.id == new.id || other.name == new.name.as_str()) {
            Some(other) if other.is_that(new) => Ok(()),
            Some(other) => {
                let text = format!("instance `{}` cannot be defined: instance `{}` is there", new.name, other.name);
                Err(Failure::new(Code::InstanceExists, text))
            }
            None => {
                definition::own(&new.definition)?;
                self.add(FakeInstance::defined(new));
                self.lock().script.answer("define")
            }
        }
    }

    async fn start(&self, instance: InstanceId) -> Result<(), Failure> {
        self.changes("start", instance, move |domain| match domain.state() {
            PowerState::ShutOff => {
                domain.set_state(PowerState::Running);
                Ok(())
            }
            PowerState::Running => Ok(()),
            other => {
                let text = format!("cannot start instance `{instance}`: it is {other:?}");
                Err(Failure::new(Code::InstanceStateUnsupported, text))
            }
        })
        .await
    }

    async fn attach(&self, instance: InstanceId, disk: &NewDisk) -> Result<(), Failure> {
        let disk = disk.clone();
        self.changes("attach", instance, move |domain| domain.attach(&disk)).await?;
        self.lock().script.answer("attach")
    }

    async fn is_attached(&self, instance: InstanceId, disk: &NewDisk) -> Result<bool, Failure> {
        self.on("is_attached", instance, |domain| disk.is_among(&domain.instance.disks)).await
    }

    async fn secret(&self, secret: &SecretRef) -> Result<StorageKey, Failure> {
        self.enter("secret", None, CALL_DEADLINE).await?;
        self.lock().secrets.get(secret).cloned().ok_or_else(|| {
            let text = format!("cannot read the secret `{secret}`, which a disk needs: there is none");
            Failure::new(Code::CredentialsUnreadable, text)
        })
    }

    async fn watch(&self, instance: InstanceId) -> Result<mpsc::Receiver<DomainEvent>, Failure> {
        self.on("watch", instance, |domain| Ok(domain.watch())).await
    }

    fn stuck_calls(&self) -> Vec<StuckCall> {
        self.lock().script.stuck()
    }
}
