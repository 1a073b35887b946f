//! Holding the mover, the repository and the instance's lease in it, and bringing a second mover to where the first one was.

use std::time::Duration;

use async_trait::async_trait;
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};

use super::super::context::Context;
use crate::failure::{Code, Failure};
use crate::host::mover::MoverName;
use crate::model::owner::Owner;
use crate::mover::protocol::{LeaseHolder, Reply, Request};
use crate::saga::step::{Held, Hold, Named};

/// Longest time for starting or stopping a mover.
const MOVER_SECONDS_MAX: u64 = 30;

/// Longest time for mounting and probing the repository.
const OPEN_SECONDS_MAX: u64 = 120;

/// Longest time for unmounting it. Past it the mover is killed, which unmounts too: the mount is in its own namespace.
const CLOSE_SECONDS_MAX: u64 = 60;

/// Longest time for giving the lease back.
const RELEASE_SECONDS_MAX: u64 = 60;

/// Longest time for taking the lease: that of a dead holder is watched for two minutes, at worst for six.
const LEASE_SECONDS_MAX: u64 = 480;

/// Longest time for a way back that may need another mover, the repository and the lease for it.
pub(in super::super) const AGAIN_SECONDS_MAX: u64 = MOVER_SECONDS_MAX + OPEN_SECONDS_MAX + LEASE_SECONDS_MAX + 60;

/// The mover process.
pub(in super::super) struct MoverProcess;

impl Named for MoverProcess {
    fn name(&self) -> &'static str {
        "mover"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(MOVER_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::MoverUnresponsive
    }
}

#[async_trait]
impl Hold<Context> for MoverProcess {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        start_mover(context).await?;
        Ok(Held { value: Value::Null, lost: None })
    }

    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        context.session.stop().await
    }
}

async fn start_mover(context: &mut Context) -> Result<(), Failure> {
    let name = context.plan.mover_name.parse::<MoverName>();
    let name = name.map_err(|error| Failure::new(Code::Internal, "the mover cannot be named").because(&error))?;
    context.session.start(context.doors.movers.as_ref(), &name).await
}

/// The repository, mounted and proven to be the one that the job means.
pub(in super::super) struct OpenRepository;

impl Named for OpenRepository {
    fn name(&self) -> &'static str {
        "repository"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(OPEN_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(CLOSE_SECONDS_MAX + 30)
    }

    fn deadline_code(&self) -> Code {
        Code::MountTimedOut
    }
}

#[async_trait]
impl Hold<Context> for OpenRepository {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let (need_bytes, surely) = (context.plan.need_bytes, context.plan.need_bytes_max);
        let free_bytes = open(context, need_bytes).await?;
        if free_bytes < surely {
            context.warnings.push(format!(
                "nobody could tell how much some disks hold: the backup may take up to {surely} bytes where the repository had \
                 {free_bytes} free"
            ));
        }
        Ok(Held { value: Value::Null, lost: None })
    }

    /// A mount is in its mover's own namespace and goes with it: where there is no mover, or one that does not answer and will
    /// be killed, nothing else is to be done.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        if !context.session.has("open") {
            return Ok(());
        }
        match context.session.ask(Request::Close, Duration::from_secs(CLOSE_SECONDS_MAX)).await {
            Ok(Reply::Closed { warnings }) => {
                let warnings =
                    warnings.into_iter().map(|text| Failure::new(Code::RepositoryIo, text).in_step("repository"));
                context.late_warnings.extend(warnings);
                Ok(())
            }
            Ok(other) => Err(unexpected("close", &other)),
            Err(gone) if matches!(gone.code, Code::MoverDied | Code::MoverUnresponsive) => {
                context.late_warnings.push(gone.in_step("repository"));
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Answers the free bytes of the repository.
async fn open(context: &mut Context, need_bytes: u64) -> Result<u64, Failure> {
    let repository = context.job.repository.clone();
    // Where libvirt changes no users QEMU runs as we do.
    let as_us = || Owner { user: geteuid().as_raw(), group: getegid().as_raw() };
    let writer = context.plan.push().map(|push| push.qemu_owner.unwrap_or_else(as_us));
    let same_device_ok = context.settings.same_device_ok;
    let limit = Duration::from_secs(OPEN_SECONDS_MAX);
    match context.session.ask(Request::Open { repository, same_device_ok, need_bytes, writer }, limit).await? {
        Reply::Opened { warnings, free_bytes } => {
            context.warnings.extend(warnings);
            Ok(free_bytes)
        }
        other => Err(unexpected("open", &other)),
    }
}

/// The instance's lease. Its loss cancels whatever is done under it.
pub(in super::super) struct Lease;

impl Named for Lease {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(LEASE_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(AGAIN_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::LeaseHeld
    }
}

#[async_trait]
impl Hold<Context> for Lease {
    async fn acquire(&self, context: &mut Context) -> Result<Held, Failure> {
        let number = lease(context).await?;
        Ok(Held { value: json!({ "number": number }), lost: context.session.lost() })
    }

    /// Where the mover that held it died, the lease is ours only by its name: it is waited out, taken over and given back, so
    /// that nobody else has to wait for it.
    async fn release(&self, context: &mut Context, _held: Option<&Value>) -> Result<(), Failure> {
        if !context.session.is_alive() {
            match again(context).await {
                // Somebody else has it by now, so it is no longer ours to give.
                Err(failure) if failure.code == Code::LeaseHeld => return Ok(()),
                result => result?,
            }
        }
        context.session.ask(Request::Release, Duration::from_secs(RELEASE_SECONDS_MAX)).await.map(drop)
    }
}

async fn lease(context: &mut Context) -> Result<u64, Failure> {
    let holder = LeaseHolder {
        host: context.settings.host.clone(),
        installation: context.settings.installation,
        job: context.job.key.to_string(),
    };
    let request = Request::Lease { instance: context.plan.instance_id, holder };
    match context.session.ask(request, Duration::from_secs(LEASE_SECONDS_MAX)).await? {
        Reply::Leased { number } => Ok(number),
        other => Err(unexpected("lease", &other)),
    }
}

/// Brings a mover to where it holds the lease, for a way back or to look at what was published. One that died, or belonged to
/// a worker that died, is replaced; taking the lease over fences and removes what the dead one may still be writing.
pub(in super::super) async fn again(context: &mut Context) -> Result<(), Failure> {
    if !context.session.is_alive() {
        context.session.stop().await?;
        start_mover(context).await?;
    }
    if !context.session.has("open") {
        open(context, 0).await?;
    }
    if !context.session.has("lease") {
        lease(context).await?;
    }
    Ok(())
}

/// The mover answered something else than was asked.
pub(in super::super) fn unexpected(asked: &str, reply: &Reply) -> Failure {
    Failure::new(Code::Internal, format!("the mover answered `{asked}` with something else"))
        .caused_by(format!("{reply:?}"))
}
