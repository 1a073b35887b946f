//! Push: QEMU writes the images onto the share itself, and we prove afterwards that it has.
//!
//! Everything is made before the guest is touched: images of ours in the staging directory, held open by the mover; that
//! directory shown to the host, which is where QEMU finds it; and the proof that QEMU can write there. Then QEMU is let go, and
//! asked, not believed: a push is over when no disk has a block job, and good when libvirt says so and the images say so too.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::super::basis::Base;
use super::super::context::Context;
use super::super::directory::{self, Access};
use super::super::late::{self, is_listed};
use super::super::plan::PushPlan;
use super::basis::check_room;
use super::copy::{ask_moving, note_copied};
use super::ending;
use super::source::{arm_guard, watch_running};
use super::watch::{Source, real_cause};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{DomainEvent, DomainJob, DomainJobStats, EndedJob, Hypervisor};
use crate::job::JobProgress;
use crate::job::steps::unexpected;
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;
use crate::mover::protocol::{PushTarget, Reply, Request};
use crate::saga::step::{Held, Hold, Make, Named};

/// Longest time for making the images and proving that QEMU can write to them.
const ACQUIRE_SECONDS_MAX: u64 = 300;

/// Longest time for one try of the release.
const RELEASE_SECONDS_MAX: u64 = ending::PUSH_END_SECONDS_MAX + ending::LATE_BEGIN_SECONDS_MAX + 60;

/// Longest time from the end of the job to the end of every disk's own, in which QEMU closes the images.
const CLOSE_SECONDS_MAX: u64 = 300;

/// First pause between two looks how far QEMU is; each is twice the one before.
const LOOK_FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause between two looks without a hint. A guest that QEMU has paused waits for as long.
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a job may still stand after QEMU has paused its guest before it is told to end.
const PAUSED_SECONDS_MAX: u64 = 1;

/// How long it may stand in all before nobody waits any more for what it has to say.
const PAUSED_END_SECONDS_MAX: u64 = 10;

/// Everything that a push backup needs on the host and the share, and the push job itself once it has begun.
pub(in super::super) struct PushSource;

impl Named for PushSource {
    fn name(&self) -> &'static str {
        "source"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(ACQUIRE_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(RELEASE_SECONDS_MAX)
    }
}

#[async_trait]
impl Hold<Context> for PushSource {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let push = push_of(context)?;
        // A try that was cut off may have shown it already.
        context.common.doors.movers.unmount(&push.place).await?;
        directory::make(&push.place, Access::OpensFiles, push.qemu_owner)?;
        arm_guard(context, None).await?;
        ending::end_stray(context).await?;
        match expose(context, &push).await {
            Err(failure) => return Err(real_cause(Source::of(context), failure).await),
            exposed => exposed?,
        }
        // What libvirt remembers when our job is gone has to be our job's.
        context.connection = Some(context.common.doors.hypervisor.forget_ended_job(context.plan.instance_id).await?);
        watch_running(context).await
    }

    /// What the host was shown goes when our job has: as long as it is mounted, so is the share.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        let push = push_of(context)?;
        // Where our job stands it stays mounted: by that QEMU can be freed from the share. It goes with the guard, which ends when our
        // job has.
        ending::end_running(context, vec![push.place.clone()]).await?;
        let unmounted = context.common.doors.movers.unmount(&push.place).await;
        ending::let_guard_go(context).await;
        unmounted
    }
}

fn push_of(context: &Context) -> Result<PushPlan, Failure> {
    let push = context.plan.push().cloned();
    push.ok_or_else(|| Failure::new(Code::Internal, "the source of a push backup was held without a plan for one"))
}

async fn expose(context: &mut Context, push: &PushPlan) -> Result<(), Failure> {
    let (hypervisor, instance) = (context.common.doors.hypervisor.clone(), context.plan.instance_id);
    let writer = hypervisor.qemu_process(instance, push.qemu_owner).await.map_err(|failure| match failure.code {
        Code::InstanceStateUnsupported => {
            Failure::new(Code::PushNotPossible, "cannot find who would write").because(&failure)
        }
        _ => failure,
    })?;
    let mut disks = Vec::with_capacity(context.plan.disks.len());
    for disk in &context.plan.disks {
        let missing = || Failure::new(Code::Internal, format!("disk `{}` was planned without a size", disk.target));
        let virtual_bytes = disk.virtual_bytes.ok_or_else(missing)?;
        let base = context.basis.base(&disk.target).filter(|_| context.tracking.since.contains_key(&disk.target));
        disks.push(PushTarget { target: disk.target.clone(), virtual_bytes, base: base.cloned() });
    }
    let request = Request::Expose { place: push.place.clone(), disks, writer };
    match context.common.session.ask(request, Duration::from_secs(ACQUIRE_SECONDS_MAX)).await? {
        Reply::Exposed { unusable } => {
            for (target, reason) in unusable {
                context.tracking.since.remove(&target);
                context.basis.disks.insert(target, Base::Full(reason));
            }
            check_room(context, &context.basis).map(drop)
        }
        other => Err(unexpected("expose", &other)),
    }
}

/// Waits until QEMU has written all disks, which go with the staging directory.
pub(in super::super) struct Push {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Named for Push {
    fn name(&self) -> &'static str {
        "push"
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Push {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let hypervisor = context.common.doors.hypervisor.clone();
        let hints = hypervisor.watch(context.plan.instance_id).await?;
        match Writing::of(context, hints).until_done().await {
            Ok(None) if !context.tracking.since.is_empty() => Err(Failure::new(
                Code::HypervisorFailed,
                "libvirt lost its count of what was to be written, so that nobody could tell whether all of it was",
            )),
            Ok(written_bytes) => {
                context.written_bytes = written_bytes;
                Ok(json!({ "written_bytes": written_bytes }))
            }
            Err(failure) => Err(real_cause(Source::of(context), failure).await),
        }
    }

    /// The job is ended by the source's release.
    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// How far QEMU is, as far as one can look.
struct Writing {
    hypervisor: Arc<dyn Hypervisor>,
    instance: InstanceId,
    ours: Option<DomainJob>,
    stall_limit: Duration,
    progress: watch::Sender<JobProgress>,
    hints: Option<mpsc::Receiver<DomainEvent>>,
    /// The connection on which libvirt remembers what it is asked for.
    connection: Option<u64>,
}

impl Writing {
    fn of(context: &Context, hints: mpsc::Receiver<DomainEvent>) -> Self {
        Self {
            hypervisor: context.common.doors.hypervisor.clone(),
            instance: context.plan.instance_id,
            ours: context.plan.domain_job(),
            stall_limit: context.common.settings.stall_limit,
            progress: context.common.progress.clone(),
            hints: Some(hints),
            connection: context.connection,
        }
    }

    /// Answers how many bytes were to be written, in clusters; none where libvirt may have forgotten it.
    async fn until_done(&mut self) -> Result<Option<u64>, Failure> {
        let (mut done, mut moved_at, mut pause) = (0, Instant::now(), LOOK_FIRST_PAUSE);
        let mut paused_at: Option<Instant> = None;
        loop {
            match self.hypervisor.domain_job(self.instance).await {
                Ok(job) if job == self.ours => {}
                Ok(_) if paused_at.is_some() => return Err(self.verdict().await.err().unwrap_or_else(paused)),
                Ok(_) => return self.verdict().await,
                // What can't be found out now is asked again; for how long, the stall limit says.
                Err(_) => {}
            }
            if let Ok(PowerState::PausedByIoError) = self.hypervisor.state(self.instance).await {
                let since = *paused_at.get_or_insert_with(Instant::now);
                self.let_go(since).await?;
            }
            if let Some(figures) = self.figures().await
                && self.report(figures) != done
            {
                (done, moved_at) = (figures.processed_bytes, Instant::now());
            }
            let limit = self.stall_limit;
            if moved_at.elapsed() >= limit {
                return Err(Failure::new(
                    Code::Stalled,
                    format!("`push` moved no byte for {limit:?}, after {done} bytes"),
                ));
            }
            self.wait(pause).await;
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
        }
    }

    /// A guest that is paused waits for nothing that is worth the wait. What has paused it ends the job as a rule, and how the job
    /// ended says what it was; so it is told to end, and waited for a little.
    async fn let_go(&self, paused_since: Instant) -> Result<(), Failure> {
        if paused_since.elapsed() >= Duration::from_secs(PAUSED_END_SECONDS_MAX) {
            return Err(paused());
        }
        if let Some(ours) =
            self.ours.as_ref().filter(|_| paused_since.elapsed() >= Duration::from_secs(PAUSED_SECONDS_MAX))
        {
            // The source's release goes on trying.
            let asked = self.hypervisor.abort_job(self.instance, ours).await;
            asked.unwrap_or_else(|failure| tracing::warn!("cannot end the job that paused its guest: {failure:#}"));
        }
        Ok(())
    }

    /// Not asked again while one such question has not come back: behind a dead share none does.
    async fn figures(&self) -> Option<DomainJobStats> {
        let (hypervisor, instance) = (&self.hypervisor, self.instance);
        if is_listed(hypervisor.as_ref(), instance, late::STATS) {
            return None;
        }
        hypervisor.domain_job_stats(instance).await.ok().flatten()
    }

    fn report(&self, figures: DomainJobStats) -> u64 {
        let DomainJobStats { total_bytes, processed_bytes, .. } = figures;
        let (done_bytes, data_bytes) = (processed_bytes, processed_bytes);
        self.progress.send_replace(JobProgress { step: "push", done_bytes, total_bytes, data_bytes });
        processed_bytes
    }

    async fn wait(&mut self, pause: Duration) {
        match &mut self.hints {
            Some(hints) => {
                if let Ok(None) = timeout(pause, hints.recv()).await {
                    self.hints = None;
                }
            }
            None => sleep(pause).await,
        }
    }

    /// The job is gone from the domain. That every disk's is too has to be seen: till then QEMU has the images open.
    async fn verdict(&self) -> Result<Option<u64>, Failure> {
        let (hypervisor, instance) = (&self.hypervisor, self.instance);
        // Before anything is waited for: libvirt remembers one job, and another may begin and end meanwhile.
        let ended = hypervisor.ended_job(instance).await?;
        let until = Instant::now() + Duration::from_secs(CLOSE_SECONDS_MAX);
        let mut pause = LOOK_FIRST_PAUSE;
        loop {
            let busy = match hypervisor.block_jobs(instance).await {
                Ok(busy) if busy.is_empty() => break,
                Ok(busy) => format!("{busy:?}"),
                Err(failure) => format!("{failure:#}"),
            };
            if Instant::now() + pause >= until {
                let text = format!("the push has ended, but not for every disk within {CLOSE_SECONDS_MAX} s");
                return Err(Failure::new(Code::HypervisorFailed, text).caused_by(busy));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
        }
        judge(ended, self.connection)
    }
}

fn paused() -> Failure {
    Failure::new(Code::RepositoryIo, "the guest was paused by an I/O error while QEMU wrote to the share")
}

/// What libvirt remembers of a push that is gone: the bytes that were to be written, if it does. `begun_on` is the connection on which
/// the push was begun. Pure.
fn judge(ended: Option<EndedJob>, begun_on: Option<u64>) -> Result<Option<u64>, Failure> {
    let Some(EndedJob { success, message, total_bytes, remaining_bytes, connection }) = ended else {
        return Err(Failure::new(Code::HypervisorFailed, "libvirt does not remember how the push ended"));
    };
    if success && message.is_none() && remaining_bytes.unwrap_or(0) == 0 {
        // Where nothing was to be written libvirt has no figures, as after a restart of its daemon.
        let nothing = (begun_on == Some(connection)).then_some(0);
        return Ok(total_bytes.or(nothing));
    }
    let message = message.unwrap_or_default();
    let full = ["No space left", "quota exceeded"].iter().any(|words| message.contains(words));
    let (code, text) = match remaining_bytes {
        _ if full => (Code::RepositoryFull, "the share ran full while QEMU wrote to it".to_owned()),
        Some(bytes) if bytes > 0 => (Code::RepositoryIo, format!("QEMU stopped writing with {bytes} bytes to do")),
        _ => (Code::RepositoryIo, "QEMU could not write all of it to the share".to_owned()),
    };
    let failure = Failure::new(code, text);
    Err(if message.is_empty() { failure } else { failure.caused_by(message) })
}

/// Proves what QEMU has written, now that it has nothing open there any more.
pub(in super::super) struct Inspect {
    /// Longest time for all of it.
    pub deadline: Duration,
}

impl Named for Inspect {
    fn name(&self) -> &'static str {
        "inspect"
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn deadline_code(&self) -> Code {
        Code::DeadlineExceeded
    }
}

#[async_trait]
impl Make<Context> for Inspect {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let changes_of = context.tracking.since.keys().cloned().collect();
        let written_bytes = context.written_bytes;
        let reply = ask_moving(context, self, Request::Inspect { changes_of, written_bytes }).await?;
        note_copied(context, self.name(), reply)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_push_that_libvirt_calls_whole_is_worth_a_look() {
        let on = |begun_on, success, message: Option<&str>, remaining_bytes: Option<u64>| {
            let (message, total_bytes) = (message.map(str::to_owned), remaining_bytes.map(|left| left + 9));
            judge(Some(EndedJob { success, message, total_bytes, remaining_bytes, connection: 2 }), begun_on)
        };
        let ended = |success, message, remaining_bytes| on(Some(2), success, message, remaining_bytes);
        assert_eq!(ended(true, None, Some(0)), Ok(Some(9)));
        assert_eq!(ended(true, None, None), Ok(Some(0)), "nothing was to be written");
        assert_eq!(on(Some(1), true, None, None), Ok(None), "libvirt's daemon was restarted");
        let code = |result: Result<Option<u64>, Failure>| result.unwrap_err().code;
        assert_eq!(code(ended(true, None, Some(1))), Code::RepositoryIo);
        assert_eq!(code(ended(true, Some("odd"), Some(0))), Code::RepositoryIo);
        assert_eq!(code(ended(false, None, None)), Code::RepositoryIo);
        assert_eq!(code(ended(false, Some("No space left on device"), Some(7))), Code::RepositoryFull);
        assert_eq!(code(ended(false, Some("Disk quota exceeded"), None)), Code::RepositoryFull);
        assert_eq!(code(judge(None, Some(2))), Code::HypervisorFailed);
    }
}
